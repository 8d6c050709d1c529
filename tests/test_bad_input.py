"""Wrong input through the commands: one line that names file, row, field, value and remedy, and an
exit code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import corpus_rows, write_jsonl
from helpers.sft import BIN, flags, run, swift

from plugins.corpora.canonical import RowError, parse_row
from plugins.errors import UserError, did_you_mean, problem
from plugins.train import main


def row(**changes: Any) -> dict[str, Any]:
    return {**corpus_rows(1)[0], **changes}


# The second line of a file: what is wrong with it, and what is said of it.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "missing audio": (
        row(audios=["gone.wav"]),
        r"audios\[0\]: 'gone\.wav' not found \(looked in .*; ",
    ),
    "empty text": (
        row(messages=[{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]),
        r"messages\[0\]\.content: '' is empty; give the text to speak",
    ),
    "wrong codebook count": (
        row(audio_codes=[[[1, 2]]]),
        r"audio_codes\[0\]: \[1, 2\] is not \[F\]\[8\]; give",
    ),
    "two audios for one turn": (
        row(audios=row()["audios"] * 2),
        r"audios: .* are 2 clips for 1 assistant turn\(s\) that take one; give",
    ),
    "unknown column": (row(audoi="x"), r"column: 'audoi' is unknown; did you mean 'audio'"),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_row_stops_the_run_before_its_first_step(case: str, tiny: Path, tmp_path: Path) -> None:
    bad, expected = ROWS[case]
    dataset = write_jsonl(tmp_path / "train.jsonl", [row(), bad])
    with pytest.raises(UserError, match=rf"^{dataset}:2: {expected}"):
        main(flags(tiny, dataset, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("checkpoint-*"))


def test_a_clip_that_breaks_off_is_named_when_it_is_decoded(tiny: Path, tmp_path: Path) -> None:
    """Its header is whole, so only decoding finds out: the row must be named then as well."""
    clip = Path(row()["audios"][0]).read_bytes()
    (tmp_path / "cut.flac").write_bytes(clip[: len(clip) // 2])
    dataset = write_jsonl(tmp_path / "train.jsonl", [row(audios=["cut.flac"])])
    with pytest.raises(UserError, match=rf"{dataset}:1: audio: '{tmp_path}/cut\.flac' "):
        main(flags(tiny, dataset, tmp_path / "out"))


def test_row_longer_than_max_length_is_named_before_the_first_step(
    tiny: Path, tmp_path: Path
) -> None:
    """MS-SWIFT would drop it without a word, or stop in mid-epoch without naming it."""
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(3))
    # The first two rows fit.
    told = rf"{dataset}:3: row: \d+ tokens and frames are more than max_length 130;"
    with pytest.raises(UserError, match=told):
        main(flags(tiny, dataset, tmp_path / "out", max_length=130))


def test_bad_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """One of the faults of tests/model/test_checkpoint.py."""
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    (model / "model.safetensors").unlink()
    dataset = write_jsonl(tmp_path / "train.jsonl", [row()])
    with pytest.raises(UserError, match=rf"^{model}: weights: '\*\.safetensors' not found; "):
        main(flags(model, dataset, tmp_path / "out"))


def test_unknown_knob_in_model_kwargs(tiny: Path, tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "train.jsonl", [row()])
    told = r"^options: model_kwargs: 'audio_learing_rate' is not a .*did you mean"
    with pytest.raises(UserError, match=told):
        main(flags(tiny, dataset, tmp_path / "out", model_kwargs='{"audio_learing_rate": 1e-4}'))


@pytest.mark.slow
def test_our_command_prints_the_line_alone_and_exits_with_1(tiny: Path, tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "train.jsonl", [row(audios=["gone.wav"])])
    command = (str(BIN / "higgs-audio"), "sft", *flags(tiny, dataset, tmp_path / "out"))
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"error: {dataset}:1: audios[0]: 'gone.wav' not found")


@pytest.mark.slow
def test_plain_swift_ends_with_the_line(tiny: Path, tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "train.jsonl", [row(audios=["gone.wav"])])
    done = swift("sft", *flags(tiny, dataset, tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 1
    # MS-SWIFT shows its traceback above.
    last_line = done.stderr.strip().splitlines()[-1]
    assert f"{dataset}:1: audios[0]: 'gone.wav' not found" in last_line


def test_a_message_holds_no_none_no_empty_list_and_no_endless_one() -> None:
    """ "`--codec: None has no value; use one of `", and five hundred flags for a mistyped one."""
    missing = problem(source="options", field="text", value=None, reason="is missing", remedy="x")
    assert str(missing) == "options: text is missing; x"
    assert did_you_mean("alice", []) == "leave it out"
    assert did_you_mean("x", map(str, range(1000, 1500))) == "check its spelling"
    assert did_you_mean("tain", ["train", "test"]) == "did you mean 'train'?"


def test_remedies_name_no_column_that_nobody_writes() -> None:
    with pytest.raises(RowError) as error:
        parse_row('{"zzzzzz": 1}')
    assert "audio_codes" in error.value.remedy
    assert "keys" not in error.value.remedy
    assert "row_source" not in error.value.remedy
