"""Both channels of a conversation -> one of them, without the voice that belongs to the other.

In: (n, 2) float32, piece by piece. Out: (m,) of one channel, silent where the other one is much
louder: there its microphone has picked up the other speaker, whom a recogniser would write down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRAME_S = 0.05
_MUCH_LOUDER = 10 ** (9 / 10)  # of power; whoever speaks at the same time is not that much softer


@dataclass(frozen=True)
class Channel:
    """One of the two channels of a recording."""

    index: int
    loudness: tuple[float, float]  # the power of loud speech in each: microphones differ


class Crosstalk:
    """Takes it out of a `Channel`. Pieces of the output need not end where those of the input
    do."""

    def __init__(self, channel: Channel, sample_rate_hz: int) -> None:
        self._own = channel.index
        self._loudness = np.maximum(channel.loudness, 1e-10)
        self._size = frame_size(sample_rate_hz)
        self._rest = np.zeros((0, 2), np.float32)

    def __call__(self, both: np.ndarray, *, last: bool = False) -> np.ndarray:
        both = np.concatenate([self._rest, both])
        length = len(both) if last else len(both) // self._size * self._size
        both, self._rest = both[:length], both[length:]
        power = frame_powers(both, self._size) / self._loudness
        is_others = power[:, self._own] * _MUCH_LOUDER < power[:, 1 - self._own]
        own = both[:, self._own].copy()
        own[np.repeat(is_others, self._size)[:length]] = 0
        return own


def frame_size(sample_rate_hz: int) -> int:
    return round(FRAME_S * sample_rate_hz)


def frame_powers(samples: np.ndarray, size: int) -> np.ndarray:
    """Of (n, channels) samples: (frames, channels) float64; the last frame may be shorter."""
    starts = np.arange(0, len(samples), size)
    if not len(starts):
        return np.zeros((0, samples.shape[1]))
    sums = np.add.reduceat(np.square(samples, dtype=np.float64), starts, axis=0)
    return np.asarray(sums / size)
