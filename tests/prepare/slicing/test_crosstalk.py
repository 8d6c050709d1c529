"""Of two channels each without the voice that belongs to the other."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.prepare.slicing.crosstalk import Channel, Crosstalk, frame_powers, frame_size

RATE_HZ = 16_000
SIZE = frame_size(RATE_HZ)


def noise(seconds: float, level: float, seed: int) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
    return (level * samples).astype(np.float32)


@pytest.fixture
def both() -> np.ndarray:
    """The left one speaks for a second, then the right one, whose microphone is softer by 20 dB,
    then both. What the other's microphone picks up is 15 dB softer."""
    left, right = noise(3.01, 0.3, 0), noise(3.01, 0.3, 1)
    left[RATE_HZ : 2 * RATE_HZ] = 0
    right[:RATE_HZ] = 0
    crosstalk = np.float32(10 ** (-15 / 20))
    return np.stack([left + crosstalk * right, 0.1 * (right + crosstalk * left)], axis=1)


@pytest.mark.parametrize("piece", [1, 777, RATE_HZ, 10 * RATE_HZ])
def test_crosstalk_is_silent_and_the_own_voice_stays(piece: int, both: np.ndarray) -> None:
    loudness = tuple(np.percentile(frame_powers(both, SIZE), 99.5, axis=0))
    for index, (own, others) in enumerate(((0, 1), (1, 0))):
        without = Crosstalk(Channel(index, loudness), RATE_HZ)
        pieces = [without(both[i : i + piece]) for i in range(0, len(both), piece)]
        heard = np.concatenate([*pieces, without(both[:0], last=True)])
        assert len(heard) == len(both)
        begin, end = others * RATE_HZ, (others + 1) * RATE_HZ
        assert not heard[begin:end].any()
        begin, end = own * RATE_HZ, (own + 1) * RATE_HZ
        assert np.array_equal(heard[begin:end], both[begin:end, index])
        assert np.array_equal(heard[2 * RATE_HZ :], both[2 * RATE_HZ :, index]), "both speak"


def test_silence_is_silence() -> None:
    without = Crosstalk(Channel(0, (0.0, 0.0)), RATE_HZ)
    assert not without(np.zeros((RATE_HZ, 2), np.float32), last=True).any()
    assert not len(without(np.zeros((0, 2), np.float32), last=True))
