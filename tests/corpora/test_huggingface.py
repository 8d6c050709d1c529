"""Hugging Face datasets -> utterances, from folders and from the Hub; without torchcodec and
without network."""

import hashlib
import sys
from pathlib import Path

import pytest
from datasets import Audio, ClassLabel, Dataset
from helpers.hub import alone, saved, sound, table  # noqa: F401 (a fixture)
from helpers.trees import clip, heard, rejects, sorted_out, utterances

from plugins.audio.waveforms import probe
from plugins.corpora import Columns, Rejected, Utterance, huggingface, read_huggingface
from plugins.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")
WITH_SPEAKER = Columns(speaker="speaker")


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_bytes_become_files_named_by_their_content(tmp_path):
    """WAV, FLAC, MP3 and OGG keep their kind, whatever the dataset calls them; the id survives
    every reordering."""
    names = ["a.wav", "b.flac", "c.mp3", "d.ogg"]
    sounds = [sound(tmp_path, name) for name in names]
    for number, recording in enumerate(sounds):
        recording["path"] = f"audio{number}" if number else None
    source = saved(
        tmp_path, table(sounds, speaker=["x", "", None, "y"]).cast_column("audio", Audio())
    )
    results = list(read_huggingface(source, WITH_SPEAKER, audio_dir=tmp_path / "out"))
    speakers = ["x", None, None, "y"]
    for i, recording in enumerate(sounds):
        digest = hashlib.sha256(recording["bytes"]).hexdigest()
        path = tmp_path / "out" / digest[:2] / f"{digest}{names[i][1:]}"
        assert results[i] == Utterance(f"{source}[{i}]", digest, f"Text {i}", path, speakers[i])
        assert path.read_bytes() == recording["bytes"]
        assert probe(path).sample_rate_hz == 24_000
    assert len(results) == len(files_below(tmp_path / "out")) == 4
    assert "torchcodec" not in sys.modules


def test_a_second_run_and_a_run_after_a_crash_write_the_same(tmp_path):
    """Whole files stay untouched, a damaged one is mended, and no temporary file remains."""
    sounds = [sound(tmp_path, f"{number}.wav", 200 + 10 * number) for number in range(5)]
    source = saved(tmp_path, table(sounds))
    first = list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
    paths = [utterance.audio for utterance in utterances(first)]
    assert len(paths) == 5
    damaged, gone, *others = paths
    stamps_ns = [path.stat().st_mtime_ns for path in others]
    damaged.write_bytes(b"RIFF")
    gone.unlink()
    assert list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out")) == first
    for path, recording in zip(paths, sounds, strict=True):
        assert path.read_bytes() == recording["bytes"]
    assert [path.stat().st_mtime_ns for path in others] == stamps_ns
    assert files_below(tmp_path / "out") == set(paths)


def test_a_failed_write_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    """A full disk in the middle of a file."""
    source = saved(tmp_path, table([sound(tmp_path, "a.wav")]))

    def fill(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left"):
        list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
    assert files_below(tmp_path / "out") == set()


def test_paths_stay_where_they_are(tmp_path):
    """A column of texts is a column of paths; nothing is copied. Relative ones lie beside the
    dataset's files."""
    here = clip(tmp_path / "here.wav")
    source = saved(
        tmp_path, table([str(here), "beside.wav", "gone.wav", "https://x.org/a.wav", None])
    )
    clip(Path(source) / "beside.wav")
    results = list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
    assert [(utterance.id, utterance.audio) for utterance in utterances(results)] == [
        (str(here), here),
        ("beside.wav", Path(source) / "beside.wav"),
    ]
    assert rejects(results) == [
        Rejected(f"{source}[2]", "gone.wav", f"not found (looked in {source}/)", "gone.wav"),
        Rejected(f"{source}[3]", "https://x.org/a.wav", "is a URL", "https://x.org/a.wav"),
        Rejected(f"{source}[4]", "", "names no file", ""),
    ]
    assert not (tmp_path / "out").exists()


def test_root_jails_paths_but_not_what_we_wrote_ourselves(tmp_path):
    """A dataset from elsewhere may name any file of the machine."""
    outside = clip(tmp_path / "outside.wav")
    inside = {"bytes": sound(tmp_path, "a.wav")["bytes"], "path": "../../a.wav"}
    structs = [
        inside,
        {"bytes": None, "path": str(outside)},
        {"bytes": None, "path": "../outside.wav"},
    ]
    source = saved(tmp_path, table(structs))
    assert len(heard(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))) == 3
    read, rejected = sorted_out(
        read_huggingface(source, Columns(), audio_dir=tmp_path / "out", root=Path(source))
    )
    assert read == [hashlib.sha256(inside["bytes"]).hexdigest()]
    assert [reason for _, reason, _ in rejected] == [
        "is absolute, which the audio root forbids",
        'holds "..", which the audio root forbids',
    ]


