"""Kaldi's folders and LibriSpeech's lists of texts: lines of a key and a value."""

import random
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import prepare, read, speech
from helpers.trees import clip, heard, rejects, sorted_out, utterances

from plugins.corpora import read_folder, read_kaldi, read_libritts
from plugins.corpora.kaldi import read_lines
from plugins.errors import UserError


def kaldi(folder: Path, scp: str, text: str, **lists: str) -> Path:
    """A folder of these lists, with clips a.wav, b.wav and c.wav below wavs/."""
    for name in ("a", "b", "c"):
        clip(folder / "wavs" / f"{name}.wav")
    for name, content in {"wav.scp": scp, "text": text, **lists}.items():
        (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    return folder


TWO = "a wavs/a.wav\nb wavs/b.wav\n"


@pytest.mark.parametrize(
    ("scp", "text", "expected"),
    [
        (TWO, "a One\nb Two words\n", [("a", "One"), ("b", "Two words")]),
        (TWO, "b Two\na One\n", [("b", "Two"), ("a", "One")]),  # the order of `text`
        (TWO, "a One\nb Two", [("a", "One"), ("b", "Two")]),  # no line end
        (TWO.replace("\n", "\r\n"), "a One\r\nb Two\r\n", [("a", "One"), ("b", "Two")]),
        (TWO.replace(" ", "\t"), "a\tOne\nb \t Two\n", [("a", "One"), ("b", "Two")]),
        ("\ufeff" + TWO, "\ufeffa One\n\n  \nb Two\n", [("a", "One"), ("b", "Two")]),
        (TWO, "a \"One\nb it's | Two\n", [("a", '"One'), ("b", "it's | Two")]),
        (TWO, "a Zoë 你好 🎵\nb e\u0301\n", [("a", "Zoë 你好 🎵"), ("b", "e\u0301")]),
        (TWO, "a One\u2028two\x85three\nb Two\n", [("a", "One two three"), ("b", "Two")]),
        (TWO, "a\nb Two\n", [("a", ""), ("b", "Two")]),  # rejected in preparation
        ("a ./wavs/../wavs/a.wav\nb wavs/b.wav", "a One\nb B", [("a", "One"), ("b", "B")]),
        ("  a   wavs/a.wav  \n", " a  One  two \n", [("a", "One two")]),
    ],
)
def test_lines_as_they_come(tmp_path, scp, text, expected):
    results = heard(read_kaldi(kaldi(tmp_path, scp, text)))
    assert [(id_, text) for id_, text, _ in results] == expected


def test_speakers_languages_and_paths(tmp_path, monkeypatch):
    """Relative to the lists, or to the folder in which the recipe ran; places are lines."""
    folder = kaldi(
        tmp_path / "data" / "train",
        f"a data/train/wavs/a.wav\nb {tmp_path}/data/train/wavs/b.wav\nc wavs/c.wav\n",
        "a A\nb B\nc C\n",
        utt2spk="a ann\nb bert\nx ann\n",
        utt2lang="a en\n",
        spk2gender="ann f\n",
    )
    monkeypatch.chdir(tmp_path)
    a, b, c = utterances(read_kaldi(Path("data/train")))
    assert (a.speaker, b.speaker, c.speaker) == ("ann", "bert", None)
    assert (a.language, b.language) == ("en", None)
    assert [entry.audio for entry in (a, b, c)] == [
        folder / "wavs" / f"{name}.wav" for name in "abc"
    ]
    assert a.place == "data/train/text:1"


FAULTS = [
    ("a sph2pipe -f wav a.sph |", "a One", "a", "is a command (run it, and list the file"),
    ("a cat x.wav| ", "a One", "a", "is a command"),
    ("a raw.ark:1234", "a One", "a", "is a part of a file (copy it out"),
    ("a wavs/a.wav[0:100]", "a One", "a", "is a part of a file"),
    ("a", "a One", "a", "has no path"),
    ("a lost.wav", "a One", "a", "not found (looked in"),
    ("a wavs", "a One", "a", "is a folder"),
    ("a http://host/a.wav", "a One", "a", "is a URL"),
    ("b wavs/b.wav", "a One\nb B", "a", "no recording"),
    (TWO, "b B", "a", "no transcript"),
    ("a wavs/a.wav\na wavs/b.wav", "a One", "a", "key is there twice (first at"),
    ("a wavs/a.wav", "a One\na Two", "a", "key is there twice (first at"),
    (TWO, "a caf\udce9\nb B", "a", "line is not UTF-8"),
    (TWO, "a " + "x" * 1_100_000 + "\nb B", "a", "line is longer than 1,000,000 bytes"),
]


@pytest.mark.parametrize(("scp", "text", "key", "reason"), FAULTS)
def test_a_faulty_line_takes_nothing_from_the_others(tmp_path, scp, text, key, reason):
    """Nothing is executed; each fault is told once."""
    folder = kaldi(tmp_path, f"{scp}\nc wavs/c.wav\n", f"{text}\nc C\n")
    results = list(read_kaldi(folder))
    assert "c" in [utterance.id for utterance in utterances(results)]
    (rejected,) = rejects(results)
    assert (rejected.id, rejected.reason[: len(reason)]) == (key, reason)


def test_a_faulty_line_of_speakers_is_told(tmp_path):
    """The clip is fit; that nobody knows its speaker must not pass unsaid."""
    folder = kaldi(tmp_path, TWO, "a A\nb B", utt2spk="a x\na y\nb \udcff\n", utt2lang="b\n")
    a, b = utterances(read_kaldi(folder))
    assert (a.speaker, b.speaker, b.language) == ("x", None, None)
    assert [entry.place for entry in rejects(read_kaldi(folder))] == [
        f"{folder}/utt2spk:2",
        f"{folder}/utt2spk:3",
    ]


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"wav.scp": TWO}, "holds no text; name the folder that holds wav.scp and text"),
        ({"text": "a One"}, "holds no wav.scp; name the folder"),
        ({}, "holds no wav.scp"),
        ({"wav.scp": TWO, "text": "a A", "segments": "a a 0 1"}, "cuts its recordings by segments"),
    ],
)
def test_what_is_no_folder_of_utterances(tmp_path, lists, reason):
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        list(read_kaldi(tmp_path))


