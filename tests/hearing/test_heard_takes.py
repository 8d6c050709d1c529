"""Takes of one text: what is heard in each, and which is the best."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CORPUS

from plugins.errors import UserError
from plugins.hearing import scorers
from plugins.hearing.recogniser import Recogniser
from plugins.hearing.scorers import Scorer
from plugins.hearing.takes import Judge, Take, best_first, failed_take, load_judge, take_lines

GOOD = Take(1, stopped=True, duration_s=2.0, wer=0.0, similarity=0.9)


@pytest.mark.parametrize(
    ("worse", "why"),
    [
        (failed_take(2), "nothing was said"),
        (replace(GOOD, stopped=False), "it was cut"),
        (replace(GOOD, wer=0.1), "a wrong word"),
        (replace(GOOD, wer=0.1, similarity=1.0), "a wrong word in a better voice"),
        (replace(GOOD, similarity=0.8), "another voice"),
        (replace(GOOD, similarity=None), "no voice"),
        (replace(GOOD, duration_s=3.1), "something behind the last word"),
        (replace(GOOD, duration_s=1.3), "too fast"),
        (replace(GOOD, duration_s=3.1, similarity=1.0), "longer, in a better voice"),
    ],
)
def test_the_best_comes_first(worse: Take, why: str) -> None:
    takes = [worse, GOOD, GOOD, replace(GOOD, duration_s=2.2, wer=0.0, similarity=0.9)]
    assert best_first(takes)[0] == 1, why
    assert best_first(takes)[-1] == 0, why


def test_what_was_cut_is_better_than_nothing_and_equal_takes_keep_their_order() -> None:
    babble = replace(GOOD, stopped=False, wer=3.0, duration_s=40.0)
    assert best_first([failed_take(1), babble]) == [1, 0]
    assert best_first([GOOD, GOOD, GOOD]) == [0, 1, 2]
    # Of two takes nobody knows which length is the usual one.
    assert best_first([replace(GOOD, duration_s=9.0), GOOD]) == [0, 1]


def test_a_take_is_heard_by_words_and_voice() -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    heard: list[int] = []

    def voice(samples: np.ndarray) -> list[int]:
        heard.append(len(samples))
        return [10_000, 0] if len(samples) == 16_000 else [6_000, 8_000]

    judge = Judge(
        [
            Scorer("transcript", "words 1", lambda: lambda samples: "The birch canoe slid"),
            Scorer("voice", "voices 1", lambda: voice),
        ]
    )
    samples = np.zeros(24_000, dtype=np.float32)
    reference = str(CORPUS / "wavs" / "DEMO-0001.flac")
    text = "[SPEAKER0] The birch canoe sank. <SE>[Laughter]</SE>"
    for _ in range(2):
        take = judge.hear(text, samples, 24_000, stopped=True, seed=3, reference=reference)
    assert take == Take(3, True, 1.0, 0.25, 0.6, "The birch canoe slid")
    assert len(heard) == 3, "a reference is heard once"
    assert judge.identity == ["en", "words 1", "voices 1"]
    alone = judge.hear(text, samples, 24_000, stopped=False)
    assert alone == Take(None, False, 1.0, 0.25, None, "The birch canoe slid")
    assert str(alone) == "1.00 s, WER 25.0 %, not stopped"
    lines = take_lines([take, replace(take, is_best=True), failed_take(9)])
    assert lines == [
        "take 1: 1.00 s, WER 25.0 %, similarity 0.600, seed 3",
        "take 2: 1.00 s, WER 25.0 %, similarity 0.600, seed 3 *",
        "take 3: 0.00 s, WER 100.0 %, nothing said, seed 9",
    ]


def test_without_a_recogniser_no_take_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"faster_whisper", "webrtcvad"}
    monkeypatch.setattr(scorers, "find_spec", lambda name: None if name in gone else object())
    message = (
        "takes: recogniser is missing: package faster_whisper is not installed; run: pip install"
    )
    with pytest.raises(UserError, match=message):
        load_judge()
    with pytest.raises(UserError, match="hears English, not 'de'; give --asr openai/whisper"):
        load_judge(language="de")
    gone.remove("faster_whisper")
    _, missing = load_judge()
    assert [scorer.name for scorer in missing] == ["voice"]


def test_what_a_seed_says_does_not_hang_on_who_has_heard_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTranslate2 makes its number of threads that of the process: torch then added in another
    order, and takes from before the first hearing were others than those after it."""
    threads = torch.get_num_threads()

    def load(*model: Any, **options: Any) -> object:
        torch.set_num_threads(threads + 1)
        return object()

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=load))
    try:
        Recogniser(tmp_path)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_recogniser_that_ships_hears_a_recording(tmp_path: Path) -> None:
    judge, missing = load_judge()
    if missing:
        pytest.skip(str(missing[0]))
    threads = torch.get_num_threads()
    from helpers.recorded import RATE_HZ, SOUNDS, decoded, require_sounds, transcripts

    require_sounds()
    said: dict[str, Any] = dict(transcripts())
    name = "agent-loginok"
    samples = decoded(SOUNDS / f"{name}.g722")
    take = judge.hear(said[name], samples, RATE_HZ, stopped=True)
    assert take.wer is not None
    assert take.wer < 0.5
    assert torch.get_num_threads() == threads
