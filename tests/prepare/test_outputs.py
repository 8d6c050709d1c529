"""What a preparation writes is its own: no file of another one, of the corpus or of another program
is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from helpers.commands import TEXT, contents, corpus, listed, prepare, read, speech

from plugins.prepare.run import journal_of

HEX = "0123456789abcdef" * 2
SPLIT = ["--split", "--val_ratio", "0.4"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The arguments that name a corpus of four clips."""
    return corpus(tmp_path_factory.mktemp("corpus"), 4)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: Any) -> str:
    """The line that says why nothing was done: every file is as it was, and no journal was left."""
    before = contents(folder)
    capsys.readouterr()
    assert prepare(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert contents(folder) == before
    return line.removeprefix("error: ")


# --- two output files of one folder ---


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("x_train", "x", "x_val"),
        ("x", "x_train", "x_val"),
        ("x", "x_val", "x_val"),
        ("x_val", "x", "x_val"),
        ("train", "val", "val"),
        ("x", "x.rejected", "x.rejected"),
    ],
)
def test_two_preparations_do_not_share_a_file(first, second, shared, clips, tmp_path, capsys):
    """x_train.jsonl and x.jsonl both have x_val.jsonl: the validation rows of the first were
    lost."""
    assert prepare(*clips, *SPLIT, "--output_file", tmp_path / f"{first}.jsonl") == 0
    output = tmp_path / f"{second}.jsonl"
    assert refused(capsys, tmp_path, *clips, *SPLIT, "--output_file", output) == (
        f"--output_file: path: '{output}' shares {shared}.jsonl with the preparation of"
        f" {first}.jsonl in the same folder; name another file or folder"
    )
    # It is still its own.
    assert prepare(*clips, *SPLIT, "--output_file", tmp_path / f"{first}.jsonl") == 0


def test_a_preparation_that_has_begun_counts(clips, tmp_path, capsys):
    """Also one that was killed: it will write its files when it is started again."""
    with journal_of(tmp_path / "x_train.jsonl"):
        assert "shares x_val.jsonl" in refused(
            capsys, tmp_path, *clips, *SPLIT, "--output_file", tmp_path / "x.jsonl"
        )


def test_names_that_are_not_shared_are_taken(clips, tmp_path):
    """Without --split there is no x_val.jsonl of x.jsonl."""
    assert prepare(*clips, *SPLIT, "--validate", "--output_file", tmp_path / "x_train.jsonl") == 0
    before = contents(tmp_path)
    assert prepare(*clips, "--validate", "--output_file", tmp_path / "x.jsonl") == 0
    assert contents(tmp_path).items() > before.items()


def test_what_lies_where_a_derived_file_goes_is_kept(clips, tmp_path, capsys):
    """Validation rows that somebody made by hand; a transcript that is called like a report."""
    for name, flags in (("x_val.jsonl", SPLIT), ("x.report.txt", ["--validate"])):
        (tmp_path / name).write_text("of the user\n")
        line = refused(capsys, tmp_path, *clips, *flags, "--output_file", tmp_path / "x.jsonl")
        assert f"comes with {name}, which is there already" in line
        (tmp_path / name).unlink()


def test_the_rows_that_are_read_are_not_written(clips, tmp_path, capsys):
    """In place, the rejected ones would be gone; and so would the rows of a dataset whose file has
    that name."""
    assert prepare(*clips, *SPLIT, "--output_file", tmp_path / "x.jsonl") == 0
    os.symlink(tmp_path / "x_val.jsonl", tmp_path / "link.jsonl")
    for name in ("x.jsonl", "x_val.jsonl", "link.jsonl"):
        again = ["--dataset_type", "jsonl", "--input_dir", tmp_path, *SPLIT]
        again += ["--jsonl_file", tmp_path / name, "--output_file", tmp_path / "x.jsonl"]
        assert "a file of the corpus" in refused(capsys, tmp_path, *again)
    root = tmp_path / "dataset"
    write_jsonl(root / "train.jsonl", [{"text": "Hello.", "audio": str(speech(root / "a.wav"))}])
    dataset = ["--dataset_type", "huggingface", "--input_dir", root]
    line = refused(capsys, tmp_path, *dataset, "--output_file", root / "train.jsonl")
    assert "a file of the corpus" in line


# --- the folder of copies ---


def test_half_written_files_of_others_are_kept(clips, tmp_path):
    """Every hidden .tmp below the folder was removed; now the names that this run would write,
    whole to the last digit, and only those."""
    folder, output = tmp_path / "24k", tmp_path / "x.jsonl"
    assert prepare(*clips, "--audio_output", folder, "--output_file", output) == 0
    (copy, *_) = [Path(row["audios"][0]) for row in read(output)]
    ours = [folder / f".{copy.name}.{HEX}.tmp", tmp_path / f".x.jsonl.{HEX}.tmp"]
    (folder / "deeper").mkdir()
    others = [
        folder / ".editor.tmp",
        folder / f".{copy.name}.tmp",
        folder / f".{copy.name}.{HEX[:-1]}.tmp",
        folder / f".{copy.name}.{HEX}.tmp.tmp",
        folder / f".song.flac.{HEX}.tmp",
        folder / "deeper" / f".{copy.name}.{HEX}.tmp",
        tmp_path / ".x.jsonl.backup.tmp",
        tmp_path / f".y.jsonl.{HEX}.tmp",
    ]
    for path in [*ours, *others]:
        path.write_bytes(b"half")
    assert prepare(*clips, "--audio_output", folder, "--output_file", output) == 0
    assert not [path for path in ours if path.exists()]
    assert [path.read_bytes() for path in others] == [b"half"] * len(others)


def test_a_folder_holds_the_copies_of_one_preparation(clips, tmp_path, capsys):
    """Two corpora may have one id: the rows of the first named recordings of the second."""
    folder = tmp_path / "24k"
    assert prepare(*clips, "--audio_output", folder, "--output_file", tmp_path / "a.jsonl") == 0
    other = corpus(tmp_path / "other", 2, rate=16_000)
    other += ["--audio_output", folder, "--output_file", tmp_path / "b.jsonl"]
    assert refused(capsys, tmp_path, *other) == (
        f"--audio_output: path: '{folder}' holds the copies of another preparation"
        f" ({tmp_path / 'a.jsonl'}); name a folder of its own"
    )
    # Moved together, they are the same preparation.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.iterdir():
        if path.name not in ("moved", "other"):
            shutil.move(path, moved)
    again = ["--audio_output", moved / "24k", "--output_file", moved / "a.jsonl"]
    assert prepare(*clips, *again) == 0


def test_a_copy_takes_the_place_of_no_other_file(tmp_path, capsys):
    """Of no original, in a folder of its own or not, and of nothing that lay there before."""
    folder, output = tmp_path / "24k", tmp_path / "x.jsonl"
    speech(folder / "a.flac")
    flags = ["--id_column", "id", "--audio_output", folder, "--output_file", output]

    def arguments(clip: Path) -> list[Any]:
        line = f"{clip},{TEXT},{clip.stem}"
        return [*listed(tmp_path / "corpus", "audio,text,id", line), *flags]

    a = speech(tmp_path / "corpus" / "a.wav")
    line = refused(capsys, tmp_path, *arguments(a))
    assert "holds a.flac already, which no preparation has noted as its own" in line
    b = speech(tmp_path / "corpus" / "b.wav")
    assert prepare(*arguments(b)) == 0
    line = refused(capsys, tmp_path, *arguments(folder / "a.flac"))
    assert f"would be written over {folder / 'a.flac'}, a recording of the corpus" in line
