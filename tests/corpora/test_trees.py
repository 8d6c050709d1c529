"""LibriTTS, VCTK and folders of clips -> utterances: exactly what a tree holds, and exactly what it
lacks."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

from helpers.trees import (
    at_most,
    clip,
    heard,
    rejects,
    said,
    sorted_out,
    utterances,
)

from plugins.corpora import (
    Rejected,
    Utterance,
    read_folder,
    read_libritts,
    read_vctk,
)
from plugins.prepare.rows import rejected_row


def libritts_utterance(
    root: Path, id_: str, *, normalized: str | None = None, original: str | None = None
) -> Path:
    """The files of one utterance; a text that is None has no file. Returns the path without its
    suffixes."""
    speaker, chapter, *_ = id_.split("_")
    stem = root / speaker / chapter / id_
    clip(stem.with_suffix(".wav"))
    for kind, text in (("normalized", normalized), ("original", original)):
        if text is not None:
            said(stem.with_suffix(f".{kind}.txt"), text)
    return stem


def test_libritts_of_several_subsets(tmp_path):
    """3 subsets of 2 speakers, 2 chapters, 3 utterances, beside the tables that the corpus brings
    along."""
    expected = []
    for subset, first_speaker in (("dev-clean", 10), ("test-clean", 20), ("train-clean-100", 30)):
        for speaker in (first_speaker, first_speaker + 1):
            for chapter in (1, 2):
                folder = tmp_path / subset / str(speaker) / str(chapter)
                for number in range(3):
                    id_ = f"{speaker}_{chapter}_000000_{number:06d}"
                    libritts_utterance(
                        tmp_path / subset, id_, normalized=f"Text of {id_}", original="Mr. 1"
                    )
                    expected.append((id_, f"Text of {id_}", str(speaker)))
                said(folder / f"{speaker}_{chapter}.trans.tsv", "x\ty\tz")
                said(folder / f"{speaker}_{chapter}.book.tsv", "x\ty\tz")
    said(tmp_path / "speakers.tsv", "READER\tGENDER")
    results = list(read_libritts(tmp_path))
    assert heard(results) == expected
    assert len(results) == 36
    assert results[0] == Utterance(
        place=str(tmp_path / "dev-clean/10/1/10_1_000000_000000.wav"),
        id="10_1_000000_000000",
        text="Text of 10_1_000000_000000",
        audio=tmp_path / "dev-clean/10/1/10_1_000000_000000.wav",
        speaker="10",
    )
    assert (
        heard(read_libritts(tmp_path / "dev-clean")) == expected[:12]
    )  # a subset alone is a corpus too


def test_libritts_takes_the_normalized_text_and_tells_what_lacks_its_other_half(tmp_path):
    """LibriTTS-R lacks some recordings; a blank normalized text must not hide the original one."""
    libritts_utterance(tmp_path, "1_2_3_0", normalized="mister one", original="Mr. 1")
    libritts_utterance(tmp_path, "1_2_3_1", original="Mr. 2")
    libritts_utterance(tmp_path, "1_2_3_2", normalized="  ", original="Mr. 3")
    libritts_utterance(tmp_path, "1_2_3_3")
    libritts_utterance(tmp_path, "1_2_3_4", original="gone").with_suffix(".wav").unlink()
    libritts_utterance(tmp_path, "1_2_3_5", normalized="", original="")
    libritts_utterance(tmp_path, "1_2_3_6", normalized="x").with_suffix(
        ".normalized.txt"
    ).write_bytes(b"caf\xe9")
    results = list(read_libritts(tmp_path))
    folder = tmp_path / "1" / "2"
    assert heard(utterances(results)) == [
        ("1_2_3_0", "mister one", "1"),
        ("1_2_3_1", "Mr. 2", "1"),
        ("1_2_3_2", "Mr. 3", "1"),
        ("1_2_3_5", "", "1"),
    ]
    latin = str(folder / "1_2_3_6.normalized.txt")
    assert rejects(results) == [
        Rejected(str(folder / "1_2_3_3.wav"), "1_2_3_3", "no transcript", "1_2_3_3.normalized.txt"),
        Rejected(str(folder / "1_2_3_4.original.txt"), "1_2_3_4", "no recording", "1_2_3_4.wav"),
        Rejected(latin, "1_2_3_6", "transcript is not UTF-8", latin),
    ]


def test_folder_at_any_depth(tmp_path):
    """The speaker is the first folder, capitals in suffixes count, x.txt goes before x.lab (HTS
    labels are no text)."""
    clip(tmp_path / "intro.wav")
    said(tmp_path / "intro.txt", "Hello")
    clip(tmp_path / "anna" / "day 1" / "take.2.flac")
    said(tmp_path / "anna" / "day 1" / "take.2.lab", " two\nlines ")
    clip(tmp_path / "anna" / "LOUD.WAV")
    said(tmp_path / "anna" / "LOUD.TXT", "LOUD")
    clip(tmp_path / "bert" / "a.ogg")
    said(tmp_path / "bert" / "a.txt", "text")
    said(tmp_path / "bert" / "a.lab", "0 50000 sil")
    clip(tmp_path / "bert" / ".hidden.wav")
    said(tmp_path / ".cache" / "x.txt", "hidden")
    results = list(read_folder(tmp_path))
    assert heard(results) == [
        ("intro.wav", "Hello", None),
        ("anna/LOUD.WAV", "LOUD", "anna"),
        ("anna/day 1/take.2.flac", "two lines", "anna"),
        ("bert/a.ogg", "text", "bert"),
    ]
    for utterance in utterances(results):
        assert utterance.audio == tmp_path / utterance.id


def test_folder_tells_every_file_that_it_leaves_out(tmp_path):
    """A clip without text, a text without clip, one text for two recordings: each would vanish
    unseen."""
    clip(tmp_path / "s" / "alone.wav")
    said(tmp_path / "s" / "unspoken.txt", "Hello")
    said(tmp_path / "README.txt", "about")
    for suffix in (".flac", ".wav", ".mp3"):
        clip(tmp_path / "s" / f"twice{suffix}")
    said(tmp_path / "s" / "twice.txt", "Twice")
    (tmp_path / "s" / "notes.md").write_text("ignored: neither audio nor transcript")
    assert sorted_out(read_folder(tmp_path)) == (
        ["s/twice.wav"],
        [
            ("README.txt", "no recording", "README.wav"),
            ("s/alone.wav", "no transcript", "alone.txt"),
            ("s/twice.flac", "shares its transcript with another recording", "twice.wav"),
            ("s/twice.mp3", "shares its transcript with another recording", "twice.wav"),
            ("s/unspoken.txt", "no recording", "unspoken.wav"),
        ],
    )


def test_folder_with_faulty_files(tmp_path):
    """Pipes in the place of a clip and of a text must be told and never opened."""
    for name in ("bom", "blank", "latin", "pipe-text"):
        clip(tmp_path / f"{name}.wav")
    (tmp_path / "bom.txt").write_bytes("\ufeffOne\r\ntwo\r\n".encode())
    (tmp_path / "blank.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    os.mkfifo(tmp_path / "pipe-text.txt")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "dangling.wav").symlink_to("nowhere.wav")
    for name in ("pipe", "empty", "dangling"):
        said(tmp_path / f"{name}.txt", "Hello")
    with at_most(10):
        results = list(read_folder(tmp_path))
    assert [(utterance.id, utterance.text) for utterance in utterances(results)] == [
        ("blank.wav", ""),
        ("bom.wav", "One two"),
    ]
    assert sorted_out(results)[1] == [
        ("dangling.wav", f"not found (looked in {tmp_path}/)", "dangling.wav"),
        ("empty.wav", "is empty (0 bytes)", str(tmp_path / "empty.wav")),
        ("latin.wav", "transcript is not UTF-8", str(tmp_path / "latin.txt")),
        ("pipe.wav", "is not a regular file", str(tmp_path / "pipe.wav")),
        ("pipe-text.wav", "transcript is not a regular file", str(tmp_path / "pipe-text.txt")),
    ]


def test_linked_folders_are_read_once(tmp_path):
    """Corpora link to other disks, so links are followed; a link to a folder above must not
    loop."""
    corpus = tmp_path / "corpus"
    clip(tmp_path / "disk" / "x.wav")
    said(tmp_path / "disk" / "x.txt", "X")
    (corpus / "zoe").mkdir(parents=True)
    clip(corpus / "zoe" / "y.wav")
    said(corpus / "zoe" / "y.txt", "Y")
    (corpus / "outside").symlink_to(tmp_path / "disk")
    (corpus / "again").symlink_to(corpus / "zoe")
    (corpus / "zoe" / "loop").symlink_to(corpus)
    assert heard(read_folder(corpus)) == [
        ("zoe/y.wav", "Y", "zoe"),
        ("outside/x.wav", "X", "outside"),
    ]
    assert utterances(read_folder(corpus))[1].audio == tmp_path / "disk" / "x.wav"


def test_a_name_that_is_not_utf8_is_told_and_can_be_written(tmp_path):
    """JSON could not hold it: the run would end in a traceback after hours, without any list of the
    rejected."""
    folder = os.fsencode(tmp_path)
    clip(tmp_path / "a.wav").rename(os.fsdecode(folder + b"/caf\xe9.wav"))
    said(tmp_path / "a.txt", "Coffee").rename(os.fsdecode(folder + b"/caf\xe9.txt"))
    said(tmp_path / "b.txt", "B").rename(os.fsdecode(folder + b"/\xff.txt"))
    results = list(read_folder(tmp_path))
    assert sorted_out(results) == (
        [],
        [
            (r"caf\udce9.wav", "name is not UTF-8", rf"{tmp_path}/caf\udce9.wav"),
            (r"\udcff.txt", "no recording", r"\udcff.wav"),
        ],
    )
    for reject in rejects(results):
        json.dumps(rejected_row(reject), ensure_ascii=False).encode()


def test_vctk_microphones(tmp_path):
    """The second microphone where it was asked for and recorded; p280 and p315 have the first one
    only."""
    tree = tmp_path / "wav48_silence_trimmed"
    for name in (
        "p225_001_mic1",
        "p225_001_mic2",
        "p280_001_mic1",
        "p225_002_mic2",
        "p315_001_mic1",
    ):
        clip(tree / name[:4] / f"{name}.flac")
    for id_ in ("p225_001", "p225_002", "p280_001"):
        said(tmp_path / "txt" / id_[:4] / f"{id_}.txt", id_)

    def names(mic: int) -> list[str]:
        return [utterance.audio.name for utterance in utterances(read_vctk(tmp_path, mic=mic))]

    assert names(1) == ["p225_001_mic1.flac", "p225_002_mic2.flac", "p280_001_mic1.flac"]
    assert names(2) == ["p225_001_mic2.flac", "p225_002_mic2.flac", "p280_001_mic1.flac"]
    lost = ("p315_001", "no transcript", "p315_001.txt")
    assert sorted_out(read_vctk(tmp_path, mic=2)) == (["p225_001", "p225_002", "p280_001"], [lost])


def test_vctk_counts(tmp_path):
    """110 clips of 10 speakers in the older tree, p315's without text."""
    speakers = [*range(225, 234), 315]
    for speaker in speakers:
        for number in range(1, 12):
            name = f"p{speaker}/p{speaker}_{number:03d}"
            clip(tmp_path / "wav48" / f"{name}.wav", duration_s=0.01)
            if speaker != 315:
                said(tmp_path / "txt" / f"{name}.txt", f"Text {number}")
    results = list(read_vctk(tmp_path))
    clips_per_speaker = Counter(utterance.speaker for utterance in utterances(results))
    assert clips_per_speaker == {f"p{number}": 11 for number in speakers[:9]}
    assert len(rejects(results)) == 11
    assert {reject.kind for reject in rejects(results)} == {"no transcript"}


