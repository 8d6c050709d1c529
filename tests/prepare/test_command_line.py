"""The command as a shell and a script see it: flags, exit codes, one-line errors, the summary, and
a machine without torch."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT
from helpers.commands import (
    corpus,
    ids,
    listed,
    one_line_error,
    prepare,
    read,
    speech,
    table,
)

from plugins.cli import main as command
from plugins.prepare import clips
from plugins.prepare.rows import write_files

LISTENING = "--check_transcripts or --dataset_type recordings"


def test_exit_codes(tmp_path, capsys):
    """0 rows, 1 unusable input, 2 wrong usage, 3 rejections with --strict."""
    output = tmp_path / "out" / "train.jsonl"
    good = [*corpus(tmp_path / "good", 2), "--output_file", output]
    assert prepare(*good, "--strict") == 0
    old = output.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        prepare(*good, "--frobnicate")
    speech(tmp_path / "bad" / "short.wav", 0.3)
    ok = speech(tmp_path / "bad" / "ok.wav")
    bad = [*table(ok.parent, ["ok.wav", "short.wav"]), "--output_file", output, "--validate"]
    capsys.readouterr()
    assert prepare(*bad, "--min_duration_s", "20") == 1
    error = one_line_error(capsys)
    assert error.startswith("error: custom: input_dir: ")
    assert "holds no usable clip (rejected: 2 duration below min_duration_s)" in error
    assert error.endswith(f"see {tmp_path}/out/train.rejected.jsonl")
    assert output.read_bytes() == old, "an empty file would fail an hour later, on the GPU"
    assert len(read(output.with_suffix(".rejected.jsonl"))) == 2
    assert prepare(*bad, "--strict") == 3
    assert ids(output) == ["ok.wav"]
    assert prepare(*bad) == 0
    assert not [name for name in os.listdir(output.parent) if name.startswith(".")]


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset_type", "ljspeech", "--shuffle"],
        ["--dataset_type", "custom"],
        ["--dataset_type", "gpt_sovits"],
        ["--dataset_type", "ljspeech", "--val_ratio", "1.5"],
        ["--dataset_type", "ljspeech", "--val_ratio", "many"],
        ["--dataset_type", "ljspeech", "--val", "0.1"],
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, flags):
    """Abbreviations would change their meaning with new flags."""
    with pytest.raises(SystemExit, match="2"):
        prepare(*flags, "--input_dir", tmp_path, "--output_file", tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "flag",
    [
        ["--mic", "2"],
        ["--hf_split", "train"],
        ["--list_file", "x"],
        ["--csv_file", "x"],
        ["--text_column", "x"],
    ],
)
def test_a_flag_of_another_corpus_is_wrong_usage(tmp_path, capsys, flag):
    """A flag that has no effect is refused rather than ignored."""
    arguments = ["--dataset_type", "libritts", "--input_dir", tmp_path, *flag]
    with pytest.raises(SystemExit, match="2"):
        prepare(*arguments, "--output_file", tmp_path / "train.jsonl")
    assert f"error: {flag[0]} belongs to --dataset_type " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "needed"),
    [
        (["--split_by_speaker"], "--split"),
        (["--test_ratio", "0.1"], "--split"),
        (["--val_ratio", "0.05"], "--split"),
        (["--min_similarity", "0.7"], "--references"),
        (["--without_reference", "0.1"], "--references"),
        (["--codec", "x"], "--encode_codes"),
        (["--codes_dir", "x"], "--encode_codes"),
        (["--device", "cpu"], f"--encode_codes or {LISTENING}"),
        (["--asr", "x"], LISTENING),
        (["--language", "de"], LISTENING),
        (["--beam", "5"], LISTENING),
        (["--trim_below_db", "30"], "--trim"),
        (["--trim", "vad", "--trim_below_db", "30"], "--trim energy"),
        (["--audio_output", "x", "--trim_padding_s", "0.1"], "--trim"),
        (["--speaker_column", "x"], "--single_speaker"),
    ],
)
def test_a_flag_without_effect_is_wrong_usage(tmp_path, capsys, flag, needed):
    """Also with the value of its default: who writes it wants something. They were ignored."""
    arguments = ["--dataset_type", "custom", "--input_dir", tmp_path, "--csv_file", "x", *flag]
    if needed == "--single_speaker":
        arguments += [needed, "anna"]
    with pytest.raises(SystemExit, match="2"):
        prepare(*arguments, "--output_file", tmp_path / "train.jsonl")
    error = capsys.readouterr().err
    assert re.search(rf"error: --\w+ has no effect with(out)? {needed}\n$", error)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--min_duration_s", "0.5"], "add --validate"),
        (["--max_clipped_share", "0.5"], "add --validate full"),
        (["--validate", "header", "--max_silence_share", "0.9"], "add --validate full"),
    ],
)
def test_a_limit_that_nothing_is_measured_by_is_told(tmp_path, capsys, flags, remedy):
    arguments = [*corpus(tmp_path / "corpus", 1), "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments, *flags) == 1
    assert one_line_error(capsys).endswith(f"has no effect: nothing is measured; {remedy}")
    assert prepare(*arguments, *flags, "--validate") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--trim", "energy"],
            "command line: --trim: 'energy' changes audio, and originals are never changed",
        ),
        (
            ["--min_duration_s", "40"],
            "command line: --min_duration_s: 40.0 is above --max_duration_s (30); swap",
        ),
        (
            ["--audio_output", "x", "--speed_factors", "9"],
            "command line: --speed_factors: (9.0,) is outside",
        ),
        (["--csv_file", "gone.csv"], "custom: csv_file: 'gone.csv' not found"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    arguments = [*corpus(tmp_path / "corpus", 2), "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments, *flags) == 1
    assert one_line_error(capsys).startswith(f"error: {message}")
    assert not (tmp_path / "train.jsonl").exists()


def test_without_ray_the_remedy_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = [*corpus(tmp_path / "corpus", 2), "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments, "--executor", "ray") == 1
    error = "error: --executor: package: 'ray' is not installed; run: pip install 'ray[data]'"
    assert one_line_error(capsys) == error
    assert not (tmp_path / "train.jsonl").exists()


def test_help_documents_the_exit_codes(capsys):
    """Scripts rely on them."""
    with pytest.raises(SystemExit, match="0"):
        prepare("--help")
    assert "exit codes: 0 rows written, 1 unusable input" in capsys.readouterr().out


# --- the output ---


def test_output_must_be_jsonl(tmp_path, capsys):
    """`--output_file meta.csv` must not overwrite the user's metadata, and MS-SWIFT would read the
    rows as CSV."""
    arguments = corpus(tmp_path / "corpus", 1)
    csv = tmp_path / "corpus" / "meta.csv"
    before = csv.read_bytes()
    assert prepare(*arguments, "--output_file", csv) == 1
    assert "does not end in .jsonl" in one_line_error(capsys)
    assert csv.read_bytes() == before


def test_output_below_a_file_is_told_in_one_line(tmp_path, capsys):
    """Errors of the operating system are the user's too: no traceback."""
    (tmp_path / "file").touch()
    arguments = corpus(tmp_path / "corpus", 1)
    assert prepare(*arguments, "--output_file", tmp_path / "file" / "train.jsonl") == 1
    assert one_line_error(capsys).startswith(f"error: {tmp_path}/file")


