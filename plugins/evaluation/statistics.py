"""Scores of items -> means with 95 % intervals, and paired differences (L3). numpy only.

Every mean is a ratio of sums, so that pooled rates (errors per word) and plain means are one thing.
Intervals are percentiles of a bootstrap over items (Efron and Tibshirani 1993, chapter 13; for word
error rates Bisani and Ney, ICASSP 2004): what another draw of test items could have given. They
know nothing of other seeds of speaking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_DRAWN_AT_ONCE = 1 << 20  # indices, 8 MB
_SEED = 0  # the same scores give the same interval

Score = tuple[float, float]  # of one item: value and weight


@dataclass(frozen=True)
class Estimate:
    """A mean over `items`, and what 95 % of resamples lie between; no interval for a single
    item."""

    mean: float
    low: float | None
    high: float | None
    items: int


def estimate(scores: Sequence[Score | None]) -> Estimate | None:
    """The weighted mean over the items that have a score; None if none has."""
    return _estimate([_columns(scores, [score is not None for score in scores])])


def difference(first: Sequence[Score | None], second: Sequence[Score | None]) -> Estimate | None:
    """Mean of `first` minus mean of `second` over the items (by position) that have both, resampled
    together: what makes an item hard for both cancels out."""
    both = [a is not None and b is not None for a, b in zip(first, second, strict=True)]
    return _estimate([_columns(first, both), _columns(second, both)])


def _columns(scores: Sequence[Score | None], kept: Sequence[bool]) -> np.ndarray:
    """value * weight and weight of the items that are kept, (2, items)."""
    pairs = [score for score, keep in zip(scores, kept, strict=True) if keep and score is not None]
    assert all(weight > 0 for _, weight in pairs), pairs
    return (
        np.array([(value * weight, weight) for value, weight in pairs], dtype=np.float64)
        .reshape(-1, 2)
        .T
    )


def _estimate(systems: list[np.ndarray]) -> Estimate | None:
    num_items = systems[0].shape[1]
    if num_items == 0:
        return None
    mean = float(_mean(systems, np.arange(num_items)))
    if num_items == 1:
        return Estimate(mean, None, None, 1)
    random = np.random.default_rng(_SEED)
    rows = max(1, _DRAWN_AT_ONCE // num_items)
    drawn = [
        _mean(systems, random.integers(num_items, size=(min(rows, RESAMPLES - start), num_items)))
        for start in range(0, RESAMPLES, rows)
    ]
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return Estimate(mean, float(low), float(high), num_items)


def _mean(systems: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Of the items `chosen`, indices (..., items); the first system's minus the second's if there
    are two."""
    means = [
        values[chosen].sum(axis=-1) / weights[chosen].sum(axis=-1) for values, weights in systems
    ]
    return means[0] - means[1] if len(means) == 2 else means[0]
