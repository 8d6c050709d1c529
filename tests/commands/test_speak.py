"""`higgs-audio speak`: a text, a stream, a list into a folder that the same command goes on in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from conftest import CORPUS

from plugins.audio.marks import Mark, mark_in
from plugins.cli import main

VOICE = CORPUS / "wavs" / "DEMO-0002.flac"


def speak(tiny: Path, *arguments: Any) -> int:
    flags = ["--model", tiny, "--temperature", 0, "--max_audio_s", 0.4]
    return main(["speak", *map(str, [*flags, *arguments])])


class Listed:
    """A list beside its folder, and what the command says of them."""

    def __init__(self, tiny: Path, folder: Path, capsys: Any) -> None:
        self.tiny, self.capsys = tiny, capsys
        self.path, self.folder = folder / "lines.jsonl", folder / "out"
        shutil.copy(VOICE, folder / "voice.flac")
        clone = {"reference_audio": "voice.flac", "reference_text": "Glue."}
        self.lines: list[dict[str, Any]] = [
            {"text": "Hello."},
            {"id": "cloned", "text": "Hi.", **clone},
            {"id": "scene", "text": "One more.", "scene_description": "A hall", "seed": 3},
        ]

    def speak(self) -> tuple[int, str, str]:
        """Exit code, the last line of stdout, stderr."""
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        files = ("--input", self.path, "--output_dir", self.folder)
        code = speak(self.tiny, *files, "--batch_size", 2)
        captured = self.capsys.readouterr()
        return code, captured.out.rpartition("out: ")[2], captured.err


@pytest.fixture
def listed(tiny: Path, tmp_path: Path, capsys: Any) -> Listed:
    return Listed(tiny, tmp_path, capsys)


def test_a_list_is_spoken_into_a_folder(listed: Listed, tmp_path: Path) -> None:
    listed.lines.insert(2, {"id": "none", "text": "..."})
    code, out, err = listed.speak()
    assert (code, out) == (1, "3 spoken (3 truncated), 0 there already (0 truncated), 1 failed\n")
    assert f"failed: {listed.path}:3: request: text: '...' has no letter or digit" in err
    results = (listed.folder / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in results]
    assert [row["id"] for row in rows] == ["00001", "cloned", "scene"]
    assert {(row["duration_s"], row["stopped"]) for row in rows} == {(0.4, False)}
    assert sf.info(listed.folder / "cloned.wav").frames == 9600
    alone = tmp_path / "alone.wav"
    clone = ("--reference_audio", VOICE, "--reference_text", "Glue.")
    assert speak(listed.tiny, "--text", "Hi.", *clone, "--output", alone) == 3
    assert alone.read_bytes() == (listed.folder / "cloned.wav").read_bytes()
    assert mark_in(alone) == Mark.of_today("model", None)
    unmarked = tmp_path / "unmarked.ogg"
    assert speak(listed.tiny, "--text", "Hi.", "--no-marks", "--output", unmarked) == 3
    assert mark_in(unmarked) is None


def test_the_same_command_goes_on(listed: Listed) -> None:
    listed.lines.append({"id": "none", "text": "..."})
    assert listed.speak()[0] == 1
    listed.lines[3]["text"] = "Mended."
    listed.lines[0]["text"] = "Changed."
    (listed.folder / "scene.wav").unlink()
    with (listed.folder / "results.jsonl").open("ab") as file:
        # Of a power cut, and of a kill.
        file.write(bytes(20) + b'\n[1]\n{"id": [], "key"\n{"id": "killed wh')
    code, out, err = listed.speak()
    assert (code, "failed:" in err) == (3, False)
    assert out == "3 spoken (3 truncated), 1 there already (1 truncated), 0 failed\n"
    assert listed.speak()[1] == "0 spoken (0 truncated), 4 there already (4 truncated), 0 failed\n"
    # A file that is no longer what was written is spoken again.
    cloned = (listed.folder / "cloned.wav").read_bytes()
    (listed.folder / "cloned.wav").write_bytes(cloned[:1000])
    assert listed.speak()[1] == "1 spoken (1 truncated), 3 there already (3 truncated), 0 failed\n"
    assert (listed.folder / "cloned.wav").read_bytes() == cloned


def test_files_of_others_are_not_written_over(listed: Listed) -> None:
    listed.speak()
    mine = listed.folder / "mine.wav"
    mine.write_text("a recording")
    listed.lines.append({"id": "mine", "text": "Hello."})
    code, _, err = listed.speak()
    assert (code, err.splitlines()[-1]) == (
        1,
        f"error: {listed.path}:4: id: 'mine' would be written over {mine}, which results.jsonl"
        " there does not list; name another --output_dir, or move the file",
    )
    assert mine.read_text() == "a recording"
    results = listed.folder / "results.jsonl"
    for content in ("of another program", "of another program\n", '{"text": "x"}\n'):
        results.write_text(content)
        message = "holds a results.jsonl that is not from this command; name another folder"
        assert message in listed.speak()[2]
        assert results.read_text() == content


def test_bad_lists_are_refused_before_anything_is_spoken(
    tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "lines.jsonl"
    for line, message in (
        ("{", "line: '{' is no JSON"),
        ('{"id": "a"}', "is missing; write"),
        ('{"text": "x", "txet": 1}', "column: 'txet' is unknown; did you mean 'text'"),
        ('{"text": "x", "id": "../x"}', "id: '../x' is no name for a file"),
        ('{"text": "x", "reference_audio": "gone.wav"}', "reference_audio: 'gone.wav' not found"),
    ):
        path.write_text('{"text": "Hello."}\n' + line + "\n")
        assert speak(tiny, "--input", path, "--output_dir", tmp_path / "out") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {path}:2: ")
        assert message in error
        assert not list(tmp_path.glob("out/*.wav"))
    for flags, message in (
        ([], "give --text, or a list with --input"),
        (["--text", "x", "--input", path], "give one of the two"),
        (["--input", path], "is a list, and its speeches need a folder; give --output_dir"),
        (["--input", path, "--stream", "-"], "cannot be streamed; give --output_dir"),
    ):
        assert speak(tiny, *flags) == 1
        assert message in capsys.readouterr().err


def test_a_stream_is_raw_samples(tiny: Path, tmp_path: Path, capfdbinary: Any) -> None:
    assert speak(tiny, "--text", "Hello.", "--output", tmp_path / "whole.wav") == 3
    capfdbinary.readouterr()
    assert speak(tiny, "--text", "Hello.", "--stream", tmp_path / "raw.pcm") == 3
    samples = np.frombuffer((tmp_path / "raw.pcm").read_bytes(), "<i2")
    whole, _ = sf.read(tmp_path / "whole.wav", dtype="int16")
    assert np.abs(samples.astype(int) - whole).max() <= 4
    assert b"raw.pcm: 0.40 s, 10 frames" in capfdbinary.readouterr().err
