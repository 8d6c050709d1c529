"""Logits of one step -> the next frames of codes. L1.

The delay pattern is not drawn but known: `plugins.speaking.decoding` writes over what it leaves no
choice of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.errors import problem


@dataclass(frozen=True)
class Sampling:
    """How the next codes are drawn. Defaults: Boson's own examples. `temperature` 0 is greedy.

    Repetition-aware sampling (VALL-E 2, arXiv 2406.05370): a code that already stands
    `ras_max_repeats` times among the last `ras_window` frames of its codebook is drawn again
    without temperature. 0 is off; greedy never uses it. seed: the same seed gives the same speech,
    alone or in a batch; None: from torch's global state."""

    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95
    ras_window: int = 7
    ras_max_repeats: int = 2
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise problem(
                source="sampling",
                field="temperature",
                value=self.temperature,
                reason="is negative",
                remedy="give 0 (greedy) or more",
            )
        if not 0 < self.top_p <= 1:
            raise problem(
                source="sampling",
                field="top_p",
                value=self.top_p,
                reason="is outside (0, 1]",
                remedy="give 1 to switch it off",
            )
        if self.top_k < 1:
            raise problem(
                source="sampling",
                field="top_k",
                value=self.top_k,
                reason="is below 1",
                remedy="give the number of codes to draw from",
            )


class Sampler:
    """Draws the next frames of a batch, each row by its own `Sampling` and with random numbers of
    its own.

    All random numbers are drawn beforehand, two per step and codebook, on the CPU: a row's depend
    on its seed alone, not on the device, the other rows or `num_steps`, and drawing is a function
    of tensors."""

    def __init__(
        self,
        samplings: Sequence[Sampling],
        num_steps: int,
        num_codebooks: int,
        device: torch.device | str,
    ) -> None:
        uniform = [_uniform(sampling.seed, num_steps, num_codebooks) for sampling in samplings]
        values = [
            (s.temperature, s.top_k, s.top_p, s.ras_window, s.ras_max_repeats or s.ras_window + 1)
            for s in samplings
        ]
        self._uniform = torch.stack(uniform).to(device)  # (R, steps, K, 2)
        self._values = torch.tensor(values, dtype=torch.float32, device=device)  # (R, 5)
        self._only_greedy = not any(s.temperature for s in samplings)
        self._max_candidates = max(s.top_k for s in samplings)
        self.window = max(s.ras_window for s in samplings) or 1

    def keep(self, rows: Tensor) -> None:
        """Let all rows but these go. rows: (R,) long."""
        self._uniform, self._values = self._uniform[rows], self._values[rows]

    def draw(self, logits: Tensor, recent: Tensor, step: Tensor) -> Tensor:
        """logits (R, K, C) float32, recent (R, window, K): the rows' last frames, specials as -1;
        step (1,) -> codes (R, K) int64."""
        greedy = logits.argmax(dim=-1)
        if self._only_greedy:
            return greedy
        temperature, top_k, top_p, ras_window, max_repeats = self._values[:, :, None, None].unbind(
            1
        )  # (R, 1, 1) each
        is_greedy = temperature == 0
        uniform = self._uniform.index_select(1, step).squeeze(1)
        # As transformers' warpers do it: temperature, the top k, and of them the least that hold
        # top_p.
        scores = logits / temperature.masked_fill(is_greedy, 1.0)
        scores, candidates = scores.topk(min(self._max_candidates, logits.shape[-1]), dim=-1)
        ranks = torch.arange(scores.shape[-1], device=logits.device)
        chances = scores.masked_fill(ranks >= top_k, -torch.inf).softmax(dim=-1)
        above = chances.cumsum(dim=-1) - chances
        chances = chances.masked_fill((above >= top_p) & (ranks > 0), 0.0)
        drawn = candidates.gather(-1, _quantile(chances, uniform[..., 0])).squeeze(-1)
        ages = torch.arange(recent.shape[1], 0, -1, device=logits.device)[None, :, None]
        repeats = ((recent == drawn[:, None]) & (ages <= ras_window)).sum(dim=1)
        again = _quantile(logits.softmax(dim=-1), uniform[..., 1]).squeeze(-1)
        drawn = torch.where(repeats < max_repeats[..., 0], drawn, again)
        return torch.where(is_greedy[..., 0], greedy, drawn)


def _uniform(seed: int | None, num_steps: int, num_codebooks: int) -> Tensor:
    generator = torch.Generator().manual_seed(
        int(torch.randint(2**62, ())) if seed is None else seed
    )
    return torch.rand(num_steps, num_codebooks, 2, generator=generator)


def _quantile(chances: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the distribution function: chances (R, K, n), uniform (R, K) in [0, 1) -> indices
    (R, K, 1)."""
    below = chances.cumsum(dim=-1)
    whole = below[..., -1:]
    # The second condition: rounding may put the product at the very end, behind indices that have
    # no chance.
    return ((below <= uniform[..., None] * whole) & (below < whole)).sum(dim=-1, keepdim=True)
