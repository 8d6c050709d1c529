"""One utterance -> the clips that it gives, or why it is unfit (L4).

In: `Utterance`. Out: `Outcome`, plain values that travel between processes and into the journal. A pure function of the
utterance, its file and `Work`: the same on every worker, machine and run. Knows neither rows nor splits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile as sf

from plugins.audio import SAMPLE_RATE_HZ, AudioError, AudioInfo, file_hash, load, probe, replace_when_done
from plugins.corpora import Utterance
from plugins.errors import problem
from plugins.prepare.processing import Processing, process, variants
from plugins.prepare.quality import (
    Fault,
    Limits,
    check_file_size,
    check_header,
    check_samples,
    check_text,
    samples_hash,
)

Level = Literal["none", "header", "full"]
_EDGE_BYTES = 4096  # of a file, whose hash tells candidates for duplicates apart without reading the whole


@dataclass(frozen=True)
class File:
    """One recording to train on: the utterance's own, or one that was written from it."""

    id: str
    audio: str
    speaker: str | None
    duration_s: float | None  # None: not measured
    content: str | None  # equal for equal recordings; None: not looked at


@dataclass(frozen=True)
class Outcome:
    """`fault`, or the files that an utterance gives: one, and its augmented copies."""

    fault: Fault | None = None
    files: tuple[File, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        fault = values["fault"]
        return cls(None if fault is None else (fault[0], fault[1]), tuple(File(**each) for each in values["files"]))


@dataclass(frozen=True)
class Work:
    """What is done with each utterance.

    level: `none` opens no audio, `header` reads headers, `full` decodes every sample. audio_dir: where processed
    recordings go; None: nothing is processed and the originals are used.
    """

    level: Level = "none"
    limits: Limits = Limits()
    processing: Processing = Processing()
    audio_dir: Path | None = None
    seed: int = 42

    def key(self, utterance: Utterance) -> str:
        """Of everything that the outcome depends on: an outcome in the journal under this key is still true."""
        status = utterance.audio.stat()
        parts = (utterance.id, utterance.text, str(utterance.audio), status.st_size, status.st_mtime_ns, repr(self))
        return hashlib.sha256(json.dumps([*parts, utterance.speaker]).encode()).hexdigest()

    def __call__(self, utterance: Utterance) -> Outcome:
        try:
            return self._do(utterance)
        except AudioError as error:
            return Outcome((error.reason, str(utterance.audio)))

    def _do(self, utterance: Utterance) -> Outcome:
        if fault := check_text(utterance.text, None, self.limits):
            return Outcome(fault)
        if self.level == "none" and self.audio_dir is None:
            return Outcome(files=(self._original(utterance, None, None),))
        # From the cheapest question to the dearest: a file of hours is refused before a sample is read.
        fault = check_file_size(utterance.audio.stat().st_size, self.limits)
        info = None if fault else probe(utterance.audio)
        if info is not None:
            fault = check_header(info, self.limits) or check_text(utterance.text, info.duration_s, self.limits)
        if fault or info is None:
            return Outcome(fault)
        if self.level != "full" and self.audio_dir is None:
            return Outcome(files=(self._original(utterance, info.duration_s, edge_hash(utterance.audio)),))
        return self._decoded(utterance, info)

    def _decoded(self, utterance: Utterance, info: AudioInfo) -> Outcome:
        samples = load(utterance.audio, sample_rate_hz=info.sample_rate_hz)
        decoded = AudioInfo(len(samples), info.sample_rate_hz, info.num_channels)
        is_trimmed = self.audio_dir is not None and self.processing.trim != "none"
        limits = dataclasses.replace(self.limits, max_silence_share=1.0) if is_trimmed else self.limits
        fault = (
            check_header(decoded, self.limits)
            or check_samples(samples, info.sample_rate_hz, limits)
            or check_text(utterance.text, decoded.duration_s, self.limits)
        )
        if fault:
            return Outcome(fault)
        content = samples_hash(samples, info.sample_rate_hz)
        if self.audio_dir is None:
            return Outcome(files=(self._original(utterance, decoded.duration_s, content),))
        processed = process(samples, info.sample_rate_hz, self.processing)
        if not len(processed):
            return Outcome(("no speech found", str(utterance.audio)))
        again = AudioInfo(len(processed), SAMPLE_RATE_HZ, 1)
        fault = (
            check_header(again, self.limits)
            or check_samples(processed, SAMPLE_RATE_HZ, self.limits)
            or check_text(utterance.text, again.duration_s, self.limits)
        )
        if fault:
            return Outcome((f"after processing: {fault[0]}", fault[1]))
        files = [self._written(utterance.id, processed, utterance.speaker, content)]
        for variant in variants(processed, utterance.id, self.processing, seed=self.seed):
            if check_header(AudioInfo(len(variant.samples), SAMPLE_RATE_HZ, 1), self.limits):
                continue  # slower than the longest clip
            speaker = None if utterance.speaker is None else utterance.speaker + variant.speaker_suffix
            files.append(self._written(variant.id, variant.samples, speaker, f"{content}{variant.id}"))
        return Outcome(files=tuple(files))

    def _original(self, utterance: Utterance, duration_s: float | None, content: str | None) -> File:
        return File(utterance.id, str(utterance.audio), utterance.speaker, duration_s, content)

    def _written(self, id_: str, samples: np.ndarray, speaker: str | None, content: str) -> File:
        assert self.audio_dir is not None
        path = self.audio_dir / f"{_file_name(id_)}.flac"  # half the size of WAV, and every sample the same
        with replace_when_done(path) as temporary:
            try:
                sf.write(temporary, np.clip(samples, -1.0, 1.0), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
            except sf.LibsndfileError as error:
                reason = f"cannot be written ({error.error_string})"
                raise problem("--audio_output", "path", str(path), reason, "is the disk full? mend that") from None
        return File(id_, str(path), speaker, round(len(samples) / SAMPLE_RATE_HZ, 6), content)


def edge_hash(path: Path) -> str:
    """Of the size, beginning and end of a file: different for different recordings, but not always only for them."""
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(_EDGE_BYTES)
        file.seek(max(0, size - _EDGE_BYTES))
        return hashlib.sha256(f"{size}:".encode() + head + file.read(_EDGE_BYTES)).hexdigest()


def is_same_recording(a: File, b: File, level: Level) -> bool:
    """For two files of the same `content`. In header mode that says no more than that they should be compared."""
    return level == "full" or file_hash(a.audio) == file_hash(b.audio)


def _file_name(id_: str) -> str:
    """A name below the output folder for any id: `a/b.wav` -> `a/b`; what a file system may not take is replaced."""
    stem = re.sub(r"\.(wav|flac|mp3|ogg|opus)(?=-|$)", "", id_, flags=re.IGNORECASE)
    safe = "/".join(re.sub(r"[^\w.-]", "_", part).lstrip(".") or "_" for part in stem.split("/") if part)[:150]
    # Two ids that become one name must not become one file.
    return safe if safe == id_ else f"{safe}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"
