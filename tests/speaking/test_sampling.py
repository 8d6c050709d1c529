"""How codes are drawn from the logits of one step."""

from __future__ import annotations

import pytest
import torch
from helpers.speaking import GREEDY
from torch import Tensor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from plugins.errors import UserError
from plugins.speaking.sampling import Sampler, Sampling, _quantile


def draw(logits: Tensor, samplings: list[Sampling], recent: Tensor | None = None) -> Tensor:
    """One step of logits (K, C) for rows of these settings -> codes (R, K)."""
    sampler = Sampler(samplings, 1, len(logits), "cpu")
    if recent is None:
        recent = torch.full((7, len(logits)), -1)
    logits = logits.expand(len(samplings), -1, -1)
    recent = recent.expand(len(samplings), -1, -1)
    return sampler.draw(logits, recent, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 1026, 1.0), (0.5, 5, 1.0), (2.0, 1026, 0.6), (0.7, 6, 0.8)],
)
def test_codes_are_drawn_as_often_as_transformers_warpers_say(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scores = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, scores))
    num_rows = 4000
    expected = num_rows * scores.softmax(dim=-1)[0]
    rows = [Sampling(temperature, top_k, top_p, ras_window=0, seed=i) for i in range(num_rows)]
    counts = draw(logits, rows).flatten().bincount(minlength=12).float()
    assert (counts[expected == 0] == 0).all()
    # Five standard deviations of a rare code.
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1e-6).all()


def test_rows_of_one_batch_have_settings_of_their_own() -> None:
    logits = torch.randn(8, 1026, generator=torch.Generator().manual_seed(0))
    hot = Sampling(temperature=2.0, top_k=3, seed=1)
    narrow = Sampling(temperature=0.5, top_p=0.3, seed=2)
    samplings = [GREEDY, hot, narrow, GREEDY]
    together = draw(logits, samplings)
    for row, sampling in zip(together, samplings, strict=True):
        assert torch.equal(row, draw(logits, [sampling])[0])
    assert torch.equal(together[0], logits.argmax(dim=-1))


def test_random_numbers_do_not_hang_on_the_longest_speech() -> None:
    """Else the same seed would say another thing for another `max_audio_s`."""
    short = Sampler([Sampling(seed=3)], 10, 8, "cpu")
    long = Sampler([Sampling(seed=3)], 1009, 8, "cpu")
    assert torch.equal(short._uniform, long._uniform[:, :10])


def test_no_rounding_draws_what_has_no_chance() -> None:
    chances = torch.rand(1000, 1, 50, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    chances[..., 40:] = 0
    index = _quantile(chances, torch.full((1000, 1), 1 - 2**-24))
    assert index.max() == 39


def test_repetitions_are_drawn_again_without_temperature() -> None:
    """Of a code that stands twice among the last seven frames; the others keep what was drawn."""
    logits = torch.zeros(2, 1026)
    logits[:, 5] = 4.0  # certain at temperature 0.01, a few percent without
    recent = torch.full((7, 2), -1)
    recent[2:4, 0] = 5
    drawn = draw(logits, [Sampling(temperature=0.01, seed=seed) for seed in range(50)], recent)
    assert (drawn[:, 1] == 5).all()
    assert (drawn[:, 0] == 5).sum() < 15
    for off in ({"ras_window": 0}, {"ras_max_repeats": 0}):
        assert draw(logits, [Sampling(temperature=0.01, **off)], recent).tolist() == [[5, 5]]
    # A row's own window is shorter than that of its batch.
    own = Sampling(temperature=0.01, ras_window=3, seed=0)
    assert draw(logits, [own, Sampling(seed=0)], recent)[0].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "sampling: temperature: -1 is negative"),
        ({"top_p": 1.5}, r"sampling: top_p: 1\.5 is outside \(0, 1\]"),
        ({"top_k": 0}, "sampling: top_k: 0 is below 1"),
    ],
)
def test_settings_that_draw_nothing_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
