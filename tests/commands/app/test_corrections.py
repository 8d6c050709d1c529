"""Corrections of rows: nothing is lost, whatever happens between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.commands.app import corrections
from plugins.commands.app.corrections import Clip, Corrected
from plugins.errors import UserError


def row(id_: str, text: str, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    return {"messages": messages, "audios": [f"/w/{id_}.flac"], **columns, "id": id_}


ROWS = [
    row("a", "One."),
    row("b", "Twö.", reference_audio="/w/a.flac", reference_text="One.", reference_codes=["k#1"]),
    row("c", "Three.", reference_audio=["/w/a.flac"], reference_text=["One."]),
]


def write(path: Path, rows: list[dict[str, Any]]) -> bytes:
    # Spaces that nobody else would write: untouched rows keep their bytes.
    path.write_text("".join(json.dumps(row, indent=None) + " \n" for row in rows))
    return path.read_bytes()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "x.jsonl", ROWS)
    return tmp_path / "x.jsonl"


def by_key(file: Path) -> dict[str, Clip]:
    return {clip.key: clip for clip in Corrected(file).clips()}


def test_looking_changes_nothing(file: Path) -> None:
    before = file.read_bytes()
    assert [(clip.text, clip.keep) for clip in Corrected(file).clips()] == [
        ("One.", True),
        ("Twö.", True),
        ("Three.", True),
    ]
    assert file.read_bytes() == before
    assert {path.name for path in file.parent.iterdir() if path.suffix == ".jsonl"} == {"x.jsonl"}


def test_a_text_is_corrected_and_where_it_is_a_reference_too(file: Path) -> None:
    before = file.read_bytes()
    clip = Corrected(file).change("a", text=" Won. ", keep=True)
    assert (clip.text, clip.was, clip.is_changed) == ("Won.", "One.", True)
    first, second, third = read(file)
    assert first["messages"][0]["content"] == "Won."
    assert second["reference_text"] == "Won."
    assert third["reference_text"] == ["Won."]
    assert second["messages"] == ROWS[1]["messages"]
    assert file.with_name("x.original.jsonl").read_bytes() == before
    Corrected(file).change("a", text="One.", keep=True)
    assert file.read_bytes().split() == before.split(), "taken back"


def test_a_clip_left_out_is_nobodys_reference_and_comes_back(file: Path) -> None:
    before = file.read_bytes()
    Corrected(file).change("a", text="One.", keep=False)
    second, third = read(file)
    assert second == row("b", "Twö.")
    assert third == row("c", "Three.")
    assert not by_key(file)["a"].keep
    Corrected(file).change("a", text="One.", keep=True)
    assert file.read_bytes() == before


def test_untouched_rows_keep_their_bytes(file: Path) -> None:
    lines = file.read_bytes().split(b"\n")
    Corrected(file).change("c", text="3", keep=True)
    assert file.read_bytes().split(b"\n")[:2] == lines[:2]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(file: Path, text: str) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"a: text: '' is empty; write what is said, or leave"):
        Corrected(file).change("a", text=text, keep=True)
    with pytest.raises(UserError, match="clip: 'z' is not there any more"):
        Corrected(file).change("z", text="x", keep=True)
    with pytest.raises(UserError, match="holds half a character"):
        Corrected(file).change("a", text="\ud800", keep=True)
    assert file.read_bytes() == before


def test_a_dialogue_is_corrected_line_by_line(file: Path) -> None:
    messages = []
    for text in ("[SPEAKER0] Hi.", "[SPEAKER1] Ho."):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    talk = {"messages": messages, "audios": ["/w/1.flac", "/w/2.flac"], "id": "talk"}
    odd = {"messages": [{"role": "user", "content": [{"type": "text"}]}], "id": "odd"}
    write(file, [talk, odd, {"text": "x"}])
    assert by_key(file)["talk"].text == "[SPEAKER0] Hi.\n[SPEAKER1] Ho."
    Corrected(file).change("talk", text="[SPEAKER0] Hi!\n[SPEAKER1] Ho.", keep=True)
    turns = [message["content"] for message in read(file)[0]["messages"]]
    assert turns == ["[SPEAKER0] Hi!", "", "[SPEAKER1] Ho.", ""]
    with pytest.raises(UserError, match="has another number of lines; keep its 2 lines"):
        Corrected(file).change("talk", text="Hi!", keep=True)
    # What is of another shape is kept or left out, and not edited.
    Corrected(file).change("odd", text="other", keep=True)
    assert read(file)[1:] == [odd, {"text": "x"}]
    Corrected(file).change("row 3", text="other", keep=False)
    assert read(file)[1:] == [odd]


def test_a_rejected_clip_is_taken_with_its_right_words(file: Path) -> None:
    wrong = {"file": "f:1", "id": "r", "reason": "transcript: other words", "value": 0.9}
    wrong |= {"audio": "/w/r.flac", "written": "Wrong.", "heard": "Right."}
    gone = {"file": "f:2", "id": "g", "reason": "not found", "value": "g.wav"}
    write(file.with_name("x.rejected.jsonl"), [wrong, gone])
    clip = by_key(file)["r"]
    assert (clip.keep, clip.text, clip.heard, clip.note) == (
        False, "Wrong.", "Right.", "rejected: transcript: other words",
    )  # fmt: skip
    assert "g" not in by_key(file)
    before = file.read_bytes()
    Corrected(file).change("r", text="Right.", keep=True)
    assert read(file)[-1] == row("r", "Right.")
    assert by_key(file)["r"].keep
    Corrected(file).change("r", text="Wrong.", keep=False)
    assert file.read_bytes() == before


def test_doubts_of_the_preparation_are_shown(file: Path) -> None:
    (file.parent / "x_clips").mkdir()
    doubtful = {"id": "b", "doubts": ["sound behind the speech"], "confidence": 0.5}
    write(file.parent / "x_clips" / "clips.jsonl", [{**doubtful, "heard": "Two"}])
    write(file.with_name("x.transcripts.jsonl"), [{"id": "c", "cer": 0.25, "heard": "tree"}])
    clips = by_key(file)
    assert clips["b"].note == "sound behind the speech; confidence 50 %"
    assert (clips["c"].note, clips["c"].heard) == ("CER 25 %", "tree")
    assert clips["b"].doubt > clips["c"].doubt > clips["a"].doubt


def test_prepared_again_what_fits_is_made_again_and_the_rest_waits(file: Path) -> None:
    for key in "ab":
        Corrected(file).change(key, text=f"New {key}.", keep=True)
    Corrected(file).change("c", text="Three.", keep=False)
    write(file, [ROWS[0], row("b", "Another text."), ROWS[2], row("d", "Four.")])
    clips = by_key(file)
    assert [clip.text for clip in clips.values() if clip.keep] == [
        "New a.",
        "Another text.",
        "Four.",
    ]
    assert [row["id"] for row in read(file)] == ["a", "b", "d"]
    # The first rows come again: so does the correction that waited.
    write(file, ROWS)
    assert by_key(file)["b"].text == "New b."
    originals = sorted(path.name for path in file.parent.glob("x.original*"))
    expected = ["x.original-2.jsonl", "x.original-3.jsonl", "x.original.jsonl"]
    assert originals == expected, "none is lost"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", range(3))
def test_killed_between_two_writes_nothing_is_lost(
    file: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Corrected(file).change("a", text="Won.", keep=True)
    before, real, left = file.read_bytes(), corrections.replace_when_done, [writes]

    def killed(path: Path) -> Iterator[Path]:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(path)

    monkeypatch.setattr(corrections, "replace_when_done", killed)
    with pytest.raises(Killed) if writes < 2 else open("/dev/null"):
        Corrected(file).change("b", text="Too.", keep=True)
    monkeypatch.undo()
    assert writes == 2 or file.read_bytes() == before
    clips = by_key(file)
    assert (clips["a"].text, clips["a"].was) == ("Won.", "One.")
    assert (clips["b"].text, clips["b"].was) in (("Twö.", "Twö."), ("Too.", "Twö."))
    # What is shown is what is trained.
    assert [row["messages"][0]["content"] for row in read(file)] == [
        clip.text for clip in clips.values()
    ]
    Corrected(file).change("b", text="Too.", keep=True)
    assert [clip.text for clip in by_key(file).values()] == ["Won.", "Too.", "Three."]
    assert len(list(file.parent.glob("x.original*"))) == 1


def test_a_file_of_something_else_is_told(file: Path) -> None:
    file.write_text("[1]\n")
    with pytest.raises(UserError, match=r"x.jsonl:1: line: '\[1\]' is no row; choose a file"):
        Corrected(file).clips()
    file.write_text("{\n")
    with pytest.raises(UserError, match=r"x.jsonl:1: line: '{' is no JSON"):
        Corrected(file).clips()
