"""Systems and batches of prompts -> speeches, or the reason why there is none. What was said is
judged elsewhere."""

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
from plugins.files.fingerprint import fingerprint
from plugins.hearing.takes import Judge
from plugins.inference import HiggsAudioGenerator
from plugins.model import load as checkpoint
from plugins.model.adapter_scale import require_scale
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


class _Loader:
    """Folder -> its generator, kept until another folder's is asked for."""

    def __init__(
        self, codec: Codec, judge: Judge | None, marks: bool | None, **options: Any
    ) -> None:
        self._codec, self._judge, self._marks = codec, judge, marks
        self._options = options  # those of `load_model`
        self._loaded: dict[str, HiggsAudioGenerator] = {}

    def __call__(self, folder: str, adapters: str | None = None) -> HiggsAudioGenerator:
        if folder not in self._loaded:
            # Two models need not fit on one device.
            self._loaded.clear()
            gc.collect()
            parts = load_model(folder, adapters=adapters, **self._options)
            self._loaded[folder] = HiggsAudioGenerator(*parts, codec=self._codec, marks=self._marks)
            self._loaded[folder].judge = self._judge
            # This loads the codec: what is wrong with it is no fault of the first item.
            assert self._codec.model is not None
        return self._loaded[folder]


def systems(
    model: str,
    *,
    adapters: str | None = None,
    base: str | None = None,
    codec: Codec,
    adapter_scale: float = 1.0,
    device: str = "cpu",
    quantization: Quantization | None = None,
    judge: Judge | None = None,
    marks: bool | None = None,
) -> list[System]:
    """`base` and `tuned` for LoRA weights (whose base is itself with them switched off) and for a
    model beside the one it came from; `model` alone otherwise. Models are loaded when they speak,
    one at a time, and share `codec`. judge: of the takes, if several are spoken. marks: as of
    `HiggsAudioGenerator`.

    Raises UserError if a folder is not there, LoRA weights are given another base, or a scale
    is given without them.
    """
    folder, own = checkpoint.base_and_adapters(model, adapters)
    if base is not None and own is not None:
        reason = "is not the base of the LoRA weights"
        raise _refused_base(base, reason, "leave it out: they name theirs")
    require_scale(adapter_scale, has_adapter=own is not None)
    load = _Loader(
        codec, judge, marks, adapter_scale=adapter_scale, device=device, quantization=quantization
    )
    # Another device or version rounds, and so draws, otherwise.
    common = {
        "device": torch.device(device).type,
        "quantization": quantization,
        "versions": {"torch": version("torch"), "transformers": version("transformers")},
    }
    weights: dict[str, Any] = {"model": fingerprint(Path(folder)), **common}
    if own is not None:
        with_own = {**weights, "adapters": fingerprint(Path(own))}
        # Without it as evaluations were begun before it was there: they go on.
        if adapter_scale != 1:
            with_own["adapter_scale"] = adapter_scale

        def switched(name: str | None) -> HiggsAudioGenerator:
            generator = load(folder, own)
            generator.use_adapter(name)
            return generator

        return [
            System(BASE, weights, lambda: switched(None)),
            System(TUNED, with_own, lambda: switched(_ADAPTER)),
        ]
    if base is None:
        return [System(MODEL, weights, lambda: load(folder))]
    other, others = checkpoint.base_and_adapters(base)
    if others is not None:
        raise _refused_base(base, "is a LoRA folder", "give the model that was trained from")
    of_base = {**common, "model": fingerprint(Path(other))}
    return [
        System(BASE, of_base, lambda: load(other)),
        System(TUNED, weights, lambda: load(folder)),
    ]


def _refused_base(base: str, reason: str, remedy: str) -> UserError:
    return problem(source="options", field="base", value=base, reason=reason, remedy=remedy)


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
    # One text that is too long fails all of them: the others shall be heard.
    outcomes = []
    for dialogue, sampling in zip(dialogues, samplings, strict=True):
        outcomes += speak_batch(generator, [dialogue], [sampling], max_audio_s)
    return outcomes


def seeded(sampling: Sampling, seed: int, id_: str) -> Sampling:
    """The same draws for one item in every system and every order, others for every other item."""
    digest = hashlib.sha256(f"{seed} {id_}".encode()).digest()
    # Six bytes: every generator takes such a seed.
    return replace(sampling, seed=int.from_bytes(digest[:6], "big"))