def test_odd_bytes_are_told(tmp_path):
    """Empty ones, and what is no audio, which gets a name that claims none."""
    source = saved(
        tmp_path,
        table([{"bytes": b"", "path": "a.wav"}, {"bytes": b"hello", "path": "../../b.wav"}]),
    )
    empty, text = read_huggingface(source, Columns(), audio_dir=tmp_path / "out")
    assert empty == Rejected(f"{source}[0]", "a.wav", "is empty (0 bytes)", "a.wav")
    digest = hashlib.sha256(b"hello").hexdigest()
    path = str(tmp_path / "out" / digest[:2] / f"{digest}.bin")
    assert text == Rejected(f"{source}[1]", path, "is not readable audio", path)


def test_columns(tmp_path):
    """Other names, labels of classes by their names (-1: none), numbers as speakers, no text, other
    columns unread."""
    dataset = Dataset.from_dict(
        {
            "clip": [sound(tmp_path, f"{number}.wav") for number in range(3)],
            "sentence": ["  One\n", None, "Three"],
            "voice": [1, -1, 0],
            "uid": [10, 11, 12],
            "locale": ["en", None, "de"],
            "noise": [sound(tmp_path, "noise.wav")] * 3,
        }
    )
    dataset = dataset.cast_column("voice", ClassLabel(names=["anna", "bert"]))
    dataset = dataset.cast_column("noise", Audio())  # to read it would need torchcodec
    source = saved(tmp_path, dataset.with_format("numpy"))
    columns = Columns(text="sentence", audio="clip", speaker="voice", id="uid", language="locale")
    results = list(read_huggingface(source, columns, audio_dir=tmp_path / "out"))
    assert heard(results) == [("10", "One", "bert"), ("11", "", None), ("12", "Three", "anna")]
    assert [utterance.language for utterance in utterances(results)] == ["en", None, "de"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns(audio="sound"),
            "column: 'sound' not found; use one of array, audio, number, text, words",
        ),
        (Columns(text="txt"), "column: 'txt' not found; did you mean 'text'"),
        (
            Columns(audio="number"),
            "column: 'number' holds no audio files; cast it to datasets.Audio",
        ),
        (Columns(audio="array"), "column: 'array' holds no audio files; cast it to datasets.Audio"),
        (Columns(text="words"), "column: 'words' holds no text; name another column"),
    ],
)
def test_wrong_column(tmp_path, columns, message):
    """Decoded samples would need an encoder; lists of words a rule to join them."""
    samples = {"array": [0.0, 0.5], "sampling_rate": 24_000}
    source = saved(
        tmp_path, table([sound(tmp_path, "a.wav")], number=[1], array=[samples], words=[["a", "b"]])
    )
    with pytest.raises(UserError) as caught:
        list(read_huggingface(source, columns, audio_dir=tmp_path / "out"))
    assert str(caught.value) == f"{source}: {message}" + ("?" if "mean" in message else "")


def test_names_of_stored_files_cannot_be_chosen_by_the_dataset(tmp_path):
    """A path inside a dataset is somebody else's text."""
    suffixes = {
        b"RIFF1": ".wav",
        b"fLaC1": ".flac",
        b"OggS1": ".ogg",
        b"ID31": ".mp3",
        b"\xff\xfb": ".mp3",
        b"?": ".bin",
    }
    for content, suffix in suffixes.items():
        path = tmp_path / huggingface._store(content, tmp_path)
        assert (path.suffix, path.read_bytes()) == (suffix, content)
