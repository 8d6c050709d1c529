"""`--check_transcripts`: what a recogniser heard, here a made one, decides about clips. It hears
each recording once, whatever limit and text come later, and however often the run is killed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.commands import (
    contents,
    ids,
    listed,
    one_line_error,
    prepare,
    read,
    reasons,
    report,
    speech,
)

from plugins.errors import UserError
from plugins.hearing import recogniser
from plugins.hearing.comparison import compare
from plugins.prepare import flags
from plugins.prepare.transcripts import MAX_CER, Hearing, fault_of

pytest.importorskip("rapidfuzz")
pytest.importorskip("whisper_normalizer")

TEXTS = (
    "The quick brown fox jumps over the dog.",
    "Twenty ships sailed to the harbour.",
    "Please call me again tomorrow morning.",
    "Nobody knows where the river ends.",
    "All windows of the house were open.",
    "She sells sea shells by the shore.",
)


class Ears:
    """In place of faster-whisper: a clip of `1.5 + n / 10` seconds says the n-th of `said`."""

    languages, is_multilingual = ("en",), False
    said: ClassVar[list[str]] = []
    heard: ClassVar[list[tuple[int, int]]] = []  # number of the clip, width of the beam
    until: int | None = None  # fails after so many

    def __init__(self, folder: Path, **options: Any) -> None:
        pass

    def identity(self) -> str:
        return "made ears"

    def hear(self, samples: np.ndarray, language: str, *, beam_size: int) -> str:
        number = round((len(samples) / recogniser.RATE_HZ - 1.5) * 10)
        if Ears.until is not None and len(Ears.heard) >= Ears.until:
            raise UserError("killed")
        Ears.heard.append((number, beam_size))
        text = Ears.said[number]
        # "rough|careful": what the first hearing makes of it, and the second.
        return text.split("|")[-1 if beam_size > 1 else 0]

    def language_of(self, samples: np.ndarray) -> tuple[str, float]:
        return "fr", 0.95


@pytest.fixture(autouse=True)
def ears(monkeypatch: pytest.MonkeyPatch) -> type[Ears]:
    monkeypatch.setattr(recogniser, "Recogniser", Ears)
    monkeypatch.setattr(recogniser, "require_packages", lambda option, shipped: None)
    monkeypatch.setattr(recogniser, "shipped_model", Path)
    monkeypatch.setattr(recogniser, "model_folder", Path)
    for name, value in (("said", list(TEXTS)), ("heard", []), ("until", None)):
        monkeypatch.setattr(Ears, name, value)
    monkeypatch.setattr(Ears, "languages", ("en",))
    monkeypatch.setattr(Ears, "is_multilingual", False)
    return Ears


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., list[Any]]:
    def make(texts: tuple[str, ...] = TEXTS) -> list[Any]:
        root = tmp_path / "in"
        for number in range(len(texts)):
            path = root / f"clip{number}.wav"
            if not path.exists():
                speech(path, 1.5 + number / 10, seed=number)
        lines = [f'clip{number}.wav,"{text}"' for number, text in enumerate(texts)]
        arguments = listed(root, "audio,text", *lines)
        return [*arguments, "--output_file", tmp_path / "out" / "x.jsonl", "--check_transcripts"]

    return make


def test_a_good_corpus_passes(tmp_path: Path, corpus: Any) -> None:
    Ears.said[1] = "20 ships sailed to the harbor"
    assert prepare(*corpus(), "--strict") == 0
    rows = read(tmp_path / "out" / "x.transcripts.jsonl")
    assert [(row["written"], row["heard"]) for row in rows] == [
        *zip(TEXTS[:1], TEXTS[:1], strict=True),
        (TEXTS[1], Ears.said[1]),
        *zip(TEXTS[2:], TEXTS[2:], strict=True),
    ]
    assert {row["cer"] for row in rows} == {0.0}
    assert report(tmp_path / "out" / "x.jsonl")["transcripts"] == {
        "clips": 6, "max_cer": MAX_CER, "doubtful": 0, "cer": 0.0, "median": 0.0, "p95": 0.0,
        "max": 0.0,
    }  # fmt: skip
    assert [beam for _, beam in Ears.heard] == [1] * 6, "only what is in doubt is heard twice"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("An entirely other sentence, my dear.", "other words are heard than are written"),
        (TEXTS[4], "the words of another clip are heard (clip4.wav)"),
        ("", "no words are heard"),
        ("call me again tomorrow morning", "the beginning of the text is not heard"),
        ("please call me again tomorrow", "the end of the text is not heard"),
        ("please call tomorrow morning", "a part of the text is not heard"),
        (f"{TEXTS[2]} {TEXTS[2]}", "more is heard than is written"),
        (f"{TEXTS[2]} right now", "more is heard than is written"),
        (f"well then {TEXTS[2]}", "more is heard than is written"),
    ],
)
def test_what_is_said_otherwise_is_rejected(
    tmp_path: Path, corpus: Any, said: str, reason: str
) -> None:
    Ears.said[2] = said
    assert prepare(*corpus(), "--strict") == 3
    output = tmp_path / "out" / "x.jsonl"
    assert reasons(output) == [("clip2.wav", f"transcript: {reason}")]
    assert len(ids(output)) == 5
    (row,) = read(output.with_suffix(".rejected.jsonl"))
    assert (row["written"], row["heard"], row["max_cer"]) == (TEXTS[2], said, MAX_CER)
    assert row["cer"] == row["value"]
    assert row["audio"].endswith("clip2.wav")


def test_a_careful_hearing_has_the_last_word(tmp_path: Path, corpus: Any) -> None:
    Ears.said[0] = f"quick brown fox|{TEXTS[0]}"
    assert prepare(*corpus(), "--strict") == 0
    assert [(clip, beam) for clip, beam in Ears.heard if beam > 1] == [(0, 5)]
    assert prepare(*corpus(), "--strict", "--beam", "8") == 0
    assert Ears.heard[-6:].count((0, 8)) == 1, "another beam is another hearing"
    assert prepare(*corpus(), "--strict", "--beam", "1") == 3, "there is no second hearing"


def test_another_limit_or_text_hears_nothing_again(tmp_path: Path, corpus: Any) -> None:
    Ears.said[3] = "Nobody shows there a river ends"
    strict = [*corpus(), "0.05", "--strict"]
    assert prepare(*strict) == 3
    num_heard = len(Ears.heard)
    assert prepare(*corpus(), "0.5", "--strict") == 0
    texts = (*TEXTS[:3], Ears.said[3], *TEXTS[4:])
    assert prepare(*corpus(texts), "0", "--strict") == 0
    assert len(Ears.heard) == num_heard
    # A recording that was changed is another one.
    speech(tmp_path / "in" / "clip1.wav", 1.6, seed=9)
    assert prepare(*strict) == 0
    assert Ears.heard[num_heard:] == [(1, 1)]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, corpus: Any) -> None:
    Ears.said[4] = "All windows"
    arguments = corpus()
    assert prepare(*arguments) == 0
    whole = contents(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    for until in (1, 2, 1):
        Ears.heard, Ears.until = [], until
        assert prepare(*arguments) == 1
        left = {path.name for path in (tmp_path / "out").iterdir()}
        assert left == {".x.jsonl.journal"}, "nothing half written"
    Ears.heard, Ears.until = [], None
    assert prepare(*arguments, "--workers", "3") == 0
    assert contents(tmp_path / "out") == whole
    assert len(Ears.heard) == 7 - 4, "what was heard is not heard again"


def test_a_damaged_list_of_hearings_costs_a_hearing(tmp_path: Path, corpus: Any) -> None:
    assert prepare(*corpus()) == 0
    heard = tmp_path / "out" / "x.transcripts.jsonl"
    lines = heard.read_text().splitlines()
    lines[0] = lines[0][:40]
    lines[1] = '{"key": "a", "hearing": [1]}'
    lines[2] = "[]"
    lines[3] = json.dumps({**json.loads(lines[3]), "hearing": {"texts": 5, "spoken": None}})
    heard.write_text("\n".join(lines))
    Ears.heard = []
    assert prepare(*corpus(), "--strict") == 0
    assert sorted(clip for clip, _ in Ears.heard) == [0, 1, 2, 3]


def test_a_dialogue_falls_with_one_turn(tmp_path: Path) -> None:
    clips = [speech(tmp_path / f"{number}.wav", 1.5 + number / 10) for number in range(3)]
    rows = []
    for turns in ((0, 1), (0, 2)):
        messages: list[dict[str, str]] = []
        for turn in turns:
            messages += [
                {"role": "user", "content": TEXTS[turn]},
                {"role": "assistant", "content": "<audio>"},
            ]
        rows.append({"messages": messages, "audios": [str(clips[turn]) for turn in turns]})
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Ears.said[2] = "Something else was said here."
    output = tmp_path / "out" / "x.jsonl"
    arguments = ["--dataset_type", "jsonl", "--input_dir", tmp_path, "--jsonl_file", rows_file]
    assert prepare(*arguments, "--output_file", output, "--check_transcripts") == 0
    assert len(read(output)) == 1
    (row,) = read(output.with_suffix(".rejected.jsonl"))
    assert row["reason"] == "transcript: other words are heard than are written"
    assert (row["written"], row["audio"]) == (TEXTS[2], str(clips[2]))


def test_processed_clips_are_heard_as_they_will_be_trained(tmp_path: Path, corpus: Any) -> None:
    copies = tmp_path / "copies"
    arguments = [*corpus(), "--audio_output", copies, "--speed_factors", "1.1", "--strict"]
    assert prepare(*arguments) == 0
    rows = read(tmp_path / "out" / "x.transcripts.jsonl")
    assert all(row["audio"].startswith(str(copies)) for row in rows)
    num_heard = len(Ears.heard)
    assert num_heard == 6, "not the faster copies"
    # Written again, they are the same.
    assert prepare(*arguments) == 0
    assert len(Ears.heard) == num_heard


def test_languages(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "in"
    speech(root / "a.wav", 1.5)
    arguments = [*listed(root, "audio,text,lang", f"a.wav,{TEXTS[0]},de_DE"), "--language_column"]
    arguments += ["lang", "--output_file", tmp_path / "x.jsonl", "--check_transcripts"]
    assert prepare(*arguments) == 1
    assert "'de_DE' is not what the recogniser hears: it knows English only; give --asr" in (
        one_line_error(capsys)
    )
    assert prepare(*arguments, "--language", "EN") == 0
    Ears.languages, Ears.is_multilingual = ("en", "de", "fr"), True
    capsys.readouterr()
    assert prepare(*arguments, "--language", "klingon") == 1
    assert "--language: language: 'klingon' is no language that" in one_line_error(capsys)
    nameless = [*listed(tmp_path / "in2", "audio,text", f"../in/a.wav,{TEXTS[0]}")]
    nameless += ["--output_file", tmp_path / "y.jsonl", "--check_transcripts"]
    assert prepare(*nameless) == 1
    assert one_line_error(capsys).endswith("name it, e.g. --language de")
    Ears.said[0] = "Le renard brun"
    assert prepare(*arguments) == 1
    rows = read(tmp_path / "x.rejected.jsonl")
    assert rows[0]["reason"].endswith("than are written (the language is fr)")


def test_a_recording_that_cannot_be_decoded_is_rejected(tmp_path: Path, corpus: Any) -> None:
    arguments = corpus()
    path = tmp_path / "in" / "clip5.wav"
    path.write_bytes(path.read_bytes()[:2000])
    assert prepare(*arguments) == 0
    ((name, reason),) = reasons(tmp_path / "out" / "x.jsonl")
    assert name == "clip5.wav"
    assert not reason.startswith("transcript")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check_transcripts", "-1"], "-1 is not from 0 to 10"),
        (["--check_transcripts", "nan"], "nan is not from 0 to 10"),
        (["--check_transcripts", "low"], "invalid _error_rate value"),
    ],
)
def test_wrong_flags(tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    common = ["--dataset_type", "ljspeech", "--input_dir", "x", "--output_file", "x.jsonl"]
    with pytest.raises(SystemExit, match="2"):
        flags.parse([*common, *arguments])
    assert re.search(re.escape(message), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("heard", "fault"),
    [
        ("enter your number and the pound", "the end of the text is not heard"),
        ("enter number and the pound key", "a part of the text is not heard"),
        ("enter your number and pound key", None),
        ("enter your number and the the pound key", None),
        ("enter your number and the pound key now", "more is heard than is written"),
    ],
)
def test_a_short_word_counts_at_an_edge(heard: str, fault: str | None) -> None:
    """Within a text recognisers lose and add a "the"; at its end it is the cut."""
    comparison = compare("Enter your number and the pound key.", heard, "en")
    assert fault_of(comparison, MAX_CER, "en", Hearing()) == fault


def test_a_limit_of_zero_is_one() -> None:
    common = ["--dataset_type", "ljspeech", "--input_dir", "x", "--output_file", "x.jsonl"]
    args = flags.parse([*common, "--check_transcripts", "0", "--language", "en"])
    assert args.check_transcripts == 0.0


def test_nothing_left_keeps_what_was_heard(tmp_path: Path, corpus: Any, capsys: Any) -> None:
    Ears.said[:] = ["Nothing of all that."] * 6
    arguments = corpus()
    assert prepare(*arguments) == 1
    assert "holds no usable clip (rejected: 6 transcript: other words" in one_line_error(capsys)
    num_heard = len(Ears.heard)
    assert prepare(*arguments, "1", "--strict") == 0, "a limit that takes all"
    assert len(Ears.heard) == num_heard