def test_suffixes_in_capitals_and_accents_taken_apart(tmp_path):
    """Windows and macOS write them; VCTK's and LibriTTS's clips were not there at all."""
    vctk, libritts, folder = (tmp_path / name for name in ("vctk", "libritts", "folder"))
    clip(vctk / "wav48" / "p225" / "p225_001.WAV")
    clip(vctk / "wav48" / "p225" / "p225_002_mic1.Flac")
    for number in ("001.TXT", "002.txt"):
        said(vctk / "txt" / "p225" / f"p225_{number}", "Hello")
    assert [name for name, *_ in heard(read_vctk(vctk))] == ["p225_001", "p225_002"]
    clip(libritts / "1" / "2" / "1_2_3.WAV")
    said(libritts / "1" / "2" / "1_2_3.Normalized.TXT", "Hello")
    assert heard(read_libritts(libritts)) == [("1_2_3", "Hello", "1")]
    clip(folder / unicodedata.normalize("NFD", "Zoë.wav"))
    said(folder / unicodedata.normalize("NFC", "Zoë.txt"), "Hello")
    assert [text for _, text, _ in heard(read_folder(folder))] == ["Hello"]


def test_a_pipe_in_the_place_of_a_vctk_text(tmp_path):
    """Reading it would wait forever for somebody to write."""
    clip(tmp_path / "wav48" / "p225" / "p225_001.wav")
    (tmp_path / "txt" / "p225").mkdir(parents=True)
    os.mkfifo(tmp_path / "txt" / "p225" / "p225_001.txt")
    with at_most(10):
        [reject] = rejects(read_vctk(tmp_path))
    assert reject.reason == "transcript is not a regular file"
