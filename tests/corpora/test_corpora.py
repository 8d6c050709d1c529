"""Corpora -> utterances: every tree and table yields exactly what it holds, and tells exactly what
it lacks."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.trees import as_nobody, at_most, clip, folder_of_others, heard, said, sorted_out

from plugins.corpora import (
    Columns,
    Rejected,
    Utterance,
    read_custom,
    read_folder,
    read_gpt_sovits,
    read_jsonl,
    read_libritts,
    read_ljspeech,
    read_vctk,
)
from plugins.errors import UserError
from plugins.prepare.rows import rejected_row

# --- LibriTTS ---


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
    found = list(read_libritts(tmp_path))
    assert heard(found) == expected
    assert len(found) == 36
    assert found[0] == Utterance(
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
    found = list(read_libritts(tmp_path))
    folder = tmp_path / "1" / "2"
    assert heard(each for each in found if isinstance(each, Utterance)) == [
        ("1_2_3_0", "mister one", "1"),
        ("1_2_3_1", "Mr. 2", "1"),
        ("1_2_3_2", "Mr. 3", "1"),
        ("1_2_3_5", "", "1"),
    ]
    latin = str(folder / "1_2_3_6.normalized.txt")
    assert [each for each in found if isinstance(each, Rejected)] == [
        Rejected(str(folder / "1_2_3_3.wav"), "1_2_3_3", "no transcript", "1_2_3_3.normalized.txt"),
        Rejected(str(folder / "1_2_3_4.original.txt"), "1_2_3_4", "no recording", "1_2_3_4.wav"),
        Rejected(latin, "1_2_3_6", "transcript is not UTF-8", latin),
    ]


# --- a folder of clips with transcripts ---


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
    found = list(read_folder(tmp_path))
    assert heard(found) == [
        ("intro.wav", "Hello", None),
        ("anna/LOUD.WAV", "LOUD", "anna"),
        ("anna/day 1/take.2.flac", "two lines", "anna"),
        ("bert/a.ogg", "text", "bert"),
    ]
    assert [each.audio.relative_to(tmp_path).as_posix() for each in found] == [
        each.id for each in found
    ]


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
        found = list(read_folder(tmp_path))
    assert [(each.id, each.text) for each in found if isinstance(each, Utterance)] == [
        ("blank.wav", ""),
        ("bom.wav", "One two"),
    ]
    assert sorted_out(found)[1] == [
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
    assert heard(read_folder(corpus))[1][0] == "outside/x.wav"
    assert (
        next(each.audio for each in read_folder(corpus) if each.id == "outside/x.wav")
        == tmp_path / "disk" / "x.wav"
    )


def test_a_name_that_is_not_utf8_is_told_and_can_be_written(tmp_path):
    """JSON could not hold it: the run would end in a traceback after hours, without any list of the
    rejected."""
    folder = os.fsencode(tmp_path)
    clip(tmp_path / "a.wav").rename(os.fsdecode(folder + b"/caf\xe9.wav"))
    said(tmp_path / "a.txt", "Coffee").rename(os.fsdecode(folder + b"/caf\xe9.txt"))
    said(tmp_path / "b.txt", "B").rename(os.fsdecode(folder + b"/\xff.txt"))
    found = list(read_folder(tmp_path))
    assert sorted_out(found) == (
        [],
        [
            (r"caf\udce9.wav", "name is not UTF-8", rf"{tmp_path}/caf\udce9.wav"),
            (r"\udcff.txt", "no recording", r"\udcff.wav"),
        ],
    )
    for each in found:
        assert isinstance(each, Rejected)
        json.dumps(rejected_row(each), ensure_ascii=False).encode()


def test_a_list_whose_own_name_is_not_utf8_is_read(tmp_path):
    """Its name only tells where a clip was named, and must be the same for one that is rejected
    later."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv"))
    said(path, "audio,text\na.wav,A")
    clip(tmp_path / "a.wav")
    [utterance] = read_custom(tmp_path, path, Columns())
    assert isinstance(utterance, Utterance)
    assert (
        utterance.place
        == Rejected(utterance.place, "a", "b", 0).place
        == rf"{tmp_path}/caf\udce9.csv:2"
    )


