"""What was said: waveforms (N,) and their codes (K, F), joined, saved. Knows no model."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from plugins.audio import marks
from plugins.audio.marks import Mark
from plugins.errors import UserError, problem
from plugins.files import disk
from plugins.hearing.takes import Take

# What can be written: suffix -> container and encoding, as libsndfile calls them.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_SILENT = 10 ** (-50 / 20)  # 50 dB below full scale: breath is louder, the noise of a codec is not
_KEPT_S = 0.05  # of the silence at a joint, so that no consonant is cut


@dataclass(frozen=True, repr=False)
class Speech:
    """`result["audio"]` works like `result.audio`."""

    audio: np.ndarray  # (N,) float32 in [-1, 1]
    sample_rate: int  # Hz
    codes: Tensor  # (K, F) int64
    stopped: bool  # the model ended by itself; False: it was cut at `max_audio_s`
    text: str
    took_s: float  # wall time, of the whole batch if it was spoken in one
    # With `best_of`: what was heard in each take of it, in the order of their seeds; of a speech in
    # several pieces those of the first come first.
    takes: tuple[Take, ...] = ()
    mark: Mark | None = None  # what its files say of it, beside the samples

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def truncated(self) -> bool:
        return not self.stopped

    @property
    def duration_s(self) -> float:
        return len(self.audio) / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of speech: below 1 is faster than listening."""
        return self.took_s / self.duration_s

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        end = "truncated" if self.truncated else "stopped by itself"
        return f"Speech({self.duration_s:.2f} s at {self.sample_rate} Hz, {end}, text={text!r})"

    def save(self, path: str | Path) -> None:
        """Write what the suffix of `path` says: .wav (16 bit; also without a suffix), .flac, .ogg
        or .mp3. The parent folder is made, the file appears whole.

        Raises UserError for another suffix, and if it cannot be written."""
        suffix = suffix_of(path)
        try:
            with disk.replace_when_done(path) as temporary:
                self.write(temporary, suffix)
        except (OSError, sf.SoundFileError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise _unwritten(path, f"cannot be written ({reason})", "name another place") from None

    def write(self, file: Any, suffix: str = ".wav") -> None:
        """Into a path of any name, or an open binary file."""
        container, encoding = FORMATS[suffix]
        options = {"container": container, "encoding": encoding}
        marks.write(file, self.audio, self.sample_rate, self.mark, **options)

    def wav(self) -> bytes:
        """A WAV file."""
        file = io.BytesIO()
        self.write(file)
        return file.getvalue()


def suffix_of(path: str | Path) -> str:
    """The key of `FORMATS` for a file of this name. Raises UserError if there is none."""
    suffix = Path(path).suffix.lower() or ".wav"
    if suffix not in FORMATS:
        remedy = f"end it in {', '.join(FORMATS)}"
        raise _unwritten(path, "is no format that speech is written in", remedy)
    return suffix


def _unwritten(path: str | Path, reason: str, remedy: str) -> UserError:
    return problem(source="speech", field="output", value=str(path), reason=reason, remedy=remedy)


def join(parts: Sequence[Speech], *, pause_s: float = 0.0, trim: bool = False) -> Speech:
    """One speech of several, with `pause_s` of silence between them; the codes have no pause.

    trim: without the silence that the parts bring along to the joints.
    """
    if len(parts) == 1:
        return parts[0]
    rate = parts[0].sample_rate
    waveforms = [part.audio for part in parts]
    if trim:
        # Its first sound and its last one stay where they are in the whole.
        last = len(parts) - 1
        for i, wave in enumerate(waveforms):
            waveforms[i] = _trimmed(wave, rate, start=i > 0, end=i < last)
    pause = np.zeros(round(pause_s * rate), dtype=np.float32)
    pieces = [waveforms[0]]
    for wave in waveforms[1:]:
        pieces += (pause, wave)
    return Speech(
        audio=np.concatenate(pieces),
        sample_rate=rate,
        codes=torch.cat([part.codes for part in parts], dim=1),
        stopped=all(part.stopped for part in parts),
        text=" ".join(part.text for part in parts),
        took_s=sum(part.took_s for part in parts),
        takes=tuple(chain.from_iterable(part.takes for part in parts)),
        mark=parts[0].mark,
    )


class SpeechStream:
    """Pieces of one speech (N,) float32 as they are spoken; when they have all been taken, `speech`
    is the whole."""

    def __init__(self, pieces: Iterator[np.ndarray | Speech], sample_rate: int) -> None:
        self._pieces = pieces
        self._speech: Speech | None = None
        self.sample_rate = sample_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self._pieces:
            # The last one is the whole.
            if isinstance(piece, Speech):
                self._speech = piece
            else:
                yield piece

    @property
    def speech(self) -> Speech:
        assert self._speech is not None, "the stream has not been taken to its end"
        return self._speech


def _trimmed(samples: np.ndarray, rate: int, *, start: bool, end: bool) -> np.ndarray:
    """`samples` without silence at their start and end, as asked; as they are if all is silent."""
    loud = np.flatnonzero(np.abs(samples) > _SILENT)
    if not len(loud):
        return samples
    kept = round(_KEPT_S * rate)
    first, stop = 0, len(samples)
    if start:
        first = max(0, loud[0] - kept)
    if end:
        stop = loud[-1] + 1 + kept
    return samples[first:stop]
