"""One list of formats: what is in it is read, and what recordings also come in is refused with the
line that converts it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT
from helpers.trees import clip, said, sorted_out

from plugins.audio.waveforms import (
    AUDIO_SUFFIXES,
    CONVERTIBLE_SUFFIXES,
    AudioError,
    load,
    probe,
    resolve,
)
from plugins.corpora import Columns, read_custom, read_folder

CONTAINERS = {".aif": "AIFF", ".aifc": "AIFF", ".oga": "OGG", ".opus": "OGG", ".sph": "NIST"}
SUBTYPES = {".aifc": "FLOAT", ".opus": "OPUS"}
M4A = b"\0\0\0\x1cftypM4A \0\0\2\0" + bytes(100)


def recording(path: Path) -> Path:
    suffix = path.suffix.lower()
    sine = 0.5 * np.sin(np.arange(12_000) / 20)
    container = CONTAINERS.get(suffix, suffix[1:].upper())
    with path.open("wb") as file:  # by name soundfile would choose for itself
        sf.write(file, sine, 24_000, format=container, subtype=SUBTYPES.get(suffix))
    return path


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_every_format_of_the_list_is_read_everywhere(tmp_path, suffix):
    """`y.aiff` was told as missing `y.wav` by one reader and read by another."""
    path = recording(tmp_path / f"y{suffix}")
    said(tmp_path / "y.txt", "Hello")
    (tmp_path / "list.csv").write_text("audio,text\ny,Hello\n")
    assert len(load(path)) in range(12_000, 12_700)
    for name in (f"y{suffix}", "loud" + suffix.upper()):
        path = path.rename(tmp_path / name)
        (tmp_path / f"{path.stem}.txt").write_text("Hello")
        assert f"{path.name}" in sorted_out(read_folder(tmp_path))[0]
    path.rename(tmp_path / f"y{suffix}")
    assert sorted_out(read_custom(tmp_path, tmp_path / "list.csv", Columns()))[0] == [f"y{suffix}"]


@pytest.mark.parametrize(
    "head",
    [
        M4A[:16],
        b"\0\0\0\x20ftypisom",
        b"\0\0\0\x14ftypqt  ",
        b"\0\0\0\x18ftyp3gp4",
        b"\x1aE\xdf\xa3\x9fB\x86\x81",
        b"0&\xb2u\x8ef\xcf\x11",
        b"\xff\xf1X@<\x1f",
        b"\xff\xf9X@<\x1f",
        b"#!AMR\n",
        b"wvpk\4\x34",
    ],
)
@pytest.mark.parametrize("name", ["a b.m4a", "a b.wav"])
def test_what_a_decoder_is_missing_for_is_refused_with_the_line_that_converts_it(
    tmp_path, head, name
):
    """By how it begins, for people rename files; libsndfile has no AAC, and neither have we."""
    path = tmp_path / name
    path.write_bytes(head + bytes(100))
    for read in (probe, load):
        with pytest.raises(AudioError, match="is in a format that is not read") as caught:
            read(path)
        assert f"(ffmpeg -i '{name}' 'a b.flac' converts it)" in caught.value.reason
        assert caught.value.remedy == "convert it and name the new file"


@pytest.mark.parametrize("suffix", CONVERTIBLE_SUFFIXES)
def test_a_list_that_names_such_a_file_is_told_without_validation(tmp_path, suffix):
    """Without it no clip is opened, and training was the first to say so."""
    (tmp_path / f"x{suffix}").write_bytes(M4A)
    (tmp_path / "list.csv").write_text(f"audio,text\nx{suffix},Hello\n")
    ids, [(id_, reason, _)] = sorted_out(read_custom(tmp_path, tmp_path / "list.csv", Columns()))
    assert (ids, id_) == ([], f"x{suffix}")
    assert reason == f"is in a format that is not read (ffmpeg -i x{suffix} x.flac converts it)"


def test_the_docs_name_every_format():
    """The README said "any format"."""
    words = set(
        (ROOT / "docs" / "prepare.md").read_text().translate(str.maketrans(",.", "  ")).split()
    )
    names = {".sph": "SPHERE", ".opus": "Opus", ".oga": "OGG"} | dict.fromkeys(
        [".aif", ".aifc"], "AIFF"
    )
    for suffix in AUDIO_SUFFIXES:
        assert names.get(suffix, suffix[1:].upper()) in words


def test_a_wav_that_is_called_m4a_is_read(tmp_path):
    clip(tmp_path / "a.wav").rename(tmp_path / "a.m4a")
    assert resolve("a.m4a", folders=[tmp_path]) == tmp_path / "a.m4a"


def test_every_file_of_a_folder_is_accounted_for(tmp_path, caplog):
    """Rejected, or counted; an original that was converted keeps nobody from training."""
    (tmp_path / "x.m4a").write_bytes(M4A)
    said(tmp_path / "x.txt", "X")
    (tmp_path / "mute.webm").write_bytes(M4A)
    recording(tmp_path / "y.aiff")
    said(tmp_path / "y.txt", "Y")
    (tmp_path / "y.M4A").write_bytes(M4A)
    said(tmp_path / "y.lab", "the second transcript")
    (tmp_path / "cover.JPG").touch()
    assert sorted_out(read_folder(tmp_path)) == (
        ["y.aiff"],
        [
            ("mute.webm", "no transcript", "mute.txt"),
            (
                "x.m4a",
                "is in a format that is not read (ffmpeg -i x.m4a x.flac converts it)",
                str(tmp_path / "x.m4a"),
            ),
        ],
    )
    what = "left alone, as neither recordings nor their texts"
    counts = ".jpg 1, .m4a 1, .lab 1 (cover.JPG, ...)"
    assert caplog.messages == [f"{tmp_path}: {what}: {counts}"]
