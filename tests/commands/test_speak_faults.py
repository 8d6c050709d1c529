"""`higgs-audio speak`: what is refused before a model is loaded, broken outputs, and lists that
strangers wrote."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
from conftest import CORPUS, ROOT

from plugins.cli import main

VOICE = CORPUS / "wavs" / "DEMO-0002.flac"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading one is an error: what is wrong has to be found before."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("plugins.model.load.base_and_adapters", loaded)


def speak(*arguments: Any) -> int:
    return main(["speak", "--model", "unused", *map(str, arguments)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "there is nothing to speak; give --text or --input"),
        (["--temperature", "nan"], "temperature: nan is no number"),
        (["--temperature", "inf"], "temperature: inf is no number"),
        (["--temperature", "-1"], "temperature: -1.0 is negative"),
        (["--top_p", "nan"], "top_p: nan is outside (0, 1]"),
        (["--top_k", "0"], "top_k: 0 is below 1"),
        (["--top_k", str(2**70)], "top_k: 1180591620717411303424 is above 2147483647"),
        (["--seed", str(2**70)], "seed: 1180591620717411303424 is above 18446744073709551615"),
        (["--seed", str(-(2**70))], "seed: -1180591620717411303424 is below -9223372036854775808"),
        (["--max_audio_s", "nan"], "max_audio_s: nan is no number of seconds up to a day"),
        (["--max_audio_s", "inf"], "max_audio_s: inf is no number of seconds up to a day"),
        (["--max_audio_s", "1e308"], "max_audio_s: 1e+308 is no number of seconds up to a day"),
        (["--max_audio_s", "0"], "max_audio_s: 0.0 is not positive"),
        (["--device", "xyz"], "device: 'xyz' cannot be used (Expected one of cpu"),
        (["--device", "cuda"], "device: 'cuda' cannot be used (torch finds no GPU here); give cpu"),
        (["--device", "cuda:7"], "device: 'cuda:7' cannot be used"),
        (["--device", "meta"], "device: 'meta' cannot be used"),
        (["--device", ""], "device: '' cannot be used"),
        (["--output", "o.m4a"], "'o.m4a' is no format that speech is written in; end it in .wav"),
        (["--output", "o.wav.txt"], "end it in .wav, .flac, .ogg, .mp3"),
        (["--output", "/proc/o.wav"], "output: '/proc/o.wav' cannot be written"),
        (["--output", "/dev/null/o.wav"], "cannot be written (Not a directory); name another"),
        (["--output", "."], "output: '.' is a folder; name another place"),
        (["--output", "/dev/null"], "output: '/dev/null' is not a regular file"),
        (["--output", f"{'x' * 250}.wav"], "cannot be written (File name too long)"),
        (["--stream", "/proc/o.pcm"], "stream: '/proc/o.pcm' cannot be written"),
        (["--stream", "."], "stream: '.' is a folder"),
    ],
)
def test_what_cannot_be_is_found_before_a_model_is_loaded(
    no_model: None, capsys: Any, flags: list[str], message: str
) -> None:
    text = ["--text", "Hello."] if flags else []
    assert speak(*text, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("name", ["o.wav", "o.flac", "o.ogg", "o.MP3", "o", "new/o.flac"])
def test_a_file_is_what_its_suffix_says(tiny: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    flags = ["--temperature", "0", "--max_audio_s", "0.4", "--output", str(file)]
    assert main(["speak", "--model", str(tiny), "--text", "Hello.", *flags]) == 3
    expected = {".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}.get(file.suffix.lower(), "WAV")
    info = sf.info(file)
    assert (info.format, info.samplerate) == (expected, 24_000)
    assert info.frames / 24_000 == pytest.approx(0.4, abs=0.1)


@pytest.mark.slow
def test_a_reader_that_leaves_is_one_line(tiny: Path, tmp_path: Path) -> None:
    """As in `speak --stream - | head -c 100`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "plugins.cli", "speak", "--model", str(tiny)]
    command += ["--text", "Hello.", "--max_audio_s", "0.4"]
    for flags in (["--stream", "-"], ["--output", str(tmp_path / "o.wav")]):
        done = subprocess.run(
            [*command, *flags],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: options: stream: ")
        assert "was closed by its reader" in last
        assert "Traceback" not in done.stderr
        assert "ignored" not in done.stderr
    os.close(writer)


# --- lists ---

BAD_LINES = [
    "{",
    "[1]",
    "7",
    '"text"',
    "[" * 200_000,
    '{"text": ' + "9" * 6000 + "}",
    '{"id": "a"}',
    '{"text": null}',
    '{"text": ["x"]}',
    '{"text": "\\ud800"}',
    '{"text": "x", "txet": 1}',
    '{"text": "x", "seed": 1.5}',
    '{"text": "x", "seed": true}',
    '{"text": "x", "seed": "1"}',
    '{"text": "x", "seed": NaN}',
    '{"text": "x", "seed": ' + str(2**70) + "}",
    '{"text": "x", "id": ""}',
    '{"text": "x", "id": "."}',
    '{"text": "x", "id": "a/b"}',
    '{"text": "x", "id": null}',
    '{"text": "x", "id": []}',
    '{"text": "x", "id": "a\\u0000"}',
    '{"text": "x", "id": "a\\nb"}',
    '{"text": "x", "id": "\\ud800"}',
    '{"text": "x", "id": "' + "é" * 110 + '"}',
    '{"text": "x", "reference_audio": 1}',
    '{"text": "x", "reference_audio": ["a.wav"]}',
    '{"text": "x", "reference_audio": "gone.wav"}',
    '{"text": "x", "reference_audio": "a\\u0000.wav"}',
    '{"text": "x", "reference_text": 7}',
    '{"text": "x", "scene_description": {}}',
    '{"text": "x", "voice_description": "\\udfff"}',
]


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:40])
def test_a_line_that_is_no_request_refuses_the_list(
    no_model: None, tmp_path: Path, capsys: Any, line: str
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "Hello."}\n' + line + "\n")
    assert speak("--input", path, "--output_dir", tmp_path / "out") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {path}:2: ")
    assert not (tmp_path / "out").exists()


