"""Logits of one step (R, K, C) -> the next frames of codes (R, K).

The delay pattern is not drawn but known: `plugins.speaking.decoding` writes over what it leaves no
choice of. This file knows neither the model nor which rows go on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from plugins.errors import UserError, problem

SEEDS = (-(2**63), 2**64 - 1)  # the least and the greatest that torch takes
_MAX_WINDOW = 10_000  # frames, more than a prompt can have
_MAX_TAKES = 1000
_MAX_SEED = 2**48  # of those that are drawn, or made of another: every generator takes them


@dataclass(frozen=True)
class Sampling:
    """How the next codes are drawn. Defaults: Boson's own examples. `temperature` 0 is greedy.

    Repetition-aware sampling (VALL-E 2, arXiv 2406.05370): a code that already stands
    `ras_max_repeats` times among the last `ras_window` frames of its codebook is drawn again
    without temperature. 0 is off; greedy never uses it. seed: the same seed draws with the same
    random numbers, alone or in a batch (docs/guarantees.md says where that is the same speech);
    None: from torch's global state.

    best_of: of that many takes, each with a seed of its own, the best is kept
    (`plugins.hearing.takes`); the first has `seed` itself."""

    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95
    ras_window: int = 7
    ras_max_repeats: int = 2
    seed: int | None = None
    # Not in `repr`, which journals of before it was there hold.
    best_of: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        if not _is_real(self.temperature):
            raise self._refused("temperature", "is no number", "give 0 (greedy) or more")
        if self.temperature < 0:
            raise self._refused("temperature", "is negative", "give 0 (greedy) or more")
        if not _is_real(self.top_p) or not 0 < self.top_p <= 1:
            raise self._refused("top_p", "is outside (0, 1]", "give 1 to switch it off")
        self._require_whole("top_k", 1, 2**31 - 1, "give the number of codes to draw from")
        self._require_whole("ras_window", 0, _MAX_WINDOW, "give a number of frames")
        self._require_whole("ras_max_repeats", 0, _MAX_WINDOW, "give 0 to switch it off")
        if self.seed is not None:
            self._require_whole("seed", *SEEDS, "give a smaller one, or none")
        self._require_whole("best_of", 1, _MAX_TAKES, "give a number of takes")
        if self.best_of > 1 and self.temperature == 0:
            raise self._refused(
                "best_of", "takes are all the same at temperature 0", "give a temperature, or 1"
            )

    def takes(self) -> list[Sampling]:
        """One for each take; their seeds follow from `seed`, or are drawn."""
        if self.best_of == 1:
            return [self]
        seed = int(torch.randint(_MAX_SEED, ())) if self.seed is None else self.seed
        takes = [replace(self, seed=seed, best_of=1)]
        for number in range(1, self.best_of):
            digest = hashlib.sha256(f"{seed} take {number}".encode()).digest()
            other = int.from_bytes(digest, "big") % _MAX_SEED
            takes.append(replace(self, seed=other, best_of=1))
        return takes

    def _require_whole(self, field: str, least: int, most: int, remedy: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise self._refused(field, "is no whole number", remedy)
        if int(value) < least:
            raise self._refused(field, f"is below {least}", remedy)
        if int(value) > most:
            raise self._refused(field, f"is above {most}", remedy)

    def _refused(self, field: str, reason: str, remedy: str) -> UserError:
        value = getattr(self, field)
        return problem(source="sampling", field=field, value=value, reason=reason, remedy=remedy)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


class Sampler:
    """Draws the next frames of a batch, each row by its own `Sampling` and with random numbers of
    its own.

    All random numbers are drawn beforehand, two per step and codebook, on the CPU: a row's depend
    on its seed alone, not on the device, the other rows or `num_steps`, and drawing is a function
    of tensors: `drawn_codes`, or the same compiled."""

    def __init__(
        self,
        samplings: Sequence[Sampling],
        num_steps: int,
        num_codebooks: int,
        device: torch.device | str,
        *,
        drawn: Callable[..., Tensor] | None = None,
    ) -> None:
        self._drawn = drawn or drawn_codes
        values = []
        uniform = []
        for sampling in samplings:
            # More repeats than a window can hold: off.
            max_repeats = sampling.ras_max_repeats or sampling.ras_window + 1
            limits = (sampling.top_k, sampling.top_p, sampling.ras_window, max_repeats)
            values.append((sampling.temperature, *limits))
            uniform.append(_uniform(sampling.seed, num_steps, num_codebooks))
        self._uniform = torch.stack(uniform).to(device)  # (R, steps, K, 2)
        self._values = torch.tensor(values, dtype=torch.float32, device=device)  # (R, 5)
        # Numbers of the host: shapes and branches of a compiled step may not hang on tensors.
        temperatures, top_ks, _, windows, _ = zip(*values, strict=True)
        self._only_greedy = not any(temperatures)
        # Rounded up, so that requests of almost equal settings share one step.
        self._max_candidates = max(64, round_up(max(top_ks)))
        self.window = max(8, round_up(max(windows)))

    @property
    def kind(self) -> tuple[bool, int]:
        """What the host decides of a draw: steps of one kind do the same work."""
        return self._only_greedy, self._max_candidates

    def join(self, other: Sampler, row: int) -> None:
        """The rows from `row` on draw as those of `other` from now on, out of tensors that stay
        where they are and may hold more rows and steps. Above them nobody speaks."""
        num_rows, num_steps = other._uniform.shape[:2]
        self._uniform[row : row + num_rows, :num_steps] = other._uniform
        self._values[row : row + num_rows] = other._values
        is_greedy, max_candidates = other.kind
        if row:
            is_greedy = is_greedy and self._only_greedy
            max_candidates = max(max_candidates, self._max_candidates)
        self._only_greedy, self._max_candidates = is_greedy, max_candidates

    def keep(self, kept: Callable[[Tensor], Tensor]) -> None:
        """Let rows go: `kept` (R, ...) -> what stays of it."""
        self._uniform, self._values = kept(self._uniform), kept(self._values)

    def draw(self, logits: Tensor, recent: Tensor, step: Tensor) -> Tensor:
        """For the first rows: logits (R, K, C) float32, recent (R, window, K): their last frames,
        specials as -1; step (R,): the number of each row's frame -> codes (R, K) int64."""
        if self._only_greedy:
            return logits.argmax(dim=-1)
        num_rows = len(logits)
        values, uniform = self._values, self._uniform
        if len(values) != num_rows:
            values, uniform = values[:num_rows], uniform[:num_rows]
        steps = step.view(-1, 1, 1, 1).expand(num_rows, 1, *uniform.shape[2:])
        uniform = uniform.gather(1, steps).squeeze(1)  # (R, K, 2)
        return self._drawn(logits, values, uniform, recent, self._max_candidates)


