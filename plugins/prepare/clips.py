"""One utterance -> the clips that it gives, or why it is unfit.

In: `Utterance`. Out: `Outcome`, plain values that travel between processes and into the journal. A
pure function of the utterance, its file and `Work`: the same on every worker, machine and run.
Knows neither rows nor splits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from plugins import __version__
from plugins.audio.waveforms import (
    SAMPLE_RATE_HZ,
    AudioError,
    AudioInfo,
    Source,
    flac_of,
    to_float,
)
from plugins.corpora import Utterance
from plugins.errors import problem
from plugins.files.disk import replace_when_done
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
# At either end of a file: enough to tell recordings apart without reading the whole.
_EDGE_BYTES = 4096
_MAX_NAME = 150  # bytes; file systems take 255, and copies have a suffix


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
            # No need to read those that were cut off.
            if os.stat(self.audio).st_size != self.num_bytes:
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
        # `asdict` takes ten times as long as `vars`.
        return {"fault": self.fault, "files": list(map(vars, self.files))}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        files = tuple(File(**file) for file in values["files"])
        if values["fault"] is None:
            return cls(files=files)
        reason, value = values["fault"]
        return cls((reason, value), files)


@dataclass(frozen=True)
class Work:
    """What is done with each utterance.

    level: `none` opens no audio, `header` reads headers, `full` decodes every sample. audio_dir:
    where processed recordings go; None: nothing is processed and the originals are used. Files are
    whole when a call returns, but on the disk only after `plugins.files.disk.sync`."""

    level: Level = "none"
    limits: Limits = Limits()
    processing: Processing = Processing()
    audio_dir: Path | None = None
    seed: int = 42

    def key(self, utterance: Utterance) -> str:
        """Of everything that the outcome depends on: an outcome in the journal under this key is
        still true."""
        row = (utterance.id, utterance.text, utterance.speaker)
        recording: tuple[Any, ...] = (str(utterance.audio),)
        # One that has vanished since it was listed is found out when it is its turn.
        with suppress(OSError):
            status = os.stat(utterance.audio)
            recording += (status.st_size, status.st_mtime_ns)
        turns = map(self.key, utterance.turns)
        parts = [*row, *recording, *turns, self._repr, __version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def path_of(self, id_: str) -> Path:
        """Where the processed recording of that id goes."""
        assert self.audio_dir is not None
        return self.audio_dir / f"{file_name(id_)}.flac"

    @functools.cached_property
    def _repr(self) -> str:
        return repr(self)

    def __call__(self, utterance: Utterance) -> Outcome:
        if utterance.turns:
            return self._dialogue(utterance)
        try:
            return self._do(utterance)
        except AudioError as error:
            return Outcome((error.reason, str(utterance.audio)))

    def _dialogue(self, utterance: Utterance) -> Outcome:
        """A file per turn, each done as a clip alone; or the first fault of one."""
        files = []
        # Copies at another speed are for clips that may stand alone.
        processing = dataclasses.replace(self.processing, speed_factors=(), noise_snr_db=())
        work = dataclasses.replace(self, processing=processing)
        for turn in utterance.turns:
            outcome = work(turn)
            if outcome.fault is not None:
                reason, value = outcome.fault
                # A number does not tell whose it is.
                if not isinstance(value, str):
                    value = f"{value:g} ({turn.audio.name})"
                return Outcome((reason, value))
            # The same clip may be part of many dialogues, and of none but it a duplicate.
            files.append(dataclasses.replace(outcome.files[0], content=None))
        return Outcome(files=tuple(files))

    def _do(self, utterance: Utterance) -> Outcome:
        if fault := check_text(utterance.text, None, self.limits):
            return Outcome(fault)
        num_bytes = _size(utterance.audio)
        if self.level == "none" and self.audio_dir is None:
            return _original(utterance, None, None)
        # From the cheapest question to the dearest: a file of hours is refused before a sample of
        # it is read.
        if fault := check_file_size(num_bytes, self.limits):
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
        return _original(utterance, info.duration_s, edge_hash(utterance.audio))

    def _decoded(self, utterance: Utterance, stored: np.ndarray, sample_rate_hz: int) -> Outcome:
        """stored: (N, channels), int16 or float32, as the file has them."""
        if not len(stored):
            remedy = "export the file again or leave it out"
            raise AudioError(utterance.audio, "holds no samples", remedy)
        limits = self.limits
        if self.audio_dir is not None and self.processing.trim != "none":
            # Trimming is the remedy for silence; what it leaves is judged again below.
            limits = dataclasses.replace(limits, max_silence_share=1.0)
        if fault := _fault(stored, sample_rate_hz, utterance.text, limits):
            return Outcome(fault)
        content = samples_hash(stored, sample_rate_hz)
        if self.audio_dir is None:
            return _original(utterance, len(stored) / sample_rate_hz, content)
        processed = process(to_float(stored), sample_rate_hz, self.processing)
        if not len(processed):
            return Outcome(("no speech found", str(utterance.audio)))
        if fault := _fault(processed, SAMPLE_RATE_HZ, utterance.text, self.limits):
            return Outcome((f"after processing: {fault[0]}", fault[1]))
        files = [self._written(utterance.id, processed, utterance.speaker, content)]
        for variant in variants(processed, utterance.id, self.processing, seed=self.seed):
            if check_header(AudioInfo(len(variant.samples), SAMPLE_RATE_HZ, 1), self.limits):
                continue  # slower than the longest clip
            speaker = utterance.speaker
            if speaker is not None:
                speaker += variant.speaker_suffix
            content_of_copy = f"{content}{variant.id}"  # nobody else's: a copy has no twin
            files.append(self._written(variant.id, variant.samples, speaker, content_of_copy))
        return Outcome(files=tuple(files))

    def _written(self, id_: str, samples: np.ndarray, speaker: str | None, content: str) -> File:
        path = self.path_of(id_)
        encoded = flac_of(samples, SAMPLE_RATE_HZ)
        with replace_when_done(path, synced=False) as temporary:
            try:
                temporary.write_bytes(encoded)
            except OSError as error:
                raise problem(
                    source="--audio_output",
                    field="path",
                    value=str(path),
                    reason=f"cannot be written ({error.strerror})",
                    remedy="is the disk full? mend that",
                ) from None
        duration_s = round(len(samples) / SAMPLE_RATE_HZ, 6)
        bytes_hash = _bytes_hash(encoded)
        return File(id_, str(path), speaker, duration_s, content, len(encoded), bytes_hash)


def _size(audio: Path) -> int:
    """In bytes. Raises `AudioError` for a file that has vanished, or its disk with it."""
    try:
        return os.stat(audio).st_size
    except FileNotFoundError:
        raise AudioError(audio, "not found", "mend the path") from None
    except OSError as error:
        reason = f"may not be read ({error.strerror})"
        raise AudioError(audio, reason, "mend the disk or its permissions") from None


def _original(utterance: Utterance, duration_s: float | None, content: str | None) -> Outcome:
    file = File(utterance.id, str(utterance.audio), utterance.speaker, duration_s, content)
    return Outcome(files=(file,))


def _fault(samples: np.ndarray, sample_rate_hz: int, text: str, limits: Limits) -> Fault | None:
    """What is wrong with decoded `samples`, (N,) or (N, channels), or with their `text`."""
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    info = AudioInfo(len(samples), sample_rate_hz, num_channels)
    return (
        check_header(info, limits)
        or check_samples(samples, sample_rate_hz, limits)
        or check_text(text, info.duration_s, limits)
    )


def _bytes_hash(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def edge_hash(path: Path) -> str:
    """Of the size, beginning and end of a file: different for different recordings, but not always
    only for them. Raises `AudioError` for a file that has vanished."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = os.pread(file.fileno(), _EDGE_BYTES, 0)
            tail = os.pread(file.fileno(), _EDGE_BYTES, max(0, size - _EDGE_BYTES))
    except OSError as error:
        reason = f"may not be read ({error.strerror})"
        raise AudioError(path, reason, "mend the disk or its permissions") from None
    return hashlib.sha256(f"{size}:".encode() + head + tail).hexdigest()


def file_name(id_: str) -> str:
    """A name below the output folder for any id: `a/b.wav` -> `a/b`; what a file system may not
    take is replaced."""
    stem = re.sub(r"\.(wav|flac|mp3|ogg|opus)(?=-|$)", "", id_, flags=re.IGNORECASE)
    parts = []
    for part in filter(None, stem.split("/")):
        # Without dots in front: neither hidden nor a way out of the folder.
        parts.append(re.sub(r"[^\w.-]", "_", part).lstrip(".") or "_")
    # A letter may be of four bytes: what is left of it after the cut is dropped.
    safe = "/".join(parts).encode()[:_MAX_NAME].decode(errors="ignore")
    if safe == id_:
        return safe
    # Two ids that become one name must not become one file.
    return f"{safe}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"
