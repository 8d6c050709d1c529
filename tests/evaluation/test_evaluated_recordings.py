"""`higgs-audio evaluate` of recordings that exist: where it reads, where it writes, what it
refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CORPUS, write_jsonl
from helpers.commands import contents, read
from helpers.evaluation import evaluate, rows_to_say

from plugins.audio import marks
from plugins.audio.marks import Mark
from plugins.errors import UserError
from plugins.evaluation import formats
from plugins.evaluation.journal import Journal

# Of two rows of three.
RECORDINGS = {id_: str(CORPUS / "wavs" / f"{id_}.flac") for id_ in ("DEMO-0001", "DEMO-0002")}


@pytest.mark.usefixtures("only_sound")
def test_a_copy_is_marked_as_the_recording_is(tmp_path: Path) -> None:
    mark = Mark.of_today("another model", None)
    said = tmp_path / "said"
    said.mkdir()
    marks.write(said / "DEMO-0001.flac", np.full(24_000, 0.1), 24_000, mark, container="FLAC")
    marks.write(said / "DEMO-0002.flac", np.full(24_000, 0.1), 24_000, None, container="FLAC")
    rows = rows_to_say(tmp_path)
    assert evaluate("--generated", said, "--dataset", rows, "--output", tmp_path / "out") == 0
    copies = tmp_path / "out" / "audio" / "generated"
    assert marks.mark_in(copies / "DEMO-0001.wav") == mark
    assert marks.mark_in(copies / "DEMO-0002.wav") is None


@pytest.mark.usefixtures("only_sound")
@pytest.mark.parametrize("kind", ["folder", "scp", "jsonl"])
def test_recordings_that_exist_are_scored(tmp_path: Path, kind: str) -> None:
    rows = rows_to_say(tmp_path)
    source = CORPUS / "wavs"
    if kind == "scp":
        source = tmp_path / "wav.scp"
        formats.write_kaldi(source, RECORDINGS)
    elif kind == "jsonl":
        rows_of_two = [{"id": id_, "audio": path} for id_, path in RECORDINGS.items()]
        source = write_jsonl(tmp_path / "said.jsonl", rows_of_two)
    assert evaluate("--generated", source, "--dataset", rows, "--output", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["systems"]) == ["generated", "truth"]
    assert summary["systems"]["generated"]["failed"] == (0 if kind == "folder" else 1)
    assert summary["systems"]["generated"]["scores"]["duration_ratio"]["mean"] == 1.0
    lost = read(tmp_path / "out" / "items.jsonl")[2]["systems"]["generated"]
    assert (lost["error"] is None) == (kind == "folder")


def test_bad_input_is_one_clear_line(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    rows = ["--dataset", rows_to_say(tmp_path, 1)]
    model, nothing, gone = ["--model", tiny], tmp_path / "nothing", tmp_path / "gone"
    message = {"role": "user", "content": "..."}
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"messages": [message]}])
    empty, wide = tmp_path / "empty.lst", tmp_path / "wide.lst"
    empty.write_text("\n")
    wide.write_text("a|b|c|d|e|f\n")
    nothing.mkdir()
    cases: list[tuple[list[Any], str]] = [
        (rows, "model is missing; give --model, or --generated"),
        ([*rows, "--generated", CORPUS, "--base", tiny], "base: .* has no --model to belong to"),
        ([*model, "--dataset", "gone.jsonl"], "gone.jsonl: file: .* cannot be read"),
        ([*model, "--dataset", bare], "bare.jsonl:1: messages: '...' leaves nothing to say"),
        ([*model, "--dataset", empty], "rows: 0 there is no row"),
        ([*model, "--dataset", wide], "wide.lst:1: line: .* has 6 fields; write ID"),
        ([*rows, "--model", gone], "model: .*gone' is neither a folder nor a Hub id"),
        ([*rows, *model, "--adapters", nothing], "adapter_config.json' not found"),
        ([*rows, "--generated", nothing], "holds none of the dataset's ids .DEMO-0001."),
        ([*rows, "--generated", gone], "cannot be read"),
        ([*rows, *model, "--codec", nothing], "codec: .*nothing' "),
        ([*rows, *model, "--max_audio_s", "-1"], "max_audio_s: -1.0 is not positive"),
        ([*rows, *model, "--temperature", "-1"], "temperature: -1.0 is negative"),
    ]
    for arguments, reason in cases:
        assert evaluate("--output", tmp_path / "out", *arguments) == 1, arguments
        # Beside it only the scorers that are missing are named.
        lines = re.findall("^error:.*", capsys.readouterr().err, re.MULTILINE)
        assert len(lines) == 1, lines
        assert re.search(reason, lines[0]), lines[0]
    assert not list((tmp_path / "out").glob("*.json")), "nothing was begun"


@pytest.mark.usefixtures("only_sound")
def test_a_folder_of_others_is_written_to_only_if_that_is_said(tmp_path: Path, capsys: Any) -> None:
    """Its `text` and `report.md` were overwritten. With --overwrite they are; the rest of it stays
    in any case."""
    out, rows = tmp_path / "out", rows_to_say(tmp_path, 1)
    arguments = ["--generated", CORPUS / "wavs", "--dataset", rows, "--output", out]
    mine = {"report.md": "my report", "text": "my text"}
    mine |= {"notes/a.wav": "my clip", "audio/x.wav": "my other clip"}
    for name, content in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    before = contents(out)
    assert evaluate(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: options: output: '{out}' holds files, but no evaluation (audio, notes, report.md"
        " ...); name a new folder, or write beside these files and over those of the same names"
        " with --overwrite"
    )
    assert contents(out) == before
    assert evaluate(*arguments, "--overwrite") == 0
    assert (out / "report.md").read_text().startswith("# Evaluation")
    for name in ("notes/a.wav", "audio/x.wav"):
        assert (out / name).read_text() == mine[name]
    assert evaluate(*arguments) == 0, "it is an evaluation's folder now"


@pytest.mark.usefixtures("only_sound")
def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: Any) -> None:
    """A folder in Kaldi's form: of its sentences only the first few would be left in `text`."""
    formats.write_kaldi(tmp_path / formats.SCP, RECORDINGS)
    formats.write_kaldi(tmp_path / formats.TEXT, dict.fromkeys(RECORDINGS, "Some words."))
    before = contents(tmp_path)
    arguments = ["--dataset", tmp_path, "--limit", 1, "--output", tmp_path]
    arguments += ["--generated", CORPUS / "wavs"]
    assert evaluate(*arguments, "--overwrite") == 1
    assert f"would be written over {tmp_path / 'text'}, which is read" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    ["half a line", '{"id": "a"}\n', '["a", 1]\n', '["settings", 1]\n', "[" * 50_000 + "\n"],
)
def test_a_journal_of_another_program_is_not_written_to(content: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(content)
    refused = "is damaged|does not begin with the settings of such work"
    with pytest.raises(UserError, match=refused):
        Journal(path, {})
    assert path.read_text() == content


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_text('["a", 1]\nnonsense\n["b", 2]\n')
    refused = r"progress\.jsonl:2: line: 'nonsense' is damaged; delete the line"
    with pytest.raises(UserError, match=refused):
        Journal(tmp_path / "progress.jsonl", {})