# Of the arguments below: the dimension of rows.
VARYING = {0: (0,), 1: (0,), 2: (0,), 3: (0,)}


def drawn_codes(
    logits: Tensor, values: Tensor, uniform: Tensor, recent: Tensor, max_candidates: int
) -> Tensor:
    """As `Sampler.draw`. values (R, 5): what `Sampling` says; uniform (R, K, 2): random numbers."""
    greedy = logits.argmax(dim=-1)
    values = values[:, :, None, None]  # (R, 5, 1, 1)
    temperature, top_k, top_p, ras_window, max_repeats = values.unbind(dim=1)
    is_greedy = temperature == 0

    scores = logits / temperature.masked_fill(is_greedy, 1.0)
    chances, candidates = _chances(scores, top_k, top_p, max_candidates)
    drawn = candidates.gather(-1, _quantile(chances, uniform[..., 0])).squeeze(-1)

    # A row's own window may be shorter than that of the batch.
    ages = torch.arange(recent.shape[1], 0, -1, device=logits.device)[None, :, None]
    repeats = ((recent == drawn[:, None]) & (ages <= ras_window)).sum(dim=1)
    again = _quantile(logits.softmax(dim=-1), uniform[..., 1]).squeeze(-1)
    drawn = torch.where(repeats < max_repeats[..., 0], drawn, again)
    return torch.where(is_greedy[..., 0], greedy, drawn)


def round_up(number: int) -> int:
    """To a power of two."""
    return 1 << max(number - 1, 0).bit_length()


def _uniform(seed: int | None, num_steps: int, num_codebooks: int) -> Tensor:
    """Random numbers (steps, K, 2) in [0, 1): one to draw with, one to draw again with."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_steps, num_codebooks, 2, generator=generator)


def _chances(
    scores: Tensor, top_k: Tensor, top_p: Tensor, max_candidates: int
) -> tuple[Tensor, Tensor]:
    """As transformers' warpers do it: of the `top_k` best codes the least that hold `top_p`.

    scores (R, K, C) after temperature; top_k, top_p (R, 1, 1) -> chances and codes (R, K, n), the
    likeliest first, where chances of 0 are those of codes that are out."""
    num_codes = scores.shape[-1]
    scores, candidates = scores.topk(min(max_candidates, num_codes), dim=-1)
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    chances = scores.masked_fill(ranks >= top_k, -torch.inf).softmax(dim=-1)
    above = chances.cumsum(dim=-1) - chances
    # The best is always in, though it may hold more than top_p alone.
    return chances.masked_fill((above >= top_p) & (ranks > 0), 0.0), candidates


def _quantile(chances: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the distribution function: chances (R, K, n), which need not add up to 1, uniform
    (R, K) in [0, 1) -> indices (R, K, 1)."""
    below = chances.cumsum(dim=-1)
    whole = below[..., -1:]
    is_passed = below <= uniform[..., None] * whole
    # Rounding may put the product at the very end, behind indices that have no chance.
    return (is_passed & (below < whole)).sum(dim=-1, keepdim=True)
