"""Systems and batches of prompts -> speeches, or the reason why there is none (L3)."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from plugins.audio.codec import Codec
from plugins.data.dialogue import Dialogue
from plugins.errors import UserError, problem
from plugins.evaluation.scorers import fingerprint
from plugins.inference import HiggsAudioGenerator
from plugins.model import load as checkpoint
from plugins.model.load import Quantization, load_model
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech

BASE, TUNED, MODEL = "base", "tuned", "model"
_ADAPTER = "default"  # as `load_model` names the only one


@dataclass(frozen=True)
class System:
    """One that speaks. depends_on: JSON of everything that what it says depends on, besides the
    prompt."""

    name: str
    depends_on: dict[str, Any]
    generator: Callable[[], HiggsAudioGenerator] = field(repr=False)


def systems(
    model: str,
    *,
    adapters: str | None = None,
    base: str | None = None,
    codec: Codec,
    device: str = "cpu",
    quantization: Quantization | None = None,
) -> list[System]:
    """`base` and `tuned` for LoRA weights (whose base is itself with them switched off) and for a
    model beside the one it came from; `model` alone otherwise. Models are loaded when they speak,
    one at a time, and share `codec`.

    Raises UserError if a folder is not there, or LoRA weights are given another base.
    """
    folder, own = checkpoint.base_and_adapters(model, adapters)
    if base is not None and own is not None:
        raise problem(
            source="options",
            field="base",
            value=base,
            reason="is not the base of the LoRA weights",
            remedy="leave it out: they name theirs",
        )
    loaded: dict[str, HiggsAudioGenerator] = {}

    def load(path: str) -> HiggsAudioGenerator:
        if path not in loaded:
            loaded.clear()  # two models need not fit on one device
            gc.collect()
            own_weights = own if path == folder else None
            parts = load_model(path, adapters=own_weights, device=device, quantization=quantization)
            loaded[path] = HiggsAudioGenerator(*parts, codec=codec)
            assert (
                codec.model is not None
            )  # loads it: a fault of the codec is none of the first item
        return loaded[path]

    def switched(name: str | None) -> HiggsAudioGenerator:
        generator = load(folder)
        generator.use_adapter(name)
        return generator

    common = {
        "device": torch.device(device).type,
        "quantization": quantization,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    weights: dict[str, Any] = {"model": fingerprint(Path(folder)), **common}
    if own is not None:
        return [
            System(BASE, weights, lambda: switched(None)),
            System(
                TUNED, {**weights, "adapters": fingerprint(Path(own))}, lambda: switched(_ADAPTER)
            ),
        ]
    tuned = System(TUNED if base is not None else MODEL, weights, lambda: load(folder))
    if base is None:
        return [tuned]
    other = checkpoint.base_and_adapters(base)
    if other[1] is not None:
        raise problem(
            source="options",
            field="base",
            value=base,
            reason="is a LoRA folder",
            remedy="give the model that was trained from",
        )
    return [
        System(BASE, {**common, "model": fingerprint(Path(other[0]))}, lambda: load(other[0])),
        tuned,
    ]


def speak_batch(
    generator: HiggsAudioGenerator,
    dialogues: Sequence[Dialogue],
    samplings: Sequence[Sampling],
    max_audio_s: float,
) -> list[Speech | UserError]:
    """Together; if one of them fails, one by one. One outcome per prompt."""
    try:
        return list(generator.speak(dialogues, samplings=samplings, max_audio_s=max_audio_s))
    except UserError as error:
        if len(dialogues) == 1:
            return [error]
    alone = zip(dialogues, samplings, strict=True)
    return [
        outcome
        for one, how in alone
        for outcome in speak_batch(generator, [one], [how], max_audio_s)
    ]


def stop_rate(outcomes: Sequence[Speech | UserError]) -> float:
    """The share that ended by themselves; what failed did not."""
    return sum(isinstance(each, Speech) and each.stopped for each in outcomes) / len(outcomes)


def seeded(sampling: Sampling, seed: int, id_: str) -> Sampling:
    """The same draws for one item in every system and every order, others for every other item."""
    digest = hashlib.sha256(f"{seed} {id_}".encode()).digest()
    return replace(sampling, seed=int.from_bytes(digest[:6], "big"))
