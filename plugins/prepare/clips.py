"""One utterance -> the clips that it gives, or why it is unfit (L4).

In: `Utterance`. Out: `Outcome`, plain values that travel between processes and into the journal. A
pure function of the utterance, its file and `Work`: the same on every worker, machine and run.
Knows neither rows nor splits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile as sf
import xxhash

from plugins import __version__
from plugins.audio.waveforms import (
    SAMPLE_RATE_HZ,
    AudioError,
    AudioInfo,
    Source,
    to_float,
    to_pcm16,
)
from plugins.corpora import Utterance
from plugins.errors import problem
from plugins.files.disk import file_hash, replace_when_done
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
_EDGE_BYTES = (
    4096  # of a file, whose hash tells candidates for duplicates apart without reading the whole
)


@dataclass(frozen=True)
class File:
    """One recording to train on: the utterance's own, or one that was written from it."""

    id: str
    audio: str
    speaker: str | None
    duration_s: float | None  # None: not measured
    content: str | None  # equal for equal recordings; None: not looked at
    num_bytes: int | None = None  # of a written one, and their hash; None: the utterance's own
    bytes_hash: str | None = None

    def is_there(self) -> bool:
        """Whether a written file still holds what was written. Of an original, `Work.key` knows."""
        if self.bytes_hash is None:
            return True
        try:
            if (
                os.stat(self.audio).st_size != self.num_bytes
            ):  # no need to read those that were cut off
                return False
            with open(self.audio, "rb") as file:
                return _bytes_hash(file.read()) == self.bytes_hash
        except OSError:
            return False


@dataclass(frozen=True)
class Outcome:
    """`fault`, or the files that an utterance gives: one, and its augmented copies."""

    fault: Fault | None = None
    files: tuple[File, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "files": [vars(file) for file in self.files],
        }  # `asdict` takes ten times as long

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        fault = values["fault"]
        return cls(
            None if fault is None else (fault[0], fault[1]),
            tuple(File(**each) for each in values["files"]),
        )


@dataclass(frozen=True)
class Work:
    """What is done with each utterance.

    level: `none` opens no audio, `header` reads headers, `full` decodes every sample. audio_dir:
    where processed recordings go; None: nothing is processed and the originals are used. Files are
    whole when a call returns, but on the disk only after `plugins.audio.waveforms.sync`."""

    level: Level = "none"
    limits: Limits = Limits()
    processing: Processing = Processing()
    audio_dir: Path | None = None
    seed: int = 42

    def key(self, utterance: Utterance) -> str:
        """Of everything that the outcome depends on: an outcome in the journal under this key is
        still true."""
        status = os.stat(utterance.audio)
        said = (utterance.id, utterance.text, utterance.speaker)
        recording = (str(utterance.audio), status.st_size, status.st_mtime_ns)
        parts = [*said, *recording, self._repr, __version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def path_of(self, id_: str) -> Path:
        """Where the processed recording of that id goes."""
        assert self.audio_dir is not None
        return self.audio_dir / f"{_file_name(id_)}.flac"  # half of WAV, and every sample the same

    @functools.cached_property
    def _repr(self) -> str:
        return repr(self)

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
        # From the cheapest question to the dearest: a file of hours is refused before a sample is
        # read.
        if fault := check_file_size(os.stat(utterance.audio).st_size, self.limits):
            return Outcome(fault)
        with Source(utterance.audio) as source:
            info = source.info
            fault = check_header(info, self.limits) or check_text(
                utterance.text, info.duration_s, self.limits
            )
            if fault:
                return Outcome(fault)
            if self.level == "full" or self.audio_dir is not None:
                return self._decoded(utterance, source.decode(), info.sample_rate_hz)
        return Outcome(
            files=(self._original(utterance, info.duration_s, edge_hash(utterance.audio)),)
        )

    def _decoded(self, utterance: Utterance, stored: np.ndarray, sample_rate_hz: int) -> Outcome:
        decoded = AudioInfo(len(stored), sample_rate_hz, stored.shape[1])
        if not len(stored):
            raise AudioError(
                utterance.audio, "holds no samples", "export the file again or leave it out"
            )
        is_trimmed = self.audio_dir is not None and self.processing.trim != "none"
        limits = (
            dataclasses.replace(self.limits, max_silence_share=1.0) if is_trimmed else self.limits
        )
        fault = (
            check_header(decoded, self.limits)
            or check_samples(stored, sample_rate_hz, limits)
            or check_text(utterance.text, decoded.duration_s, self.limits)
        )
        if fault:
            return Outcome(fault)
        content = samples_hash(stored, sample_rate_hz)
        if self.audio_dir is None:
            return Outcome(files=(self._original(utterance, decoded.duration_s, content),))
        processed = process(to_float(stored), sample_rate_hz, self.processing)
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
            speaker = (
                None if utterance.speaker is None else utterance.speaker + variant.speaker_suffix
            )
            files.append(
                self._written(variant.id, variant.samples, speaker, f"{content}{variant.id}")
            )
        return Outcome(files=tuple(files))

    def _original(
        self, utterance: Utterance, duration_s: float | None, content: str | None
    ) -> File:
        return File(utterance.id, str(utterance.audio), utterance.speaker, duration_s, content)

    def _written(self, id_: str, samples: np.ndarray, speaker: str | None, content: str) -> File:
        path = self.path_of(id_)
        buffer = io.BytesIO()  # libsndfile writes to a file in many small pieces
        sf.write(buffer, to_pcm16(samples), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        encoded = buffer.getbuffer()
        with replace_when_done(path, synced=False) as temporary:
            try:
                temporary.write_bytes(encoded)
            except OSError as error:
                reason = f"cannot be written ({error.strerror})"
                raise problem(
                    source="--audio_output",
                    field="path",
                    value=str(path),
                    reason=reason,
                    remedy="is the disk full? mend that",
                ) from None
        duration_s = round(len(samples) / SAMPLE_RATE_HZ, 6)
        bytes_hash = _bytes_hash(encoded)
        return File(id_, str(path), speaker, duration_s, content, len(encoded), bytes_hash)


def _bytes_hash(content: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def edge_hash(path: Path) -> str:
    """Of the size, beginning and end of a file: different for different recordings, but not always
    only for them."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        head, tail = (
            os.pread(file, _EDGE_BYTES, start) for start in (0, max(0, size - _EDGE_BYTES))
        )
    finally:
        os.close(file)
    return hashlib.sha256(f"{size}:".encode() + head + tail).hexdigest()


def is_same_recording(a: File, b: File, level: Level) -> bool:
    """For two files of the same `content`. In header mode that says no more than that they should
    be compared."""
    return level == "full" or file_hash(a.audio) == file_hash(b.audio)


def _file_name(id_: str) -> str:
    """A name below the output folder for any id: `a/b.wav` -> `a/b`; what a file system may not
    take is replaced."""
    stem = re.sub(r"\.(wav|flac|mp3|ogg|opus)(?=-|$)", "", id_, flags=re.IGNORECASE)
    safe = "/".join(
        re.sub(r"[^\w.-]", "_", part).lstrip(".") or "_" for part in stem.split("/") if part
    )[:150]
    # Two ids that become one name must not become one file.
    return safe if safe == id_ else f"{safe}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"
