"""Lines end at a line feed, and nowhere else, in whatever reads a file of texts (tests/files holds
the reader itself)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import CORPUS, ROOT

from plugins.cli import _parser
from plugins.commands import speak_list
from plugins.commands.app.fields import lines_of
from plugins.corpora.jsonl import read_jsonl
from plugins.corpora.utterance import Utterance
from plugins.data.sources import read_rows
from plugins.data.text import clean_transcript
from plugins.evaluation import formats
from plugins.evaluation.items import read_items
from plugins.evaluation.journal import Journal
from plugins.settings import HiggsAudioSettings
from plugins.training.preflight.report import Finding

CLIP = str(CORPUS / "wavs" / "DEMO-0001.flac")
SETTINGS = HiggsAudioSettings()
INSIDE = ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\r"]
# The control characters among them have to be escaped in JSON, the others may be.
IN_JSON = ["\u2028", "\u2029", "\x85"]


@pytest.fixture(params=IN_JSON)
def text(request: pytest.FixtureRequest) -> str:
    return f"First line.{request.param}Second line."


@pytest.fixture
def rows(text: str, tmp_path: Path) -> Path:
    """Two rows, the first with such a text; named by lone returns, as JSON may be laid out."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    row = {"id": "one", "messages": messages, "audios": [CLIP]}
    lines = [json.dumps(row, ensure_ascii=False).replace(', "', ',\r"')]
    lines.append(json.dumps({**row, "id": "two"}))
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return path


def test_rows(rows: Path, text: str) -> None:
    read = read_rows(str(rows), SETTINGS, check=lambda _: None)
    assert [row["messages"][0]["content"] for row in read] == [text, text]
    assert [row["row_source"] for row in read] == [f"{rows}:1", f"{rows}:2"]


def test_rows_to_prepare(rows: Path) -> None:
    entries = list(read_jsonl(rows.parent, rows))
    assert [entry.id for entry in entries if isinstance(entry, Utterance)] == ["one", "two"]


@pytest.mark.parametrize("name", ["{}", "{folder}/../{folder_name}/rows.jsonl"])
def test_items_of_an_evaluation(rows: Path, name: str) -> None:
    name = name.format(rows, folder=rows.parent, folder_name=rows.parent.name)
    assert [item.id for item in read_items(name, SETTINGS)] == ["one", "two"]


def test_lists_to_speak(text: str, tmp_path: Path) -> None:
    path = tmp_path / "speak.jsonl"
    row = json.dumps({"text": text}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{row}\r\n\n{row}".encode())
    flags = ["--model", "x", "--input", str(path), "--output_dir", "out"]
    options = _parser().parse_args(["speak", *flags])
    lines = list(speak_list._read(path, options, seed=None))
    assert [line.text for line in lines] == [text, text]
    assert [line.id for line in lines] == ["00001", "00003"]


@pytest.mark.parametrize("inside", INSIDE)
def test_lists_of_other_programs(inside: str, tmp_path: Path) -> None:
    meta = tmp_path / "meta.lst"
    meta.write_bytes(f"a||{CLIP}|one{inside}two\nb||{CLIP}|three\n".encode())
    assert [row["id"] for _, row in formats.read_meta(meta)] == ["a", "b"]
    scp = tmp_path / "wav.scp"
    scp.write_bytes(f"a one{inside}two.wav\nb three.wav\n".encode())
    assert formats.read_scp(scp) == {"a": f"one{inside}two.wav", "b": "three.wav"}


def test_what_a_journal_holds(text: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    with Journal(path, {"model": text}) as journal:
        journal.put("key", text)
    with Journal(path, {"model": text}) as journal:
        assert journal.get("key") == text


@pytest.mark.parametrize("inside", INSIDE)
def test_lines_of_a_dialogue(inside: str) -> None:
    lines = lines_of(f"Alice: one{inside}two\nBob: three\r\n")
    assert [line["text"] for line in lines] == [f"one{inside}two", "three"]


@pytest.mark.parametrize("inside", INSIDE)
def test_a_text_to_speak_is_one_line(inside: str) -> None:
    """As boson-ai/higgs-audio cuts it, at line feeds; whatever else is white is a space."""
    assert clean_transcript(f"One.{inside}Two.\nThree.") == "One. Two.\nThree."


def test_findings_are_shown_line_by_line() -> None:
    assert Finding("a", "ok", "b").render() == "ok      a: b"
    assert Finding("a", "ok", "b", "c\nd").render().split("\n")[1:] == ["        c", "        d"]


def test_nothing_splits_a_file_at_other_characters() -> None:
    """The kind: `splitlines`, and text files that are read line by line."""
    found = []
    for folder in ("plugins", "demo"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line in path.read_text(encoding="utf-8").split("\n"):
                if re.search(r"splitlines\(|readlines\(", line):
                    found.append(f"{path.relative_to(ROOT)}: {line.strip()}")
    assert found == []
