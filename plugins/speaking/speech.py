"""What was said: waveforms (N,) and their codes (K, F), joined, saved. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.audio import waveforms as audio

_SILENT = 10 ** (-50 / 20)  # 50 dB below full scale: breath is louder, the noise of a codec is not
_KEPT_S = 0.05  # of the silence at a joint, so that no consonant is cut


@dataclass(frozen=True)
class Speech:
    """`result["audio"]` works like `result.audio`."""

    audio: np.ndarray  # (N,) float32 in [-1, 1]
    sample_rate: int  # Hz
    codes: Tensor  # (K, F) int64
    stopped: bool  # the model ended by itself; False: it was cut at `max_audio_s`
    text: str
    took_s: float  # wall time, of the whole batch if it was spoken in one

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

    def save(self, path: str | Path) -> None:
        """Write a 16-bit WAV file."""
        audio.save_wav(path, self.audio, self.sample_rate)


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
