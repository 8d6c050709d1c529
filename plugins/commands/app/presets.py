"""The recipes in configs/, what each needs of a GPU by the doctor's estimate, and the settings that
the page offers, explained in the words of `higgs-audio sft --help`.

Knows no Gradio; what counts memory imports torch, and is imported when it is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings
from plugins.training.config_file import read_config
from plugins.training.sft_help import COMMON

FOLDER = Path(__file__).resolve().parents[3] / "configs"
# The first one that has room is taken; the others are there to be chosen.
_BY_ITSELF = ("lora_3b", "qlora_3b")
# Of the demo's own model, and of pairs, which the page has none of.
_LEFT_OUT = ("demo", "dpo_lora_3b")
FIRST = (
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "audio_learning_rate",
    "lora_rank",
    "lora_alpha",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "save_steps",
    "sample_texts",
)
MORE = (
    "logging_steps",
    "max_length",
    "max_audio_length",
    "torch_dtype",
    "target_modules",
    "save_total_limit",
    "text_loss_weight",
    "audio_loss_weight",
    "auxiliary_loss_weight",
    "audio_codebook_reduction",
    "audio_codebook_weights",
    "samples",
    "clean_text",
    "raw_prompt",
    "preflight",
    "force_resume",
    "codec",
)


@dataclass(frozen=True)
class Preset:
    name: str
    file: Path
    about: str  # its own first lines

    def values(self) -> dict[str, Any]:
        """Flag -> what it is set to."""
        config = read_config(self.file)
        return {**config, **(config.get("model_kwargs") or {})}


@dataclass(frozen=True)
class Need:
    """gib: per device; None: it cannot be estimated, for the `reason`."""

    gib: float | None
    reason: str = ""
    is_enough: bool | None = None  # None: there is no GPU to compare with


@cache
def presets() -> dict[str, Preset]:
    """By name, those that are taken by themselves first. Empty where the kit's configs/ is not."""
    found = {}
    names = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem not in _LEFT_OUT)
    for name in sorted(names, key=lambda name: name not in _BY_ITSELF):
        file = FOLDER / f"{name}.yaml"
        lines = file.read_text(encoding="utf-8").split("\n")
        about = [line.lstrip("# ") for line in lines[:3] if line.startswith("#")]
        found[name] = Preset(name, file, "\n".join(about))
    return found


def needs(model_config: Any, *, gib: float | None) -> dict[str, Need]:
    """What training `model_config` takes by each preset, beside a card of `gib`."""
    from plugins.training.preflight.memory import GIB, estimate, fits
    from plugins.training.preflight.plan import TrainingPlan

    found = {}
    for name, preset in presets().items():
        config = read_config(preset.file)
        try:
            needed = estimate(model_config, TrainingPlan.from_config(config, {}))
        except (UserError, ValueError) as error:
            found[name] = Need(None, str(error))
            continue
        is_enough = None if gib is None else fits(needed, gib)
        found[name] = Need(needed.total / GIB, is_enough=is_enough)
    return found


def chosen(needed: Mapping[str, Need]) -> str | None:
    """The preset for a card; the first one where there is none; None if no LoRA has room."""
    for name in _BY_ITSELF:
        if name in needed and needed[name].is_enough is not False:
            return name
    return None


def explanation(flag: str) -> str:
    """What the setting means, as the command's own help says it."""
    for knob in dataclasses.fields(HiggsAudioSettings):
        if knob.name == flag:
            return str(knob.metadata["help"])
    return COMMON[flag]


def shown(value: Any) -> str:
    """What a preset, or a default, sets: to be seen in an empty field."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def default_of(flag: str, preset: Mapping[str, Any]) -> str:
    value = preset.get(flag)
    if value is None:
        value = getattr(HiggsAudioSettings(), flag, None)
    return shown(value)
