"""GPT-SoVITS lists, CSV and TSV -> utterances: one per record, and a table that is not what it
should be."""

import os
from pathlib import Path

import pytest
from helpers.trees import (
    clip,
    heard,
    rejects,
    said,
    utterances,
)

from plugins.corpora import (
    Columns,
    Rejected,
    Utterance,
    read_custom,
    read_gpt_sovits,
)
from plugins.errors import UserError


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
    results = list(read_gpt_sovits(tmp_path / "clips", table))
    assert [
        (utterance.id, utterance.text, utterance.speaker, utterance.language)
        for utterance in utterances(results)
    ] == [
        ("a.wav", 'He said "no', "anna", "en"),
        ("sub/b.flac", "left | right|", "bert", "ja"),
        (str(outside), "你 好", None, "zh"),
        ("a.wav", "|", None, None),
    ]
    assert rejects(results) == [
        Rejected(f"{table}:5", "gone.wav", f"not found (looked in {tmp_path}/clips/)", "gone.wav")
    ]
    assert [result.place.rpartition(":")[2] for result in results] == ["1", "3", "4", "5", "6"]


def test_faulty_lines_of_a_gpt_sovits_list(tmp_path):
    """A line without language would take its text for one; it refused the whole list."""
    clip(tmp_path / "a.wav")
    path = tmp_path / "x.list"
    path.write_bytes(
        b"a.wav|anna|en|One\n\na.wav|anna|Two\n|\na.wav|anna|en|caf\xe9\na.wav|b|en|Six"
    )
    results = list(read_gpt_sovits(tmp_path, path))
    assert [utterance.text for utterance in utterances(results)] == ["One", "Six"]
    assert [(reject.place, reject.reason) for reject in rejects(results)] == [
        (f"{path}:3", "wrong number of fields (3 are not path|speaker|language|text)"),
        (f"{path}:4", "wrong number of fields (2 are not path|speaker|language|text)"),
        (f"{path}:5", "is not UTF-8 (save the table as UTF-8)"),
    ]


def test_a_list_in_another_encoding_is_refused(tmp_path):
    """Most of its lines would be rejected one by one."""
    clip(tmp_path / "a.wav")
    path = tmp_path / "x.list"
    for content in (b"a.wav|anna|en|caf\xe9\n", "a.wav|anna|en|One\n".encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.list' is .*UTF-8; save it as UTF-8$"):
            list(read_gpt_sovits(tmp_path, path))


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
    results = read_custom(tmp_path, path, Columns(text="x", audio="file"), delimiter=typed)
    assert heard(results) == [
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
    assert [(reject.place, reject.kind) for reject in read_custom(tmp_path, path, Columns())] == [
        (f"{path}:2", "quotes do not pair up"),
        (f"{path}:3", "quotes do not pair up"),
    ]
    results = read_custom(tmp_path, path, Columns(), quotes=False)
    assert heard(results) == [("a.wav", '"Stop," she said.', None), ("b.wav", '"Why', None)]


def test_csv_with_all_its_columns_and_oddities(tmp_path):
    """BOM, CRLF, blank lines, a line break and doubled quotes inside a text; a record goes by its
    first line."""
    lines = [
        "\ufeffid,audio,text,who,lang",
        "",
        'u1,a.wav,"She said ""no"",',
        'then left.",anna,en',
        " ,b, Hi ,,",
        "u1,gone.wav,Hello,anna,en",
    ]
    path = table(tmp_path, "".join(f"{line}\r\n" for line in lines), "a.wav", "b.mp3")
    results = list(read_custom(tmp_path, path, Columns(speaker="who", id="id", language="lang")))
    assert results == [
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