# --- VCTK ---


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
        return [
            each.audio.name for each in read_vctk(tmp_path, mic=mic) if isinstance(each, Utterance)
        ]

    assert names(1) == ["p225_001_mic1.flac", "p225_002_mic2.flac", "p280_001_mic1.flac"]
    assert names(2) == ["p225_001_mic2.flac", "p225_002_mic2.flac", "p280_001_mic1.flac"]
    lost = ("p315_001", "no transcript", "p315_001.txt")
    assert sorted_out(read_vctk(tmp_path, mic=2)) == (["p225_001", "p225_002", "p280_001"], [lost])


def test_vctk_counts(tmp_path):
    """110 clips of 10 speakers in the older tree, p315's without text."""
    speakers = [*range(225, 234), 315]
    for speaker in speakers:
        for number in range(1, 12):
            clip(
                tmp_path / "wav48" / f"p{speaker}" / f"p{speaker}_{number:03d}.wav", duration_s=0.01
            )
            if speaker != 315:
                said(
                    tmp_path / "txt" / f"p{speaker}" / f"p{speaker}_{number:03d}.txt",
                    f"Text {number}",
                )
    found = list(read_vctk(tmp_path))
    assert Counter(type(each) for each in found) == {Utterance: 99, Rejected: 11}
    assert Counter(each.speaker for each in found if isinstance(each, Utterance)) == {
        f"p{i}": 11 for i in speakers[:9]
    }
    assert {each.kind for each in found if isinstance(each, Rejected)} == {"no transcript"}


def test_a_pipe_in_the_place_of_a_vctk_text(tmp_path):
    """Reading it would wait forever for somebody to write."""
    clip(tmp_path / "wav48" / "p225" / "p225_001.wav")
    (tmp_path / "txt" / "p225").mkdir(parents=True)
    os.mkfifo(tmp_path / "txt" / "p225" / "p225_001.txt")
    with at_most(10):
        assert [reason for _, reason, _ in sorted_out(read_vctk(tmp_path))[1]] == [
            "transcript is not a regular file"
        ]


# --- GPT-SoVITS lists ---


def test_gpt_sovits_list(tmp_path):
    """Byte order mark, CRLF, blank lines; bars and lone quotes belong to the text, since nothing
    can quote them."""
    for name in ("a.wav", "sub/b.flac"):
        clip(tmp_path / "clips" / name)
    outside = clip(tmp_path / "outside.wav")
    lines = [
        'a.wav|anna|EN|He said "no',
        "",
        "sub/b.flac|bert|jp|left | right|",
        f" {outside} | |ZH| 你  好 ",
        "gone.wav|anna|en|Hello",
        "a.wav||||",
        "   ",
    ]
    table = tmp_path / "anna.list"
    table.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    found = list(read_gpt_sovits(tmp_path / "clips", table))
    assert [
        (each.id, each.text, each.speaker, each.language)
        for each in found
        if isinstance(each, Utterance)
    ] == [
        ("a.wav", 'He said "no', "anna", "en"),
        ("sub/b.flac", "left | right|", "bert", "ja"),
        (str(outside), "你 好", None, "zh"),
        ("a.wav", "|", None, None),
    ]
    assert [each for each in found if isinstance(each, Rejected)] == [
        Rejected(f"{table}:5", "gone.wav", f"not found (looked in {tmp_path}/clips/)", "gone.wav")
    ]
    assert [each.place.rpartition(":")[2] for each in found] == ["1", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a.wav|anna|en|One\n\na.wav|anna|Two\n",
            "x.list:3: fields: 3 are not 4; write path|speaker|language|text",
        ),
        (b"a.wav|anna|en|caf\xe9\n", "x.list' is not UTF-8; save it as UTF-8"),
    ],
)
def test_faulty_gpt_sovits_list(tmp_path, content, message):
    """A line without language would take its text for one."""
    clip(tmp_path / "a.wav")
    (tmp_path / "x.list").write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_gpt_sovits(tmp_path, tmp_path / "x.list"))
    assert message in str(caught.value)


# --- CSV and TSV ---


