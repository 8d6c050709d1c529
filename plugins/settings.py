"""Our own knobs: one frozen dataclass.

They travel as environment variables of the upper-cased name, because that is where MS-SWIFT puts
`--model_kwargs` (`swift sft --model_kwargs '{"audio_learning_rate": 1e-4}'`); `higgs-audio sft`
offers each as a typed flag and puts it there too. So there is one place to read them from:
`HiggsAudioSettings.from_env()`."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from plugins.errors import UserError, did_you_mean, problem
from plugins.files.disk import read_json
from plugins.files.hub import DEFAULT_CODEC
from plugins.files.untrusted import NamedByCheckpoint

logger = logging.getLogger(__name__)

SETTINGS_FILE = "higgs_audio_settings.json"
Reduction = Literal["mean", "sum"]


# `help` and `parse` make the flag of `higgs-audio sft`; `joint` separates several values.
def _knob(default: Any, help: str, parse: Callable[[str], Any], *, joint: str = ",") -> Any:
    return field(default=default, metadata={"help": help, "parse": parse, "joint": joint})


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError(text)


def _reduction(text: str) -> str:
    if text not in get_args(Reduction):
        raise ValueError(text)
    return text


def _floats(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.strip("[]()").replace(",", " ").split()))


def _texts(text: str) -> tuple[str, ...]:
    try:
        # What `str` makes of a list: so MS-SWIFT hands over those of `model_kwargs`.
        parts = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError):
        parts = None  # "[SPEAKER0] Hello."
    if not isinstance(parts, list):
        parts = text.split("|")
    stripped = [str(part).strip() for part in parts]
    return tuple(filter(None, stripped))


@dataclass(frozen=True)
class HiggsAudioSettings:
    """Every knob, its default and its meaning. Formulas: `plugins.model.loss`."""

    text_loss_weight: float = _knob(1.0, "weight of the text cross-entropy", float)
    audio_loss_weight: float = _knob(1.0, "weight of the audio cross-entropy", float)
    auxiliary_loss_weight: float = _knob(0.001, "weight of the z-loss of both heads", float)
    audio_codebook_reduction: Reduction = _knob(
        "mean", "mean over codebooks, or sum (times K, transformers' scale)", _reduction
    )
    audio_codebook_weights: tuple[float, ...] = _knob(
        (), "one weight per codebook, for example 2,1,1,1,1,1,1,1; empty: all 1", _floats
    )
    audio_learning_rate: float | None = _knob(
        None,
        "learning rate of audio FFN, norms, embedding and head; unset: that of the rest",
        float,
    )
    max_audio_length: int = _knob(1024, "longest clip in codec frames (25 per second)", int)
    audio_root: str | None = _knob(
        None, "the only folder from which rows may read; relative paths are looked for there", str
    )
    codec: str | None = _knob(
        None,
        f"codec folder or Hub id; unset: MODEL/audio_tokenizer if it exists, else {DEFAULT_CODEC}",
        str,
    )
    preflight: bool = _knob(True, "check labels, codes and leaks before the first step", _flag)
    dry_run: bool = _knob(
        False, "show what would be trained, how, and in how much memory; train nothing", _flag
    )
    raw_prompt: bool = _knob(
        False, "take the prompt as written, without normalising it to the model's own", _flag
    )
    clean_text: bool = _knob(
        True, "write texts as the model's own examples do, in training and in speaking", _flag
    )
    native_layers: bool = _knob(
        False, "transformers' own decoder layers in place of the index-once ones", _flag
    )
    force_resume: bool = _knob(
        False, "resume although data, options or adapter are not those of the checkpoint", _flag
    )
    marks: bool = _knob(
        True, "files of generated speech say that they are synthetic, samples too", _flag
    )
    samples: bool | None = _knob(
        None,
        "speak before the first step, at each evaluation and at the end;"
        " unset: if TensorBoard is reported to",
        _flag,
    )
    sample_texts: tuple[str, ...] = _knob(
        (),
        "what to speak then, up to four: texts with | between them, or a JSONL file of rows;"
        " empty: rows of the validation set, or two sentences of ours where there is none",
        _texts,
        joint="|",
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> HiggsAudioSettings:
        """Read every knob from `env` (default: the process's); an empty value counts as unset.

        Raises UserError on a value of the wrong kind.
        """
        # Not a default argument: `datasets.map(num_proc=2)` puts another object in the place of
        # os.environ.
        env = os.environ if env is None else env
        values: dict[str, Any] = {}
        for knob in dataclasses.fields(cls):
            if not _is_set(env, knob.name):
                continue
            text = env[knob.name.upper()]
            try:
                values[knob.name] = knob.metadata["parse"](text)
            except ValueError:
                raise problem(
                    source="settings",
                    field=knob.name,
                    value=text,
                    reason="has the wrong kind",
                    remedy=f"give {knob.metadata['help']}",
                ) from None
        settings = cls(**values)
        settings._check_ranges()
        return settings

    @classmethod
    def of_checkpoint(
        cls, folder: Path, env: Mapping[str, str] | None = None
    ) -> HiggsAudioSettings:
        """Those of `env`, and where it is silent about codec and prompt, those that `folder` was
        trained with."""
        env = os.environ if env is None else env
        settings = cls.from_env(env)
        kept = {}
        # A codec or prompt other than in training would be other inputs than the model knows.
        for name, value in trained_with(folder).items():
            if not _is_set(env, name):
                kept[name] = value
            elif name in PROMPT_KNOBS and value != getattr(settings, name):
                trained = f"trained with {name} {str(value).lower()}"
                used = f"used with {name.upper()}={env[name.upper()]}"
                _warn_once(f"{folder}: {trained}, {used}: other prompts")
        return dataclasses.replace(settings, **kept)

    @property
    def prompts(self) -> str:
        """What becomes of the texts of rows and requests, in words."""
        if self.raw_prompt:
            return "raw prompts"
        if self.clean_text:
            return "cleaned texts"
        return "raw texts"

    def save(self, folder: Path) -> None:
        """Write them into `folder`, which must exist."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")

    def _check_ranges(self) -> None:
        def wrong(name: str, reason: str, remedy: str) -> UserError:
            value = getattr(self, name)
            return problem(source="settings", field=name, value=value, reason=reason, remedy=remedy)

        for name in (
            "text_loss_weight",
            "audio_loss_weight",
            "auxiliary_loss_weight",
            "audio_learning_rate",
        ):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise wrong(name, "is negative", "give 0 or more")
        if self.max_audio_length < 1:
            raise wrong("max_audio_length", "is below 1", "give codec frames")
        weights = self.audio_codebook_weights
        # The loss is divided by their sum.
        if weights and (min(weights) < 0 or sum(weights) == 0):
            reason = "has a negative weight or only zeros"
            raise wrong("audio_codebook_weights", reason, "give at least one positive weight")


