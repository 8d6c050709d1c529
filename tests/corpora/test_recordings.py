"""The recordings that a list names: as written, as another system writes them, by their names
alone where that leaves no doubt, and never another one."""

import logging
import unicodedata
from pathlib import Path

import pytest
from helpers.trees import clip, heard, rejects, said, utterances

from plugins.corpora import Columns, read_custom, read_gpt_sovits, read_ljspeech

COMPOSED = unicodedata.normalize("NFC", "Zoë.wav")
APART = unicodedata.normalize("NFD", "Zoë.wav")

# What lies in the corpus, what its list says, which file is meant, and whether that is said.
NAMES = {
    "as it is": (["a.wav"], "a.wav", "a.wav", False),
    "no suffix": (["a.mp3"], "a", "a.mp3", False),
    "a suffix in capitals on the disk": (["a.WAV"], "a", "a.WAV", False),
    "a suffix in capitals in the list": (["a.wav"], "a.WAV", "a.wav", False),
    "a mixed suffix below a folder": (["s/a.Flac"], "s/a.flac", "s/a.Flac", False),
    "a dot in the stem": (["take.2.WAV"], "take.2", "take.2.WAV", False),
    "a backslash": (["s/a.wav"], r"s\a.wav", "s/a.wav", False),
    "a backslash and no suffix": (["s/t/a.wav"], r".\s\t\a", "s/t/a.wav", False),
    "accents apart on the disk": ([APART], COMPOSED, APART, False),
    "accents apart in the list": ([COMPOSED], APART, COMPOSED, False),
    "a space": (["s t/a b.WAV"], "s t/a b.wav", "s t/a b.WAV", False),
    "another machine": (["s/a.wav"], "/mnt/other/s/a.wav", "s/a.wav", True),
    "another machine, another folder": (["t/a.wav"], "/mnt/other/s/a.wav", "t/a.wav", True),
    "another machine, no suffix": (["a.WAV"], "/mnt/other/a", "a.WAV", True),
    "a drive": (["s/a.wav"], r"C:\data\s\a.wav", "s/a.wav", True),
    "a server": (["s/a.wav"], r"\\server\share\a.wav", "s/a.wav", True),
    "the folder of the corpus": (["a.wav"], "corpus/a.wav", "a.wav", True),
    "two of one name": (["p1/a.wav", "p2/a.wav"], "/x/p2/a.wav", "p2/a.wav", True),
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("kind", ["custom", "gpt_sovits", "ljspeech"])
def test_a_name_finds_its_file(tmp_path, caplog, kind, case):
    files, name, meant, is_told = NAMES[case]
    for file in files:
        clip(tmp_path / file)
    results = one_line(kind, tmp_path, name)
    assert [utterance.audio for utterance in utterances(results)] == [tmp_path / meant], results
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == is_told
    assert not told or "1 of 1 recordings are not where it says; taken by their names" in told[0]


def one_line(kind: str, folder: Path, name: str, **where: Path) -> list:
    if kind == "custom":
        path = said(folder / "meta.csv", f'audio,text\n"{name}",Hello')
        return list(read_custom(folder, path, Columns(), **where))
    if kind == "gpt_sovits":
        path = said(folder / "x.list", f"{name}|anna|en|Hello")
        return list(read_gpt_sovits(folder, path, **where))
    said(folder / "metadata.csv", f"{name}|Hello")
    return list(read_ljspeech(folder, **where))


DOUBTS = {
    "nowhere": (["b.wav"], "/mnt/a.wav"),
    "two files": (["s/a.wav", "t/a.wav"], "/mnt/a.wav"),
    "two spellings": (["a.WAV", "a.Wav"], "a.wav"),
    "another name": (["aa.wav"], "/mnt/a.wav"),
    "another stem in capitals": (["A.wav"], "/mnt/a.wav"),
    "a URL": (["a.wav"], "https://x.org/a.wav"),
    "no name": (["a.wav"], ""),
    "a folder": (["a.wav/b.wav"], "a.wav"),
}


@pytest.mark.parametrize("case", DOUBTS)
@pytest.mark.parametrize("kind", ["custom", "gpt_sovits", "ljspeech"])
def test_no_other_recording_is_taken(tmp_path, kind, case):
    files, name = DOUBTS[case]
    for file in files:
        clip(tmp_path / file)
    assert len(rejects(one_line(kind, tmp_path, name))) == 1


def test_lines_that_would_mean_one_file_are_rejected(tmp_path, caplog):
    """001.wav of another speaker is no recording of this one's text."""
    clip(tmp_path / "p2" / "001.wav")
    clip(tmp_path / "p2" / "002.wav")
    path = said(
        tmp_path / "x.list",
        "/x/p1/001.wav|p1|en|One\n/x/p2/001.wav|p2|en|Two\np2/002.wav|p2|en|Three\n"
        "/x/p3/002.wav|p3|en|Four",
    )
    results = list(read_gpt_sovits(tmp_path, path))
    assert heard(utterances(results)) == [
        ("p2/001.wav", "Two", "p2"),
        ("p2/002.wav", "Three", "p2"),
    ]
    assert [reject.reason for reject in rejects(results)] == [
        "not found (several lines would mean p2/001.wav)",
        "not found (several lines would mean p2/002.wav)",
    ]
    assert "/x/p2/001.wav" in caplog.text


@pytest.mark.parametrize("kind", ["custom", "gpt_sovits", "ljspeech"])
def test_the_search_stays_in_the_audio_root(tmp_path, kind):
    outside = clip(tmp_path / "outside" / "a.wav")
    corpus = tmp_path / "corpus"
    clip(corpus / "s" / "b.wav")
    (corpus / "link").symlink_to(outside.parent)
    assert [entry.id for entry in utterances(one_line(kind, corpus, "/x/b.wav", root=corpus))]
    (reject,) = rejects(one_line(kind, corpus, "/x/a.wav", root=corpus))
    assert reject.reason == "is absolute, which the audio root forbids"
    assert rejects(one_line(kind, corpus, "gone.wav", root=corpus))