def table(folder: Path, text: str, *names: str) -> Path:
    """A table with clips beside it."""
    for name in names:
        clip(folder / name)
    path = folder / "meta.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("typed", "character"),
    [("^", "^"), (":", ":"), (" ", " "), (r"\t", "\t"), ("\t", "\t"), ("§", "§")],
)
def test_any_character_delimits_if_named(tmp_path, typed, character):
    """A shell passes a tab on as backslash and t; delimiters inside quotes stay text."""
    rows = [("x", "file"), (f'"One{character} two"', "1.wav"), ("Thr33", "2.wav")]
    path = table(tmp_path, "".join(f"{character.join(row)}\r\n" for row in rows), "1.wav", "2.wav")
    found = read_custom(tmp_path, path, Columns(text="x", audio="file"), delimiter=typed)
    assert heard(found) == [
        ("1.wav", " ".join(f"One{character} two".split()), None),
        ("2.wav", "Thr33", None),
    ]


@pytest.mark.parametrize("delimiter", ["", "::", '"', "\n", "\r"])
def test_what_cannot_delimit_is_refused(tmp_path, delimiter):
    """Python's reader would raise TypeError, or read nonsense."""
    path = table(tmp_path, "audio,text\n")
    with pytest.raises(
        UserError,
        match=r"^custom: delimiter: .* delimits no fields; name one character, not the quote",
    ):
        list(read_custom(tmp_path, path, Columns(), delimiter=delimiter))


def test_an_unguessable_delimiter_is_asked_for(tmp_path):
    """ "use one of audio^text" would be no help."""
    path = table(tmp_path, "audio^text\na.wav^One\n", "a.wav")
    with pytest.raises(
        UserError, match=r"meta\.csv:1: column: 'text' not found; name the delimiter of the file"
    ):
        list(read_custom(tmp_path, path, Columns()))


def test_quotes_as_text(tmp_path):
    """Common Voice's TSV files quote nothing: the quote that opens a sentence would swallow the
    lines after it."""
    text = 'audio\ttext\na.wav\t"Stop," she said.\nb.wav\t"Why\n'
    path = table(tmp_path, text, "a.wav", "b.wav")
    with pytest.raises(UserError, match=r"meta\.csv:2: CSV: .*; mend the quotes there"):
        list(read_custom(tmp_path, path, Columns()))
    found = read_custom(tmp_path, path, Columns(), quotes=False)
    assert heard(found) == [("a.wav", '"Stop," she said.', None), ("b.wav", '"Why', None)]


def test_csv_with_all_its_columns_and_oddities(tmp_path):
    """BOM, CRLF, blank lines, a line break and doubled quotes inside a text; a record goes by its
    first line."""
    text = '\ufeffid,audio,text,who,lang\r\n\r\nu1,a.wav,"She said ""no"",\r\nthen left.",anna,en\r\n ,b, Hi ,,\r\n'
    path = table(tmp_path, text + "u1,gone.wav,Hello,anna,en\r\n", "a.wav", "b.mp3")
    found = list(read_custom(tmp_path, path, Columns(speaker="who", id="id", language="lang")))
    assert found == [
        Utterance(f"{path}:3", "u1", 'She said "no", then left.', tmp_path / "a.wav", "anna", "en"),
        Utterance(f"{path}:5", "b.mp3", "Hi", tmp_path / "b.mp3", None, None),
        Rejected(f"{path}:6", "u1", f"not found (looked in {tmp_path}/)", "gone.wav"),
    ]


def test_ids_that_occur_twice_are_both_yielded(tmp_path):
    """Which of them to keep is not for a reader to decide."""
    path = table(tmp_path, "audio,text\na.wav,One\na.wav,Two\n", "a.wav")
    assert heard(read_custom(tmp_path, path, Columns())) == [
        ("a.wav", "One", None),
        ("a.wav", "Two", None),
    ]


# --- what no reader may do ---


