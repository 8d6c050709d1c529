"""Scores of items -> means with 95 % intervals, and paired differences. numpy only.

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
    """A mean over `items`, and what 95 % of resamples lie between; none for a single item."""

    mean: float
    low: float | None
    high: float | None
    items: int


def estimate(scores: Sequence[Score | None]) -> Estimate | None:
    """The weighted mean over the items that have a score; None if none has."""
    return _estimate([_sums([score for score in scores if score is not None])])


def difference(first: Sequence[Score | None], second: Sequence[Score | None]) -> Estimate | None:
    """Mean of `first` minus mean of `second` over the items (by position) that have both, resampled
    together: what makes an item hard for both cancels out."""
    ours, theirs = [], []
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            ours.append(a)
            theirs.append(b)
    return _estimate([_sums(ours), _sums(theirs)])


def _sums(scores: Sequence[Score]) -> np.ndarray:
    """value * weight and weight of each item, (2, items)."""
    # Of no scores numpy makes one axis.
    values, weights = np.array(scores, dtype=np.float64).reshape(-1, 2).T
    assert (weights > 0).all(), scores
    return np.stack([values * weights, weights])


def _estimate(systems: list[np.ndarray]) -> Estimate | None:
    num_items = systems[0].shape[1]  # the same of both: what only one has said is out
    if num_items == 0:
        return None
    mean = float(_mean(systems, np.arange(num_items)))
    if num_items == 1:
        return Estimate(mean, None, None, 1)
    random = np.random.default_rng(_SEED)
    rows = max(1, _DRAWN_AT_ONCE // num_items)
    means = []
    # In parts: the indices of all resamples of many items would fill the memory.
    for start in range(0, RESAMPLES, rows):
        drawn = random.integers(num_items, size=(min(rows, RESAMPLES - start), num_items))
        means.append(_mean(systems, drawn))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(mean, float(low), float(high), num_items)


def _mean(systems: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Of the items `chosen`, indices (..., items); the first system's minus the second's if there
    are two."""
    means = []
    # Both by the same drawn items, which is what pairs them.
    for values, weights in systems:
        means.append(values[chosen].sum(axis=-1) / weights[chosen].sum(axis=-1))
    return means[0] - means[1] if len(means) == 2 else means[0]
