"""Hugging Face datasets -> utterances, from folders and from the Hub; without torchcodec and without network."""

import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict
from trees import clip, heard, sorted_out

from plugins.audio import probe
from plugins.corpora import Columns, Rejected, Utterance, huggingface, read_huggingface
from plugins.errors import UserError

WITH_SPEAKER = Columns(speaker="speaker")


@pytest.fixture(autouse=True)
def _quiet_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No progress bars; the cache of `load_dataset` beside the test; whoever opens a socket fails."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("opened a connection"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("asked for a host"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def sound(folder: Path, name: str, frequency_hz: float = 220.0) -> dict[str, Any]:
    """A recording as a dataset holds it: its bytes, and the name that it had."""
    return {"bytes": clip(folder / "made" / name, frequency_hz=frequency_hz).read_bytes(), "path": name}


def table(audio: list[Any], **columns: list[Any]) -> Dataset:
    columns.setdefault("text", [f"Text {number}" for number in range(len(audio))])
    return Dataset.from_dict({"audio": audio, **columns})


def saved(folder: Path, dataset: Dataset | DatasetDict) -> str:
    dataset.save_to_disk(folder / "saved")
    return str(folder / "saved")


def test_bytes_become_files_named_by_their_content(tmp_path):
    """WAV, FLAC, MP3 and OGG keep their kind, whatever the dataset calls them; the id survives every reordering."""
    names = ["a.wav", "b.flac", "c.mp3", "d.ogg"]
    sounds = [sound(tmp_path, name) for name in names]
    for number, each in enumerate(sounds):
        each["path"] = f"audio{number}" if number else None
    source = saved(tmp_path, table(sounds, speaker=["x", "", None, "y"]).cast_column("audio", Audio()))
    found = list(read_huggingface(source, WITH_SPEAKER, audio_dir=tmp_path / "out"))
    digests = [hashlib.sha256(each["bytes"]).hexdigest() for each in sounds]
    speakers = ["x", None, None, "y"]
    expected = [
        Utterance(f"{source}[{i}]", digest, f"Text {i}", tmp_path / f"out/{digest[:2]}/{digest}{name[1:]}", speakers[i])
        for i, (digest, name) in enumerate(zip(digests, names, strict=True))
    ]
    assert found == expected
    for each, original in zip(expected, sounds, strict=True):
        assert each.audio.read_bytes() == original["bytes"]
        assert probe(each.audio).sample_rate_hz == 24_000
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 4
    assert not any(name in sys.modules for name in ("torchcodec",))


def test_a_second_run_and_a_run_after_a_crash_write_the_same(tmp_path):
    """Whole files stay untouched, a damaged one is mended, and no temporary file remains."""
    sounds = [sound(tmp_path, f"{number}.wav", 200 + 10 * number) for number in range(5)]
    source = saved(tmp_path, table(sounds))
    first = list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
    stamps = {each.audio: each.audio.stat().st_mtime_ns for each in first if isinstance(each, Utterance)}
    assert len(stamps) == 5
    damaged, gone, *others = stamps
    damaged.write_bytes(b"RIFF")
    gone.unlink()
    assert list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out")) == first
    assert [path.read_bytes() for path in stamps] == [each["bytes"] for each in sounds]
    assert [path.stat().st_mtime_ns for path in others] == [stamps[path] for path in others]
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(stamps)


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
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_paths_stay_where_they_are(tmp_path):
    """A column of texts is a column of paths; nothing is copied. Relative ones lie beside the dataset's files."""
    here = clip(tmp_path / "here.wav")
    source = saved(tmp_path, table([str(here), "beside.wav", "gone.wav", "https://x.org/a.wav", None]))
    clip(Path(source) / "beside.wav")
    found = list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
    assert [(each.id, each.audio) for each in found if isinstance(each, Utterance)] == [
        (str(here), here),
        ("beside.wav", Path(source) / "beside.wav"),
    ]
    assert [each for each in found if isinstance(each, Rejected)] == [
        Rejected(f"{source}[2]", "gone.wav", f"not found (looked in {source}/)", "gone.wav"),
        Rejected(f"{source}[3]", "https://x.org/a.wav", "is a URL", "https://x.org/a.wav"),
        Rejected(f"{source}[4]", "", "names no file", ""),
    ]
    assert not (tmp_path / "out").exists()


