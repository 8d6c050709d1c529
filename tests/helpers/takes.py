"""Somebody who hears takes without the weights of a recogniser."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from plugins.hearing.takes import Judge, Take


class Ears(Judge):
    """What it hears depends on the samples alone: wrong words 0, 0.1 ... 0.4, and some voice. It
    takes each for one that stopped, as the tiny model never does, unless `stopped` says no."""

    def __init__(self, *, stopped: bool = True) -> None:
        super().__init__([])
        self.stopped = stopped
        self.asked: list[tuple[str, str | None]] = []  # text and reference of each take

    @property
    def identity(self) -> list[str]:
        return ["en", "ears 1"]

    def hear(self, text: str, samples: np.ndarray, rate_hz: int, **about: Any) -> Take:
        self.asked.append((text, about["reference"]))
        digest = hashlib.sha256(samples.tobytes()).digest()
        duration_s = len(samples) / rate_hz
        wer, similarity = digest[0] % 5 / 10, digest[1] / 256
        return Take(about["seed"], self.stopped, duration_s, wer, similarity, "heard")
