"""Synthetic speech says what it is: our reader and another's find it, the samples stay."""

from __future__ import annotations

import io
import json
import struct
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from helpers.sounds import decoded

from plugins.audio.marks import SOFTWARE, Mark, mark_in
from plugins.audio.waveforms import AudioError
from plugins.commands.inspect_files import run
from plugins.commands.serving.formats import FORMATS, Encoder
from plugins.errors import UserError

MARK = Mark.of_today("higgs-3B", "Jörg")
FILES = [name for name in FORMATS if name != "pcm"]
TONE = (0.4 * np.sin(np.arange(48_000) / 20)).astype(np.float32)


def file_of(name: str, mark: Mark | None, *, in_pieces: bool = False) -> bytes:
    encoder = Encoder(name, 24_000, in_pieces=in_pieces, mark=mark)
    return b"".join([encoder.push(TONE), encoder.finish()])


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_mark_is_read_back_and_the_samples_stay(
    tmp_path: Path, name: str, in_pieces: bool
) -> None:
    marked, plain = tmp_path / f"marked.{name}", tmp_path / f"plain.{name}"
    marked.write_bytes(file_of(name, MARK, in_pieces=in_pieces))
    plain.write_bytes(file_of(name, None, in_pieces=in_pieces))
    assert mark_in(marked) == MARK
    assert mark_in(plain) is None
    assert np.array_equal(decoded(marked.read_bytes()), decoded(plain.read_bytes()))


@pytest.mark.parametrize("name", FILES)
def test_another_reader_finds_it(tmp_path: Path, name: str) -> None:
    mutagen = pytest.importorskip("mutagen")
    data = file_of(name, MARK)
    if name == "wav":
        # mutagen reads ID3 in WAV only: by the standard's own words.
        place = data.index(b"ICMT")
        (length,) = struct.unpack("<I", data[place + 4 : place + 8])
        text = data[place + 8 : place + 8 + length].rstrip(b"\0").decode()
    else:
        tags = mutagen.File(io.BytesIO(data)).tags
        values = [str(value) for _, value in tags.items()] if name == "mp3" else None
        if values is not None:
            text = next(value for value in values if value.startswith("{"))
        else:
            text = tags["comment"][0]
            assert tags["date"][0] == MARK.date
            software = "encoder" if name == "opus" else "software"
            assert tags[software][0].startswith(SOFTWARE)
    assert json.loads(text) == {
        "synthetic": True,
        "model": "higgs-3B",
        "adapter": "Jörg",
        "date": MARK.date,
        "software": SOFTWARE,
    }


@pytest.mark.parametrize(
    "comment",
    ["", "a comment", "{", "[1]", "true", '{"synthetic": 1}', '{"synthetic": false}', '{"a": 1}'],
)
def test_other_comments_are_no_marks(tmp_path: Path, comment: str) -> None:
    file = tmp_path / "a.flac"
    with sf.SoundFile(file, "w", 24_000, channels=1) as output:
        if comment:
            output.comment = comment
        output.write(TONE)
    assert mark_in(file) is None


def test_endless_brackets_are_no_mark(tmp_path: Path) -> None:
    """Python's reader of JSON ended in a RecursionError."""
    file = tmp_path / "a.flac"
    with sf.SoundFile(file, "w", 24_000, channels=1) as output:
        output.comment = "[" * 12_000
        output.write(TONE)
    assert mark_in(file) is None


def test_what_a_terminal_would_obey_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file comes from anywhere, and says what it likes."""
    evil = "\x1b[2J\n: no mark"
    file = tmp_path / "a.flac"
    file.write_bytes(file_of("flac", Mark(evil, evil, evil, evil)))
    assert run(Namespace(files=[file])) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 1


def test_files_are_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marked, plain = tmp_path / "marked.wav", tmp_path / "plain.wav"
    marked.write_bytes(file_of("wav", MARK))
    plain.write_bytes(file_of("wav", None))
    assert run(Namespace(files=[marked])) == 0
    assert run(Namespace(files=[marked, plain])) == 1
    first, again, last = capsys.readouterr().out.splitlines()
    assert first == again
    maker = f"'{SOFTWARE}', model 'higgs-3B', adapter 'Jörg', '{MARK.date}'"
    assert first.endswith(f"synthetic, by {maker}")
    assert "2.00 s: no mark" in last
    (tmp_path / "none.wav").write_bytes(b"RIFF")
    for name in ("none.wav", "missing.wav"):
        with pytest.raises(UserError, match=name):
            run(Namespace(files=[tmp_path / name]))
        with pytest.raises(AudioError):
            mark_in(tmp_path / name)