def test_all_bad_lines_are_named_at_once(no_model: None, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": 1}\n{"text": "x"}\n{"text": "x", "seed": 0.5}\n')
    assert speak("--input", path, "--output_dir", tmp_path / "out") == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"refused: {path}:1: text: 1 is no text; write a text, or nothing"
    assert last.startswith(f"error: {path}:3: seed: 0.5 is no seed; give a whole number")


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "One\u2028two."}\n',
        '{"text": "One\u2029two."}',
        '{"text": "One\x85two."}\n',
        '{"text": "One.\x7f"}\n',
        '\ufeff{"text": "One."}\n',
        '{"text": "One."}\r\n\r\n',
        '\n \n{"text": "One."}\n\n',
        '{"text": "One.", "seed": null, "reference_audio": null}\n',
        '{"text": "One.", "id": 7}\n',
        '{"text": "One.", "id": "Grüße 1"}\n',
    ],
)
def test_one_line_is_one_request(no_model: None, tmp_path: Path, content: str) -> None:
    """U+2028 inside a JSON string ended a line."""
    from plugins.commands.speak_list import plan

    path = tmp_path / "lines.jsonl"
    path.write_bytes(content.encode())
    assert len(plan(_options(path, tmp_path / "out"), None).waiting) == 1


def _options(path: Path, folder: Path) -> Any:
    from plugins.cli import _parser

    flags = ["--model", "x", "--input", str(path), "--output_dir", str(folder)]
    return _parser().parse_args(["speak", *flags])


def test_any_list_is_read_or_refused_in_one_line(no_model: None, tmp_path: Path) -> None:
    from plugins.commands.speak_list import plan
    from plugins.errors import UserError

    generator = random.Random(0)
    values = [None, 0, -1, 2**70, 1.5, True, "", "x", "\x00", "..", "a/b", [], {}, [[]], "é" * 300]
    names = ["id", "text", "seed", "reference_audio", "scene_description", "Text", ""]
    path = tmp_path / "lines.jsonl"
    num_read = 0
    messages: list[str] = []
    for number in range(400):
        rows = []
        for _ in range(generator.randint(1, 2)):
            row = {"text": "x"}
            for name in generator.sample(names, generator.randint(0, 2)):
                row[name] = generator.choice(values)
            rows.append(json.dumps(row, ensure_ascii=generator.random() < 0.5))
        content = bytearray(generator.choice(("\n", "\r\n", "\u2028")).join(rows).encode())
        if number % 2:
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            num_read += len(plan(_options(path, tmp_path / "out"), None).waiting)
        except UserError as error:
            messages.append(str(error))
    assert num_read > 20
    assert not [message for message in messages if "\n" in message]


def test_a_list_that_was_cut_says_so_again(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "Hello."}\n')
    flags = ["--input", str(path), "--output_dir", str(tmp_path / "out"), "--max_audio_s", "0.1"]
    for spoken in (1, 0):
        assert main(["speak", "--model", str(tiny), *flags]) == 3
        assert f"out: {spoken} spoken ({spoken} truncated)" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_what_was_spoken_is_kept(
    tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plugins.speaking.speech import Speech

    original = Speech.write

    def full(self: Speech, file: Any, suffix: str = ".wav") -> None:
        if "Two" in self.text:
            raise OSError(28, "No space left on device")
        original(self, file, suffix)

    monkeypatch.setattr(Speech, "write", full)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "One."}\n{"text": "Two."}\n')
    flags = ["--input", str(path), "--output_dir", str(tmp_path / "out"), "--max_audio_s", "0.1"]
    assert main(["speak", "--model", str(tiny), *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}:2: id: '00002' cannot be written to ")
    assert "(No space left on device); mend that" in error
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "00001.wav",
        "results.jsonl",
    ]
