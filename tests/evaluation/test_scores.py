"""Scores by hand: texts, errors, means with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.data.dialogue import Dialogue, Turn
from plugins.evaluation.items import Item
from plugins.evaluation.run import Clip
from plugins.evaluation.scores import METRICS, column, score
from plugins.evaluation.statistics import Estimate, Score, difference, estimate
from plugins.hearing.text import (
    character_errors,
    seed_style,
    whisper_style,
    word_errors,
    words_to_say,
)

BY_NAME = {metric.name: metric for metric in METRICS}

# --- texts ---


def test_whisper_style_makes_spellings_of_one_sentence_one() -> None:
    pytest.importorskip("whisper_normalizer")
    written = whisper_style("Mr. Smith's colour isn't   20!", "en")
    assert written == whisper_style("mister smith's color is not twenty", "en")
    assert whisper_style("Grüß Gott, Welt!", "de") == "grüß gott welt"
    assert whisper_style("你好，世界", "zh") == "你 好 世 界"


def test_seed_style_keeps_apostrophes_and_numbers() -> None:
    assert seed_style("Don't — pay  $20, “ever”!", "en") == "don't pay 20 ever"
    assert seed_style("你好， 世界。", "zh") == "你 好 世 界"


def test_errors_are_counted() -> None:
    pytest.importorskip("jiwer")
    assert word_errors("a b c d", "a x c") == (2, 4), "one substituted, one deleted"
    assert word_errors("a b", "a b c d e") == (3, 2), "insertions too, beyond 100 %"
    assert word_errors("", "a") == (1, 0)
    assert character_errors("ab c", "abd") == (1, 3)
    assert words_to_say("[SPEAKER0] Ha. <SE>[Laughter]</SE>  Yes") == "Ha. Yes"


# --- statistics ---


def test_means_are_ratios_of_sums_and_skip_what_is_not_there() -> None:
    # Of two items the resamples are both ends and the middle.
    assert estimate([(0.5, 2.0), None, (0.0, 8.0)]) == Estimate(0.1, 0.0, 0.5, items=2)
    assert estimate([None]) is None
    assert estimate([(3.0, 1.0)]) == Estimate(3.0, None, None, items=1)


def _scores(values: np.ndarray) -> list[Score]:
    return [(float(value), 1.0) for value in values]


def _estimate(values: np.ndarray) -> tuple[float, float, float, int]:
    result = estimate(_scores(values))
    assert result is not None
    assert result.low is not None
    assert result.high is not None
    return result.mean, result.low, result.high, result.items


def test_intervals_are_those_of_the_normal_distribution_for_many_items() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    _, low, high, _ = _estimate(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.015)
    assert high == pytest.approx(values.mean() + half, abs=0.015)
    assert (low, high) == _estimate(values)[1:3], "the same draws every time"


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    random = np.random.default_rng(2)
    hard = random.normal(0, 1, 50)
    first, second = hard + 0.1, hard + random.normal(0, 0.05, 50)
    _, first_low, _, _ = _estimate(first)
    _, _, second_high, _ = _estimate(second)
    assert first_low < second_high, "apart they overlap"
    paired = difference(_scores(first), _scores(second))
    assert paired is not None
    assert paired.low is not None
    assert paired.low > 0
    # What only the second has said does not count.
    both = difference([None, (1.0, 1.0)], [(5.0, 1.0), (0.0, 1.0)])
    assert both == difference([(1.0, 1.0)], [(0.0, 1.0)])


# --- scores ---


def item(id_: str, text: str, speaker: str | None = None) -> Item:
    return Item(id_, text, Dialogue((Turn("user", (text,)),)), f"/{id_}.wav", speaker)


def test_scores_of_three_items_by_hand() -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    grey, old, tree = "red green blue grey", "old book", "big tree"
    items = [item("a", grey, "x"), item("b", old, "x"), item("c", tree, "y")]
    sound = {"duration_s": 2.0, "silence": 0.25}
    said_a = {
        "voice": [80, 60],
        "sound": {"duration_s": 3.0, "silence": 0.5},
        "dnsmos": 3.0,
        "transcript": "Red, green, glue gray",
    }
    heard: dict[Path, Any] = {
        Path("/a.wav"): {"voice": [100, 0], "sound": sound, "transcript": ""},
        Path("/b.wav"): {"voice": [60, 80], "sound": sound, "transcript": ""},
        Path("/c.wav"): {"voice": [0, 100], "sound": sound, "transcript": ""},
        Path("/said_a.wav"): said_a,
        Path("/said_c.wav"): {"error": "is truncated"},
    }
    said = [
        Clip(Path("/said_a.wav"), True),
        Clip(None, False, "gave no audio"),
        Clip(Path("/said_c.wav"), True),
    ]
    rows = score(items, {"tuned": said}, heard, language="en", transcribed=True)
    first, *lost = [row["systems"]["tuned"] for row in rows]
    assert (first["wer"], first["words"]) == (0.25, 4)
    assert (first["duration_ratio"], first["stopped"]) == (1.5, 1.0)
    # Its speaker's other recording; then the other speaker's only one.
    assert first["similarity"] == pytest.approx(0.8 * 0.6 + 0.6 * 0.8)
    assert first["similarity_others"] == pytest.approx(0.6)
    for clip in lost:
        assert (clip["wer"], clip["cer"], clip["wer_seed"], clip["stopped"]) == (1.0, 1.0, 1.0, 0.0)
        assert clip.get("similarity") is None
    pooled = estimate(column(rows, "tuned", BY_NAME["wer"]))
    mean = estimate(column(rows, "tuned", BY_NAME["wer_seed"]))
    assert pooled is not None
    assert mean is not None
    assert pooled.mean == pytest.approx((1 + 2 + 2) / 8), "errors per word"
    assert mean.mean == pytest.approx((0.5 + 1 + 1) / 3), "over items, and gray is not grey"
    # Failures alone are no word error rate.
    unheard = score(items, {"tuned": said}, heard, language="en", transcribed=False)
    assert column(unheard, "tuned", BY_NAME["wer"]) == [None, None, None]