def list_files(folder: Path, audio: str) -> dict[str, object]:
    """Every reader of a list, each with one line that names `audio`."""
    row = {
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}],
        "audios": [audio],
    }
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (folder / "x.list").write_text(f"{audio}|anna|en|Hello\n")
    (folder / "metadata.csv").write_text(f"{audio}|Hello\n")
    (folder / "meta.csv").write_text(f"audio,text\n{audio},Hello\n")
    return {
        "jsonl": lambda **where: read_jsonl(folder, folder / "rows.jsonl", **where),
        "gpt_sovits": lambda **where: read_gpt_sovits(folder, folder / "x.list", **where),
        "custom": lambda **where: read_custom(folder, folder / "meta.csv", Columns(), **where),
        "ljspeech": lambda **where: read_ljspeech(folder, **where),
    }


@pytest.mark.parametrize("kind", ["jsonl", "gpt_sovits", "custom"])
def test_url_opens_no_socket(tmp_path, monkeypatch, kind):
    """A list from elsewhere could name a host to be called."""

    def refuse(*args, **kwargs):
        pytest.fail("opened a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for url in (
        "http://127.0.0.1:9/a.wav",
        "https://x.org/a.wav",
        "s3://bucket/a.wav",
        "hf://datasets/a/b.wav",
    ):
        assert [each[1:] for each in sorted_out(list_files(tmp_path, url)[kind]())[1]] == [
            ("is a URL", url)
        ]


@pytest.mark.parametrize("kind", ["jsonl", "gpt_sovits", "custom", "ljspeech"])
def test_audio_root_jails_every_list(tmp_path, kind):
    """Without it a list from elsewhere may name any file of the machine, and its sound ends in a
    model."""
    secret = clip(tmp_path / "secret.wav")
    corpus = tmp_path / "corpus"
    (corpus / "wavs").mkdir(parents=True)
    (corpus / "link.wav").symlink_to(secret)
    (corpus / "wavs" / "link.wav").symlink_to(secret)
    up, link = ("../../secret", "link") if kind == "ljspeech" else ("../secret.wav", "link.wav")
    for name, reason in (
        (up, 'holds "..", which the audio root forbids'),
        (link, "leads out of the audio root"),
    ):
        reader = list_files(corpus, name)[kind]
        assert [each.audio for each in reader() if isinstance(each, Utterance)] == [secret]
        assert [each.kind for each in reader(root=corpus) if isinstance(each, Rejected)] == [reason]


@pytest.mark.parametrize("kind", ["vctk", "libritts", "folder", "lab", "recording"])
def test_audio_root_jails_every_transcript(tmp_path, kind):
    """A link named like a transcript made a text of any file: `a.txt -> ../key`."""
    secret, sound = said(tmp_path / "key", "secret"), clip(tmp_path / "sound.wav")
    corpus = tmp_path / "corpus"
    audio, text, reader = {
        "vctk": ("wav48/p1/p1_1.wav", "txt/p1/p1_1.txt", read_vctk),
        "libritts": ("1/2/1_2.wav", "1/2/1_2.normalized.txt", read_libritts),
        "folder": ("a.wav", "a.txt", read_folder),
        "lab": ("s/a.wav", "s/a.lab", read_folder),
        "recording": ("a.wav", "a.txt", read_folder),
    }[kind]
    for path in (corpus / audio, corpus / text):
        path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "recording":
        said(corpus / text, "Hello")
        (corpus / audio).symlink_to(sound)
    else:
        clip(corpus / audio)
        (corpus / text).symlink_to(secret)
    [(_, heard_text, _)] = heard(reader(corpus))
    assert heard_text == ("Hello" if kind == "recording" else "secret"), (
        "the proof of concept is none"
    )
    [rejected] = reader(corpus, root=corpus)
    assert isinstance(rejected, Rejected)
    assert rejected.kind.removeprefix("transcript ") == "leads out of the audio root"
    assert heard(reader(corpus, root=tmp_path)) == heard(reader(corpus)), (
        "a root above takes them in"
    )