PROMPT_KNOBS = ("raw_prompt", "clean_text")


def trained_with(folder: Path) -> dict[str, Any]:
    """`codec` and PROMPT_KNOBS of the training that saved `folder`; of a base, which has no
    settings, nothing.

    Raises UserError if they cannot be read.
    """
    file = folder / SETTINGS_FILE
    remedy = "copy it again from the training's folder, or remove it"
    if not file.is_file():
        return {}
    saved = read_json(file, remedy)
    # A folder that was saved before a knob existed lacks it: false is what was done then.
    for name in PROMPT_KNOBS:
        if not isinstance(saved.get(name, False), bool):
            raise problem(
                source=str(file),
                field=name,
                value=saved[name],
                reason="is neither true nor false",
                remedy=remedy,
            )
    if "clean_text" not in saved:
        reason = f"trained before texts were cleaned (no clean_text in {SETTINGS_FILE})"
        _warn_once(f"{folder}: {reason}: used with raw ones")
    # Whoever made the folder chose it: it is looked up, but not downloaded.
    codec = saved.get("codec")
    kept: dict[str, Any] = {"codec": NamedByCheckpoint(codec) if codec else None}
    return kept | {name: saved.get(name, False) for name in PROMPT_KNOBS}


def _is_set(env: Mapping[str, str], name: str) -> bool:
    return env.get(name.upper(), "") not in {"", "None"}


@cache  # a checkpoint is opened many times
def _warn_once(text: str) -> None:
    logger.warning(text)


KNOBS = tuple(knob.name for knob in dataclasses.fields(HiggsAudioSettings))
_JOINTS = {knob.name: knob.metadata["joint"] for knob in dataclasses.fields(HiggsAudioSettings)}


def joined(knob: str, values: Iterable[Any]) -> str:
    """Several values of one knob as the one text that its environment variable holds."""
    return str(_JOINTS[knob]).join(map(str, values))


def check_knob_names(names: Iterable[str], where: str) -> None:
    """Raise UserError for a name that is no knob: a mistyped one would otherwise be ignored in
    silence."""
    for name in names:
        if name.lower() not in KNOBS:
            raise problem(
                source=where,
                field="model_kwargs",
                value=name,
                reason="is not a setting of this kit",
                remedy=did_you_mean(name.lower(), KNOBS),
            )