def test_audio_root_jails_the_lists(tmp_path, monkeypatch):
    folder = kaldi(
        tmp_path / "data", f"a {tmp_path}/x.wav\nb ../x.wav\nc wavs/c.wav", "a A\nb B\nc C"
    )
    clip(tmp_path / "x.wav")
    monkeypatch.chdir(tmp_path)
    ids, faults = sorted_out(read_kaldi(folder, root=folder))
    assert ids == ["c"]
    assert [reason.partition(",")[0] for _, reason, _ in faults] == ["is absolute", 'holds ".."']
    (folder / "text").rename(tmp_path / "text")
    (folder / "text").symlink_to(tmp_path / "text")
    with pytest.raises(UserError, match="leads out of the audio root"):
        list(read_kaldi(folder, root=folder))


def test_kaldi_is_prepared(tmp_path):
    kaldi(tmp_path / "data", TWO, "a Twenty letters here.\nb Again twenty letters.\n")
    for number, name in enumerate("ab"):
        speech(tmp_path / "data" / "wavs" / f"{name}.wav", seed=number)
    flags = ["--dataset_type", "kaldi", "--input_dir", tmp_path / "data"]
    assert prepare(*flags, "--output_file", tmp_path / "train.jsonl", "--validate") == 0
    assert [row["id"] for row in read(tmp_path / "train.jsonl")] == ["a", "b"]


def test_a_kaldi_folder_given_as_folder_is_sent_to_its_reader(tmp_path):
    (tmp_path / "wav.scp").write_text(TWO)
    (tmp_path / "text").write_text("a A")
    with pytest.raises(UserError, match=r"holds no recording .*; give --dataset_type kaldi"):
        list(read_folder(tmp_path))


def test_any_bytes(tmp_path):
    """Lines, whatever they are made of; none is lost."""
    choose = random.Random(18)
    alphabet = ["a", "b ", " ", "\t", "\n", "\r", "\0", "|", "\ufeff", "é", "\u2028", "\udcff"]
    for _ in range(300):
        content = "".join(choose.choices(alphabet, k=choose.randint(0, 30)))
        (tmp_path / "list").write_bytes(content.encode("utf-8", "surrogateescape"))
        lines = content.removeprefix("\ufeff").split("\n")
        num_lines = sum(bool(line.strip()) for line in lines)
        assert len(list(read_lines(tmp_path / "list"))) == num_lines


# --- LibriSpeech ---


def librispeech(folder: Path, *texts: Any, chapter: str = "84-121123") -> Path:
    speaker, number = chapter.split("-")
    where = folder / speaker / number
    for i in range(3):
        clip(where / f"{chapter}-000{i}.flac")
    (where / f"{chapter}.trans.txt").write_bytes("".join(texts).encode("utf-8", "surrogateescape"))
    return where


A, B, C = (f"84-121123-000{i}" for i in range(3))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (f"{A} GO\n{B} DO YOU\n{C} X\n", {A: "GO", B: "DO YOU", C: "X"}),
        (f"{C} X\n{A} GO\n{B} DO YOU", {A: "GO", B: "DO YOU", C: "X"}),
        (f"{A} GO\r\n{B} DO\r\n{C} X\r\n", {A: "GO", B: "DO", C: "X"}),
        (f"{A}\tGO\n{B}  DO\n{C} X Y \n", {A: "GO", B: "DO", C: "X Y"}),
        (f"\ufeff{A} GO\n\n{B} DO\n{C} X\n", {A: "GO", B: "DO", C: "X"}),
        (f"{A} D'ÂME\n{B} 你好\n{C} \"X\n", {A: "D'ÂME", B: "你好", C: '"X'}),
        (f"{A} G\u2028O\n{B} D|O\n{C} X,Y\n", {A: "G O", B: "D|O", C: "X,Y"}),
        (f"{A} GO\n{A} GONE\n{B} DO\n{C} X\n", {A: "GO", B: "DO", C: "X"}),
        (f"{A}\n{B} DO\n{C} X\n", {A: "", B: "DO", C: "X"}),
        (f"{A} GO\n{B} DO\n", {A: "GO", B: "DO", C: "no transcript"}),
        (f"{A} G\udcff\n{B} DO\n{C} X\n", {A: "line is not UTF-8", B: "DO", C: "X"}),
        (
            f"{A} GO\n{B} DO\n{C} X\n84-121123-0009 LOST\n",
            {A: "GO", B: "DO", C: "X", "84-121123-0009": "no recording"},
        ),
    ],
)
def test_librispeech(tmp_path, texts, expected):
    librispeech(tmp_path / "dev-clean", texts)
    results = list(read_libritts(tmp_path))
    got = {utterance.id: utterance.text for utterance in utterances(results)}
    assert {utterance.speaker for utterance in utterances(results)} == {"84"}
    assert got | {entry.id: entry.reason for entry in rejects(results)} == expected


def test_librispeech_given_as_folder_is_sent_to_its_reader(tmp_path, caplog):
    librispeech(tmp_path, f"{A} GO\n")
    assert sorted_out(read_folder(tmp_path))[0] == []
    assert caplog.messages[0].endswith("; give --dataset_type libritts to prepare_dataset.py")
