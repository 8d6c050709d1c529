"""Takes that were heard -> the one to learn from and one to learn against, as rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CORPUS, write_jsonl

from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.data.sources import read_rows
from plugins.evaluation.items import read_items
from plugins.evaluation.winners import Verdict, best_row, pair_row, verdict
from plugins.hearing.takes import Take, failed_take
from plugins.settings import HiggsAudioSettings

SETTINGS = HiggsAudioSettings()
GOOD = Take(1, stopped=True, duration_s=2.0, wer=0.0, similarity=0.9)
NOBODY = "no take is clearly worse than the best"


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([replace(GOOD, wer=0.1), replace(GOOD, wer=0.3)], Verdict(0, 2)),
        # The worst of all is better in its voice: it is no worse answer.
        ([replace(GOOD, wer=0.1), replace(GOOD, wer=0.3, similarity=0.95)], Verdict(0, 1)),
        ([replace(GOOD, wer=0.3, similarity=0.91)], Verdict(0, 1)),
        ([replace(GOOD, similarity=0.8)], Verdict(0, 1)),
        ([replace(GOOD, similarity=0.88), GOOD], Verdict(0, reason=NOBODY)),
        ([replace(GOOD, wer=0.02)], Verdict(0, reason=NOBODY)),
        ([replace(GOOD, wer=0.9, stopped=False)], Verdict(0, reason=NOBODY)),
        ([failed_take(2)], Verdict(0, reason=NOBODY)),
        # Nobody has compared voices.
        ([replace(GOOD, wer=0.1, similarity=None)], Verdict(0, 1)),
    ],
)
def test_winners(others: list[Take], expected: Verdict) -> None:
    assert verdict([GOOD, *others], max_wer=0.2, margin=0.05) == expected


def test_words_are_compared_as_they_are_counted() -> None:
    best, worse = replace(GOOD, wer=2 / 20), replace(GOOD, wer=3 / 20)
    assert worse.wer - best.wer < 0.05, "in floats"  # type: ignore[operator]
    assert verdict([best, worse], max_wer=0.2, margin=0.05) == Verdict(0, 1)
    # Whatever the margin: of two that are equal none is the worse.
    assert verdict([GOOD, GOOD], max_wer=0.2, margin=0) == Verdict(0, reason=NOBODY)


def test_a_pause_or_babble_is_not_learnt_with_the_right_words() -> None:
    babble = replace(GOOD, duration_s=5.0)
    usual = replace(GOOD, wer=0.1)
    wrong = replace(GOOD, wer=0.5)
    takes = [babble, wrong, usual, usual]
    assert verdict(takes, max_wer=0.2, margin=0.05) == Verdict(2, 1)
    # Of two takes nobody knows the usual length.
    assert verdict([babble, wrong], max_wer=0.2, margin=0.05) == Verdict(0, 1)


@pytest.mark.parametrize(
    ("takes", "reason"),
    [
        ([failed_take(1), failed_take(2)], "no take says anything"),
        ([replace(GOOD, stopped=False), failed_take(2)], "no take stopped by itself"),
        ([replace(GOOD, wer=0.3)] * 2, "no take has a WER of 20 % or less"),
        (
            [replace(GOOD, wer=0.3)] * 3 + [replace(GOOD, duration_s=9.0)],
            "takes in the right words are much longer or shorter than the others",
        ),
    ],
)
def test_texts_without_a_winner(takes: list[Take], reason: str) -> None:
    assert verdict(takes, max_wer=0.2, margin=0.05) == Verdict(reason=reason)


def prompt(dialogue: Dialogue) -> Dialogue:
    """Without its answer, and whatever it is trained on."""
    turns = tuple(replace(turn, trained=False) for turn in dialogue.turns[:-1])
    return replace(dialogue, turns=turns, source="")


def test_rows_have_the_prompt_that_was_spoken(tmp_path: Path) -> None:
    wavs = CORPUS / "wavs"
    code = [[1, 2, 3, 4, 5, 6, 7, 8]]
    said = {"role": "assistant", "content": ""}
    scene = {"role": "system", "content": "<|scene_desc_start|> Indoor <|scene_desc_end|>"}
    voice = {"reference_audio": str(wavs / "DEMO-0002.flac"), "reference_text": "Glue the sheet."}
    one, two = {"role": "user", "content": "One."}, {"role": "user", "content": "Two."}
    rows = [
        {"text": "A text alone."},
        {"id": "a", "messages": [scene, one], "speaker": "ann", **voice},
        {"messages": [one, said], "audios": [str(wavs / "DEMO-0001.flac")]},
        {"messages": [one, said, two], "audio_codes": [code]},
        {"messages": [scene, one], "reference_codes": [code], "raw_prompt": True},
    ]
    path = write_jsonl(tmp_path / "texts.jsonl", rows)
    items = read_items(str(path), SETTINGS)
    assert [item.text for item in items] == ["A text alone.", "One.", "One.", "Two.", "One."]
    better, worse = torch.arange(24).reshape(8, 3), torch.arange(16).reshape(8, 2)
    pairs, best = [], []
    for item in items:
        earlier = [clip.codes for turn in item.dialogue.turns for clip in turn.clips()]
        known = [codes for codes in earlier if codes is not None]
        best.append(best_row(item, better, known))
        pairs.append(pair_row(item, better, worse, known))
    trained = write_jsonl(tmp_path / "best.jsonl", best)
    for item, row in zip(
        items, read_rows(str(trained), SETTINGS, check=lambda _: None), strict=True
    ):
        dialogue = dialogue_from_row(row, SETTINGS)
        assert repr(prompt(dialogue)) == repr(replace(prompt_of(item.dialogue), source=""))
        (answer,) = dialogue.targets()
        assert torch.equal(answer.codes, better)  # type: ignore[arg-type]
    for pair, row in zip(pairs, best, strict=True):
        assert pair == {
            **row,
            "rejected_messages": row["messages"],
            "rejected_audio_codes": [*row["audio_codes"][:-1], worse.T.tolist()],
        }
    assert pairs[1]["speaker"] == "ann"
    assert pairs[1]["id"] == "a"
    assert pairs[3]["messages"][1]["loss"] is False
    assert json.dumps(pairs[0]).count("loss") == 0


def prompt_of(dialogue: Dialogue) -> Dialogue:
    turns = tuple(replace(turn, trained=False) for turn in dialogue.turns)
    return replace(dialogue, turns=turns)
