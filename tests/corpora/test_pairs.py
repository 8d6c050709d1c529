"""Rows with a rejected answer: what is read as one pair, and what cannot be compared: one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, write_jsonl

from plugins.corpora.canonical import COLUMNS, KEY_COLUMNS, PAIR_COLUMNS
from plugins.corpora.pairs import IN_TABLE, answers_of, canonical_pair, with_rejected
from plugins.data.rows import dialogue_from_row
from plugins.data.sources import read_rows
from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings

A, B, C = (str(CORPUS / "wavs" / f"DEMO-000{i}.flac") for i in (1, 2, 3))
CODES = [[[0] * 8, [1] * 8]]
OTHER = [[[2] * 8, [3] * 8, [4] * 8]]
SETTINGS = HiggsAudioSettings()
PROMPT = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": ""}]


def row(**columns: Any) -> dict[str, Any]:
    return {"messages": PROMPT, **columns}


def named(path: str) -> list[dict[str, Any]]:
    """The prompt, and an answer that names its clip itself."""
    return [PROMPT[0], {"role": "assistant", "content": [{"type": "audio", "audio": path}]}]


def tagged(text: str = "Hello.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "<audio>"}]


@pytest.mark.parametrize(
    ("pair", "rejected"),
    [
        (row(audios=[A], rejected_audios=[B]), {"audios": [B]}),
        (row(audio=A, rejected_audios=B), {"audios": [B]}),
        (row(audio_codes=CODES, rejected_audio_codes=OTHER), {"audio_codes": OTHER}),
        (row(audios=[A], rejected_audio_codes=OTHER), {"audios": [], "audio_codes": OTHER}),
        (
            row(audios=[A], audio_codes=CODES, rejected_audios=[B], rejected_audio_codes=OTHER),
            {"audios": [B], "audio_codes": OTHER},
        ),
        (
            row(audios=[A], rejected_audios=[B], rejected_messages=None, rejected_audio_codes=[]),
            {"audios": [B], "audio_codes": []},
        ),
        ({"messages": named(A), "rejected_messages": named(B)}, {"audios": [B]}),
        ({"messages": named(A), "rejected_audios": [B]}, {"audios": [B]}),
        (row(audios=[A], rejected_audios=[B], rejected_messages=tagged()), {"audios": [B]}),
        (
            row(audios=[A], rejected_audios=[B], reference_audio=C, reference_text="Hi."),
            {"audios": [B], "reference_audio": [C], "reference_text": ["Hi."]},
        ),
    ],
)
def test_what_is_a_pair(pair: dict[str, Any], rejected: dict[str, Any]) -> None:
    chosen, other = canonical_pair(pair, "t.jsonl:1", SETTINGS)
    for name, value in rejected.items():
        assert other[name] == value
    assert not set(PAIR_COLUMNS) & {*chosen, *other}
    for name in ("reference_audio", "reference_text", "raw_prompt", "speaker"):
        assert chosen[name] == other[name]
    for answer in (chosen, other):
        assert next(dialogue_from_row(answer, SETTINGS).targets())
    # In a table: what MS-SWIFT then takes apart again.
    together = with_rejected(chosen, other)
    assert set(together) == {*chosen, *IN_TABLE.values()}
    assert answers_of(together) == [chosen, other]
    assert answers_of(chosen) == [chosen]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (row(audios=[A]), r"\(rejected\): rejected_audios is missing: .*; give it, or"),
        (row(audios=[A], rejected_audios=[]), r"rejected_audios is missing"),
        (row(audios=[A], rejected_audios=[A]), "are the chosen clips themselves; leave the row"),
        (
            row(audio_codes=CODES, rejected_audio_codes=CODES),
            "rejected_audio_codes are the chosen clips themselves",
        ),
        # The recording is named on one side only.
        (
            row(audios=[A], audio_codes=CODES, rejected_audio_codes=CODES),
            "rejected_audio_codes are the chosen clips themselves",
        ),
        (
            row(audio_codes=CODES, rejected_audios=[A], rejected_audio_codes=CODES),
            "rejected_audio_codes are the chosen clips themselves",
        ),
        (
            row(audios=[A], rejected_audios=[B], rejected_messages=tagged("Goodbye.")),
            "rejected_messages: .* differ from messages in more than their clips",
        ),
        (
            row(audios=[A], rejected_audios=[B], rejected_messages=PROMPT[:1]),
            "rejected_messages: .* differ from messages",
        ),
        (row(audios=[A], rejected_audios=["gone.wav"]), r"1 \(rejected\): audios\[0\]: 'gone.wav'"),
        (row(audios=[A], rejected_audios=[1]), r"\(rejected\): audios\[0\]: 1 is no path"),
        (row(audios=[A], rejected_messages="Hello."), "is no list of messages"),
        (
            {"messages": named(A), "rejected_messages": named(B), "rejected_audios": [C]},
            "are clips in addition to those in the contents",
        ),
    ],
)
def test_what_is_none(pair: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        canonical_pair(pair, "t.jsonl:1", SETTINGS)
    assert str(error.value).startswith("t.jsonl:1 (rejected): ")
    assert "\n" not in str(error.value)


def test_a_file_of_pairs_is_checked_whole(tmp_path: Path) -> None:
    """Both answers of each row, the chosen one first; faults are told by the lines."""
    good = row(audios=[A], rejected_audio_codes=OTHER)
    silent = {**good, "messages": [PROMPT[0], {**PROMPT[1], "loss": False}]}
    file = write_jsonl(tmp_path / "pairs.jsonl", [good, good])
    seen: list[str] = []
    rows = read_rows(
        str(file), SETTINGS, check=lambda dialogue: seen.append(dialogue.source), pairs=True
    )
    assert [place.rpartition("pairs.jsonl:")[2] for place in seen] == [
        "1",
        "1 (rejected)",
        "2",
        "2 (rejected)",
    ]
    assert rows[0]["rejected_audio_codes"] == OTHER
    three = [good, row(audios=[A]), row(audios=[A], rejected_audio_codes=[[[0] * 7]]), silent]
    file = write_jsonl(tmp_path / "faulty.jsonl", three)
    with pytest.raises(UserError) as error:
        read_rows(str(file), SETTINGS, check=lambda dialogue: None, pairs=True)
    first, second, third = str(error.value).splitlines()
    assert "faulty.jsonl:2 (rejected): rejected_audios is missing" in first
    assert "faulty.jsonl:3 (rejected): audio_codes[0]: [1, 7] is not [F][8]" in second
    assert "faulty.jsonl:4: messages: ['user', 'assistant'] has no turn" in third


def test_fine_tuning_takes_the_chosen_answer(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "pairs.jsonl", [row(audios=[A], rejected_audios=[B])])
    (read,) = read_rows(str(file), SETTINGS, check=lambda dialogue: None)
    assert read["audios"] == [A]
    assert set(read) == {*COLUMNS, *KEY_COLUMNS.values(), "speaker", "row_source"}


def test_a_mistyped_column_is_told(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "pairs.jsonl", [row(audios=[A], rejected_audio=[B])])
    with pytest.raises(UserError, match=r"'rejected_audio' is unknown; .*rejected_audios"):
        read_rows(str(file), SETTINGS, check=lambda dialogue: None)