def test_audio_root_jails_lists_and_folders(tmp_path):
    """Also metadata.csv, and folders. A list that lies elsewhere as written is the user's own."""
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    clip(corpus / "wavs" / "a.wav")
    clip(outside / "b.wav")
    said(outside / "b.txt", "secret")
    listed = said(outside / "metadata.csv", "a|Hello")
    (corpus / "metadata.csv").symlink_to(listed)
    assert heard(read_ljspeech(corpus)) == [("a", "Hello", None)]
    with pytest.raises(
        UserError,
        match=r"metadata\.csv: leads out of the audio root \(to .*\); move it into [^\n]*$",
    ):
        list(read_ljspeech(corpus, root=corpus))
    table_file = said(corpus / "table.csv", "audio,text\nwavs/a.wav,Hello")
    mine = table_file.rename(outside / "table.csv")
    assert len(heard(read_custom(corpus, mine, Columns(), root=corpus))) == 1
    (corpus / "link.csv").symlink_to(mine)
    with pytest.raises(UserError, match=r"link\.csv: leads out of the audio root"):
        list(read_custom(corpus, corpus / "link.csv", Columns(), root=corpus))
    (corpus / "metadata.csv").unlink()
    (corpus / "more").symlink_to(outside)
    assert ("more/b.wav", "secret", "more") in [
        (each.id, each.text, each.speaker)
        for each in read_folder(corpus)
        if isinstance(each, Utterance)
    ]
    with pytest.raises(UserError, match="more: leads out of the audio root"):
        list(read_folder(corpus, root=corpus))


def test_no_permission_is_named(tmp_path):
    """ "not found" or "not readable audio" would send the user looking for the wrong fault. Root
    reads everything, so the reading is done by another user where the tests run as root."""
    with folder_of_others() as corpus:
        for name in ("open", "locked", "hidden/x", "mute"):
            clip(corpus / "clips" / f"{name}.wav")
            said(corpus / "clips" / f"{name}.txt", "Hello")
        table_file = said(
            corpus / "meta.csv", "audio,text\nopen.wav,A\nlocked.wav,B\nhidden/x.wav,C"
        )
        (corpus / "clips" / "mute.txt").chmod(0)
        (corpus / "clips" / "locked.wav").chmod(0)
        (corpus / "clips" / "hidden").chmod(0)

        def from_table() -> str:
            return json.dumps(sorted_out(read_custom(corpus / "clips", table_file, Columns())))

        def from_folder() -> str:
            return json.dumps(sorted_out(read_folder(corpus / "clips")))

        clips = corpus / "clips"
        assert json.loads(as_nobody(from_table)) == [
            ["open.wav"],
            [
                ["locked.wav", "may not be read", str(clips / "locked.wav")],
                ["hidden/x.wav", "may not be read", str(clips / "hidden" / "x.wav")],
            ],
        ]
        assert (
            as_nobody(from_folder) == f"[Errno 13] Permission denied: '{clips}/hidden'"
        )  # of the whole corpus
        (clips / "hidden").rename(corpus / "elsewhere")
        text = str(clips / "mute.txt")
        assert json.loads(as_nobody(from_folder)) == [
            ["open.wav"],
            [
                ["locked.wav", "may not be read", str(clips / "locked.wav")],
                ["mute.wav", "transcript may not be read (Permission denied)", text],
            ],
        ]


def test_readers_run_where_torch_swift_and_datasets_cannot_be_imported(tmp_path):
    """Only `read_huggingface`, and only when called, needs `datasets` (and with it pandas and
    pyarrow)."""
    clip(tmp_path / "s" / "a.wav")
    said(tmp_path / "s" / "a.txt", "Hello")
    list_files(tmp_path, "s/a.wav")
    program = textwrap.dedent("""
        import sys
        from pathlib import Path

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"torch", "swift", "transformers", "datasets", "pyarrow", "pandas"}:
                    raise ImportError(f"{name} was imported")

        sys.meta_path.insert(0, Blocker())
        from plugins.prepare import cli
        from plugins.corpora import *
        here = Path(sys.argv[1])
        readers = [
            read_folder(here), read_libritts(here), read_jsonl(here, here / "rows.jsonl"),
            read_gpt_sovits(here, here / "x.list"), read_custom(here, here / "meta.csv", Columns()),
        ]
        print([sum(isinstance(each, Utterance) for each in reader) for reader in readers])
        try:
            list(read_huggingface(str(here), Columns(), audio_dir=here / "out"))
        except ValueError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "[1, 0, 1, 1, 1]",
        "huggingface: package: 'datasets' is not installed; pip install datasets",
    ]