def test_root_jails_paths_but_not_what_we_wrote_ourselves(tmp_path):
    """A dataset from elsewhere may name any file of the machine."""
    outside = clip(tmp_path / "outside.wav")
    inside = {"bytes": sound(tmp_path, "a.wav")["bytes"], "path": "../../a.wav"}
    structs = [inside, {"bytes": None, "path": str(outside)}, {"bytes": None, "path": "../outside.wav"}]
    source = saved(tmp_path, table(structs))
    assert len(heard(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))) == 3
    read, rejected = sorted_out(read_huggingface(source, Columns(), audio_dir=tmp_path / "out", root=Path(source)))
    assert read == [hashlib.sha256(inside["bytes"]).hexdigest()]
    assert [each[1] for each in rejected] == [
        "is absolute, which the audio root forbids",
        'holds "..", which the audio root forbids',
    ]


def test_odd_bytes_are_told(tmp_path):
    """Empty ones at once; what is no audio gets a name that claims none, and fails when it is probed."""
    source = saved(tmp_path, table([{"bytes": b"", "path": "a.wav"}, {"bytes": b"hello", "path": "../../b.wav"}]))
    empty, text = read_huggingface(source, Columns(), audio_dir=tmp_path / "out")
    assert empty == Rejected(f"{source}[0]", "a.wav", "is empty (0 bytes)", "a.wav")
    assert isinstance(text, Utterance)
    assert text.audio == tmp_path / "out" / text.id[:2] / f"{text.id}.bin"


def test_columns(tmp_path):
    """Other names, labels of classes by their names (-1: none), numbers as speakers, no text, other columns unread."""
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
    found = list(read_huggingface(source, columns, audio_dir=tmp_path / "out"))
    assert heard(found) == [("10", "One", "bert"), ("11", "", None), ("12", "Three", "anna")]
    assert [each.language for each in found if isinstance(each, Utterance)] == ["en", None, "de"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(audio="sound"), "column: 'sound' not found; use one of array, audio, number, text, words"),
        (Columns(text="txt"), "column: 'txt' not found; did you mean 'text'"),
        (Columns(audio="number"), "column: 'number' holds no audio files; cast it to datasets.Audio"),
        (Columns(audio="array"), "column: 'array' holds no audio files; cast it to datasets.Audio"),
        (Columns(text="words"), "column: 'words' holds no text; name another column"),
    ],
)
def test_wrong_column(tmp_path, columns, message):
    """Decoded samples would need an encoder; lists of words a rule to join them."""
    samples = {"array": [0.0, 0.5], "sampling_rate": 24_000}
    source = saved(tmp_path, table([sound(tmp_path, "a.wav")], number=[1], array=[samples], words=[["a", "b"]]))
    with pytest.raises(UserError) as caught:
        list(read_huggingface(source, columns, audio_dir=tmp_path / "out"))
    assert str(caught.value) == f"{source}: {message}" + ("?" if "mean" in message else "")


def test_splits(tmp_path):
    """The only one is meant without being named, and of several `train`."""
    train, test = table([sound(tmp_path, "a.wav")], text=["A"]), table([sound(tmp_path, "b.wav")], text=["B"])
    both = saved(tmp_path / "both", DatasetDict(train=train, test=test))
    others = saved(tmp_path / "others", DatasetDict(dev=train, test=test))
    single = saved(tmp_path / "single", DatasetDict(train=train))
    alone = saved(tmp_path / "alone", train)

    def texts(source: str, split: str | None = None) -> list[str]:
        return [text for _, text, _ in heard(read_huggingface(source, Columns(), audio_dir=tmp_path, split=split))]

    assert (texts(both), texts(both, "test"), texts(single), texts(alone)) == (["A"], ["B"], ["A"], ["A"])
    assert texts(both, "train") == ["A"]
    for source, split, message in (
        (others, None, "huggingface: split: None is not named; use one of dev, test"),
        (both, "tran", "huggingface: split: 'tran' not found; did you mean 'train'?"),
        (alone, "train", "huggingface: split: 'train' is none: the folder holds one table; leave it out"),
    ):
        with pytest.raises(UserError) as caught:
            texts(source, split)
        assert str(caught.value) == message


