"""Logits of one step -> the next frame of codes. L1.

The delay pattern is not drawn but known: `plugins.decoding` writes over what it leaves no choice of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from plugins.errors import problem


@dataclass(frozen=True)
class Sampling:
    """How the next codes are drawn. Defaults: Boson's own examples. `temperature` 0 is greedy.

    Repetition-aware sampling (VALL-E 2, arXiv 2406.05370): a code that already stands `ras_max_repeats` times among the
    last `ras_window` frames of its codebook is drawn again without temperature. 0 is off; greedy never uses it.
    seed: the same seed gives the same speech, alone or in a batch; None: from torch's global state.
    """

    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95
    ras_window: int = 7
    ras_max_repeats: int = 2
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise problem("sampling", "temperature", self.temperature, "is negative", "give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise problem("sampling", "top_p", self.top_p, "is outside (0, 1]", "give 1 to switch it off")
        if self.top_k < 1:
            raise problem("sampling", "top_k", self.top_k, "is below 1", "give the number of codes to draw from")


class Sampler:
    """Draws the frames of one row, with random numbers of its own."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device)
        self._generator.manual_seed(int(torch.randint(2**62, ())) if sampling.seed is None else sampling.seed)
        self._warpers = (
            [
                TemperatureLogitsWarper(float(sampling.temperature)),
                TopKLogitsWarper(sampling.top_k),
                *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
            ]
            if sampling.temperature
            else []
        )

    def draw(self, logits: Tensor, recent: Tensor) -> Tensor:
        """logits (K, C) float32, recent (W, K): the row's last frames, specials as -1 -> codes (K,) int64."""
        if not self._warpers:
            return logits.argmax(dim=-1)
        scores = logits
        for warp in self._warpers:
            scores = warp(None, scores)
        codes = self._multinomial(scores)
        if not (self._sampling.ras_window and self._sampling.ras_max_repeats):
            return codes
        repeats = (recent[-self._sampling.ras_window :] == codes).sum(dim=0)
        return torch.where(repeats < self._sampling.ras_max_repeats, codes, self._multinomial(logits))

    def _multinomial(self, scores: Tensor) -> Tensor:
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator).squeeze(-1)
