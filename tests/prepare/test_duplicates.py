"""One recording is trained on once, and one id names one clip and one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.commands import TEXT, ids, listed, prepare, read, reasons, speech, table

from plugins.files.disk import file_hash
from plugins.prepare import rows


@pytest.mark.parametrize("level", ["header", "full"])
def test_one_recording_is_trained_on_once(tmp_path, level):
    """The same file under two names, and one recording as WAV and FLAC, which only the samples
    tell."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = ["a.wav", "b.wav", "c.flac", "d.wav"]
    speech(root / "a.wav", seed=1)
    (root / "b.wav").write_bytes((root / "a.wav").read_bytes())
    samples, rate = sf.read(root / "a.wav")
    sf.write(root / "c.flac", samples, rate)
    speech(root / "d.wav", seed=2)
    arguments = [*table(root, names), "--output_file", output, "--validate", level]
    assert prepare(*arguments) == 0
    copies = ["b.wav"] if level == "header" else ["b.wav", "c.flac"]
    assert reasons(output) == [(name, "duplicate audio (as a.wav)") for name in copies]
    assert ids(output) == [name for name in names if name not in copies]


def test_equal_edges_are_no_duplicate(tmp_path):
    """Headers-only mode hashes ends of files: recordings that differ in between must both stay."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    samples, rate = sf.read(speech(root / "a.wav", 2.0))
    samples[20_000:20_010] = 0
    sf.write(root / "b.wav", samples, rate)
    arguments = [*table(root, ["a.wav", "b.wav"]), "--output_file", output, "--validate", "header"]
    assert prepare(*arguments) == 0
    assert ids(output) == ["a.wav", "b.wav"]


@pytest.mark.parametrize("count", [40, 80])
def test_clips_of_equal_edges_are_compared_in_linear_time(tmp_path, monkeypatch, count):
    """800 clips with silent ends took 97 s, each being compared with all before it."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = [f"{number}.wav" for number in range(count)]
    for number, name in enumerate(names):
        speech(root / name, 1.2, seed=number % (count - 10), pad_s=0.2)
    speech(root / "alone.wav", 1.3)
    reads = []

    def counted(path: str) -> str:
        reads.append(path)
        return file_hash(path)

    monkeypatch.setattr(rows, "file_hash", counted)
    arguments = [*table(root, [*names, "alone.wav"]), "--output_file", output]
    assert prepare(*arguments, "--validate", "header") == 0
    twins = [(names[-10 + i], f"duplicate audio (as {i}.wav)") for i in range(10)]
    assert reasons(output) == twins
    assert sorted(reads) == sorted(str(root / name) for name in names), "each is read once"


def test_a_clip_that_vanishes_before_it_is_compared(tmp_path, monkeypatch):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    for number in range(3):
        speech(root / f"{number}.wav", seed=number, pad_s=0.3)

    def gone(path: str) -> str:
        if path.endswith("1.wav"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return file_hash(path)

    monkeypatch.setattr(rows, "file_hash", gone)
    arguments = [*table(root, ["0.wav", "1.wav", "2.wav"]), "--output_file", output]
    assert prepare(*arguments, "--validate", "header") == 0
    assert reasons(output) == [("1.wav", "may not be read (No such file or directory)")]


def named(root: Path, clips: dict[str, str]) -> list[Any]:
    """Clips (file -> id), each of its own sound."""
    for number, file in enumerate(clips):
        speech(root / file, seed=10 * number)
    lines = [f"{file},{TEXT},{id_}" for file, id_ in clips.items()]
    return [*listed(root, "audio,text,id", *lines), "--id_column", "id"]


def test_one_id_is_used_once(tmp_path):
    """The row of the first would be trained on the sound of the second, written over its file."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    arguments = [*named(root, {"0.wav": "x", "1.wav": "x"}), "--output_file", output]
    assert prepare(*arguments, "--audio_output", tmp_path / "audio") == 0
    (row,) = read(output)
    first, _ = sf.read(root / "0.wav")
    assert np.abs(sf.read(row["audios"][0])[0] - first).max() < 1e-3
    assert reasons(output) == [("x", f"duplicate id (as {root}/meta.csv:2)")]


def test_an_id_of_an_augmented_copy_is_refused(tmp_path):
    """Row and file of the one would be those of the other, and which of them depended on the order
    of the workers."""
    output = tmp_path / "train.jsonl"
    clips = ["y-speed0.9", "x-speed1.1", "x-speed0.9", "x"]
    arguments = named(tmp_path / "corpus", {f"{name}.wav": name for name in clips})
    arguments += ["--output_file", output, "--audio_output", tmp_path / "audio"]
    assert prepare(*arguments, "--speed_factors", "0.9") == 0
    assert reasons(output) == [("x-speed0.9", "duplicate id (as the augmented copy of x)")]
    expected = []
    for name in ["y-speed0.9", "x-speed1.1", "x"]:
        expected += [name, f"{name}-speed0.9"]
    assert ids(output) == expected
    assert len({row["audios"][0] for row in read(output)}) == 6
    assert prepare(*arguments) == 0
    assert sorted(ids(output)) == sorted(clips)