def test_a_folder_of_parquet_files(tmp_path):
    """A clone of a dataset repository, which `load_dataset` reads; slices of splits are its own syntax."""
    sounds = [sound(tmp_path, f"{number}.wav", 200 + number) for number in range(4)]
    (tmp_path / "clone").mkdir()
    table(sounds).cast_column("audio", Audio()).to_parquet(tmp_path / "clone" / "train.parquet")
    source = str(tmp_path / "clone")

    def texts(split: str | None) -> list[str]:
        return [text for _, text, _ in heard(read_huggingface(source, Columns(), audio_dir=tmp_path, split=split))]

    assert texts(None) == ["Text 0", "Text 1", "Text 2", "Text 3"]
    assert texts("train[:50%]") == ["Text 0", "Text 1"]
    with pytest.raises(UserError, match=r"does not load \(Unknown split \"nope\".*\); check its id, configuration and"):
        texts("nope")


def test_an_audio_folder_names_what_is_missing(tmp_path):
    """`datasets` reads such folders through torchcodec only; its own message says no more than "an error occurred"."""
    clip(tmp_path / "folder" / "train" / "a.wav")
    (tmp_path / "folder" / "train" / "metadata.csv").write_text("file_name,text\na.wav,Hello\n")
    source = str(tmp_path / "folder")
    with pytest.raises(UserError, match=r"does not load \(To support encoding audio data, please install 'torchcodec'"):
        list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))


def test_a_hub_id_is_asked_for_as_it_is(tmp_path, monkeypatch):
    """With configuration and split, to `load_dataset`, which may use the network: the user named a Hub id."""
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return table([sound(tmp_path, "a.wav")]).cast_column("audio", Audio())

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_huggingface("owner/speech-1.0", Columns(), audio_dir=tmp_path / "out", config="clean", split="train")
    [utterance] = found
    assert utterance.place == "owner/speech-1.0[0]"
    assert asked == [(("owner/speech-1.0", "clean"), {"split": "train"})]


def test_offline_is_said_in_one_line(tmp_path, monkeypatch):
    """The cluster's nodes have no network; other messages of `datasets` have a second line."""
    with pytest.raises(
        UserError, match=r"^huggingface: dataset: 'nobody/nothing' does not load \(Couldn't reach"
    ) as error:
        list(read_huggingface("nobody/nothing", Columns(), audio_dir=tmp_path))
    assert "\n" not in str(error.value)

    def fail(*args, **kwargs):
        raise ValueError("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"^.* does not load \(Config name is missing\.\); check its .*$"):
        list(read_huggingface("nobody/nothing", Columns(), audio_dir=tmp_path))


@pytest.mark.parametrize("source", ["/nowhere/set", "../set", "~/set", "https://x.org/set", "a/b/c", "file.parquet"])
def test_what_is_neither_folder_nor_id_stays_off_the_network(tmp_path, monkeypatch, source):
    """A mistyped path must not be asked for on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.parquet").touch()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked"))
    with pytest.raises(UserError, match="is neither a folder nor a Hub id; name one of the two"):
        list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))


def test_names_of_stored_files_cannot_be_chosen_by_the_dataset(tmp_path):
    """A path inside a dataset is somebody else's text."""
    names = [
        huggingface._store(content, tmp_path) for content in (b"RIFF1", b"fLaC1", b"OggS1", b"ID31", b"\xff\xfb", b"?")
    ]
    assert [os.path.splitext(name)[1] for name in names] == [".wav", ".flac", ".ogg", ".mp3", ".mp3", ".bin"]
    assert all((tmp_path / name).is_file() for name in names)