def test_an_error_midway_leaves_every_old_file_untouched(tmp_path):
    """Train rows of a new run beside validation rows of an old one would share recordings."""
    first, second = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    first.write_text("old train")
    second.write_text("old val")

    def failing():
        yield {"id": "a"}
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_files({first: [{"id": "b"}], second: failing()})
    assert (first.read_text(), second.read_text()) == ("old train", "old val")
    assert sorted(os.listdir(tmp_path)) == ["train.jsonl", "val.jsonl"]


def test_an_interrupted_run_leaves_the_old_output(tmp_path, monkeypatch):
    """Ctrl-C in the middle of the decoding."""
    arguments, output = corpus(tmp_path / "corpus", 3), tmp_path / "train.jsonl"
    output.write_text("old")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(clips.Source, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(*arguments, "--output_file", output, "--validate")
    assert output.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [".train.jsonl.journal", "corpus", "train.jsonl"]


# --- the summary ---


def test_summary_with_validate(tmp_path, capsys):
    """30 clips of 1.2 s are 0.01 h."""
    arguments = [*corpus(tmp_path / "corpus", 30), "--output_file", tmp_path / "my train.jsonl"]
    assert prepare(*arguments, "--validate") == 0
    assert capsys.readouterr().out == textwrap.dedent(f"""\
        rows      30 train, 0 validation
        hours     0.01
        speakers  2
        cloning   0 rows with a reference
        rejected  0
        written   {tmp_path}/my train.rejected.jsonl
        written   {tmp_path}/my train.report.json
        written   {tmp_path}/my train.report.png
        written   {tmp_path}/my train.report.txt
        written   {tmp_path}/my train.report.html
        written   {tmp_path}/my train.jsonl
        next      ./train_higgs_audio.sh --dataset '{tmp_path}/my train.jsonl'
        """)


def test_hours_of_unread_files_are_not_invented(tmp_path, capsys):
    for number in range(3):
        speech(tmp_path / "clips" / f"{number}.wav", seed=number)
    arguments = listed(tmp_path / "clips", "audio,text,who", "0,A,x", "1,B,y", "2,C,")
    arguments += ["--speaker_column", "who", "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments) == 0
    summary = capsys.readouterr().out
    assert "hours     not measured (--validate does)\n" in summary
    assert "speakers  2\n" in summary


# --- the process ---


def test_script_runs_where_torch_swift_and_transformers_cannot_be_imported(tmp_path):
    """Corpora are prepared on machines without a GPU stack; one careless import would close that
    way. Started from a foreign folder."""
    script = str(ROOT / "prepare_dataset.py")
    flags = [*corpus(tmp_path / "corpus", 2), "--output_file", tmp_path / "train.jsonl"]
    flags += ["--split", "--validate"]
    program = textwrap.dedent("""
        import runpy, sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"torch", "torchaudio", "swift", "transformers"}:
                    raise ImportError(f"{name} was imported")

        sys.meta_path.insert(0, Blocker())
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """)
    command = [sys.executable, "-c", program, script, *map(str, flags)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read(tmp_path / "train.jsonl")) == len(read(tmp_path / "val.jsonl")) == 1
    assert (tmp_path / "train.report.png").read_bytes().startswith(b"\x89PNG")


def test_higgs_audio_prepare_is_the_same(tmp_path, capsys):
    """One command holds everything; prepare_dataset.py is a face of it."""
    assert command(["prepare", "--dataset_type", "folder", "--input_dir", str(tmp_path / "gone"),
                    "--output_file", str(tmp_path / "x.jsonl")]) == 1  # fmt: skip
    assert "--input_dir: folder: " in one_line_error(capsys)
    with pytest.raises(SystemExit, match="0"):
        command(["prepare", "--help"])
    assert capsys.readouterr().out.startswith("usage: higgs-audio prepare [-h] --dataset_type")


def test_a_device_that_is_not_there_is_one_line(tmp_path, capsys):
    clips = corpus(tmp_path / "corpus", 2)
    for device in ("cuda", "cuda:99", "xyz", "meta:x"):
        flags = ["--encode_codes", "--device", device]
        assert prepare(*clips, "--output_file", tmp_path / "train.jsonl", *flags) == 1
        assert f"device: '{device}' cannot be used" in one_line_error(capsys)


def test_the_wrong_python_is_told_which_one_to_use(tmp_path):
    """`ModuleNotFoundError: soundfile`, where nobody had activated the environment."""
    bare = [sys.executable, "-I", "-S", str(ROOT / "prepare_dataset.py")]  # without any package
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: python: {sys.executable} has no package ")
    assert "; run: " in line
