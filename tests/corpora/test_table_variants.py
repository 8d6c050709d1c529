"""Tables as strangers write them: encodings, line ends, quotes, empty fields, stray delimiters. Of
each, exactly which rows are read and which are rejected; never another column in silence."""

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers.trees import clip, in_memory_mb, rejects, said, utterances

from plugins.corpora import (
    Columns,
    Rejected,
    Utterance,
    read_custom,
    read_gpt_sovits,
    read_ljspeech,
)
from plugins.errors import UserError

Rows = dict[str, str]  # id of the recording -> text


def outcome(results) -> tuple[Rows, list[tuple[int, str]]]:
    """Stem of each recording -> its text; line and kind of what is rejected."""
    results = list(results)
    read = {utterance.audio.stem: utterance.text for utterance in utterances(results)}
    return read, [(int(r.place.rpartition(":")[2]), r.kind) for r in rejects(results)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wavs/a.wav to wavs/d.wav."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in "abcd":
        clip(folder / "wavs" / f"{name}.wav")
    return folder


COUNT = "wrong number of fields"
LJSPEECH: dict[str, tuple[bytes, Rows, list[tuple[int, str]]]] = {
    "the case of the issue": (
        b"a|male1|Hello world.\nb|male1|\nc|x|y|z\nd|Good day.|Good day.",
        {"a": "Hello world.", "b": "", "d": "Good day."},
        [(3, COUNT)],
    ),
    "two fields": (b"a|One\nb|Two\n", {"a": "One", "b": "Two"}, []),
    "CRLF": (b"a|x|One\r\n\r\nb|x|Two\r\n", {"a": "One", "b": "Two"}, []),
    "CR": (b"a|x|One\rb|x|Two\r", {"a": "One", "b": "Two"}, []),
    "byte order mark": ("\ufeffa|x|One".encode(), {"a": "One"}, []),
    "suffixes": (
        b"a.wav|One\nwavs/b.wav|Two\nwavs\\c|Three",
        {"a": "One", "b": "Two", "c": "Three"},
        [],
    ),
    "spaces": (b" a | x | One  two \n   \n", {"a": "One two"}, []),
    "quotes are text": (b'a|x|"One\nb|"y"|Two"', {"a": '"One', "b": 'Two"'}, []),
    "two stray bars": (
        b"a|x|One|\nb|x|Two\n|c|x|Three\nd|x|Four",
        {"b": "Two", "d": "Four"},
        [(1, COUNT), (3, COUNT)],
    ),
    "no bar": (b"a|x|One\nb\n", {"a": "One"}, [(2, COUNT)]),
    "no id": (b"|x|One\nb|x|Two", {"b": "Two"}, [(1, "names no file")]),
    "U+2028 and U+0085": ("a|x|One\u2028two\x85three".encode(), {"a": "One two three"}, []),
    "a vertical tab": (b"a|x|One\x0btwo\nb|x|Two", {"a": "One two", "b": "Two"}, []),
    "one line in Latin-1": (
        b"a|x|caf\xe9\nb|x|Two\nc|x|Three",
        {"b": "Two", "c": "Three"},
        [(1, "is not UTF-8")],
    ),
    "an endless line": (
        b"a|x|One\nb|x|" + b"y" * 200_000 + b"\nc|x|Three",
        {"a": "One", "c": "Three"},
        [(2, "is longer than 131,072 characters")],
    ),
    "NUL in an id": (b"a\0|x|One\nb|x|Two", {"b": "Two"}, [(1, "names no file")]),
}


@pytest.mark.parametrize("case", LJSPEECH)
def test_ljspeech(corpus, case):
    content, *expected = LJSPEECH[case]
    (corpus / "metadata.csv").write_bytes(content)
    assert outcome(read_ljspeech(corpus)) == tuple(expected)


CUSTOM: dict[str, tuple[bytes, Rows, list[tuple[int, str]]]] = {
    "stray delimiters": (
        b"audio,text\na,One\nb,Two, three\nc\nd,Four",
        {"a": "One", "d": "Four"},
        [(3, COUNT), (4, COUNT)],
    ),
    "empty fields": (b"audio,text,x\na,,y\n,Two,y\n", {"a": ""}, [(3, "names no file")]),
    "quoted delimiters": (b'audio;text\n"a";"One; two"\n', {"a": "One; two"}, []),
    "a quoted line break": (
        b'audio,text\r\na,"One\r\ntwo"\r\nb,Two\r\nc,"Three"x\r\nd,Four',
        {"a": "One two", "b": "Two", "d": "Four"},
        [(5, "quotes do not pair up")],
    ),
    "a quote that is never closed": (
        b'audio,text\na,One\nb,"Two\nc,Three\nd,Four\n',
        {"a": "One", "c": "Three", "d": "Four"},
        [(3, "quotes do not pair up")],
    ),
    "one that is never closed, above a large table": (
        b'audio,text\na,"One\n' + b"b,Two\n" * 30_000 + b"c,Three\n",
        {"b": "Two", "c": "Three"},
        [(2, "quotes do not pair up")],
    ),
    "tabs and a byte order mark": ("\ufefftext\taudio\nOne\ta".encode(), {"a": "One"}, []),
    "bars": (b"text|audio\nOne, two; three|a.wav\n", {"a": "One, two; three"}, []),
    "spaces around": (b" audio , text \n a , One \n", {"a": "One"}, []),
    "a line of delimiters": (b"audio,text\na,One\n,\n", {"a": "One"}, [(3, "names no file")]),
    "other letters": ("audio,text\na,Zoë 你好\n".encode(), {"a": "Zoë 你好"}, []),
    "one line in Latin-1": (
        b"audio,text\na,caf\xe9\nb,Two",
        {"b": "Two"},
        [(2, "is not UTF-8")],
    ),
    "columns twice that are not read": (b"x,audio,x,text\n1,a,2,One", {"a": "One"}, []),
}


@pytest.mark.parametrize("case", CUSTOM)
def test_custom(corpus, case):
    content, *expected = CUSTOM[case]
    (corpus / "meta.csv").write_bytes(content)
    assert outcome(read_custom(corpus / "wavs", corpus / "meta.csv", Columns())) == tuple(expected)


NO_HEADER = {
    "bars beside commas": (
        b"a|One, two, three\nb|Two, three\n",
        {"a": "One, two, three", "b": "Two, three"},
    ),
    "commas": (b'a.wav,"One, two"\nb.wav,Two\n', {"a": "One, two", "b": "Two"}),
    "tabs": (b"a\tOne; two\nb\tTwo, three", {"a": "One; two", "b": "Two, three"}),
    "semicolons": (b"a;One\nb;Two", {"a": "One", "b": "Two"}),
    "one line": (b"a|Hello, you", {"a": "Hello, you"}),
    "a stray bar first": (b"a|One|x\nb|Two\nc|Three", {"b": "Two", "c": "Three"}),
}


@pytest.mark.parametrize("case", NO_HEADER)
def test_a_table_without_header(corpus, case):
    """The first line was taken for one, and its recording was lost."""
    content, expected = NO_HEADER[case]
    (corpus / "meta.csv").write_bytes(content)
    columns = Columns(audio="1", text="2")
    results = read_custom(corpus / "wavs", corpus / "meta.csv", columns, header=False)
    assert outcome(results)[0] == expected


def test_columns_of_a_table_without_header_go_by_number(corpus):
    table = said(corpus / "meta.csv", "anna|One|a\nbert|Two|b")
    columns = Columns(audio="3", text="2", speaker="1")
    results = utterances(read_custom(corpus / "wavs", table, columns, header=False))
    assert [(u.id, u.text, u.speaker) for u in results] == [
        ("a.wav", "One", "anna"),
        ("b.wav", "Two", "bert"),
    ]
    with pytest.raises(UserError, match=r"column: '4' not found; use one of 1, 2, 3$"):
        list(read_custom(corpus, table, Columns(audio="4", text="2"), header=False, delimiter="|"))
    with pytest.raises(UserError, match=r"'text' not found; .*--no_header if the table has none"):
        list(read_custom(corpus, table, Columns()))


GPT_SOVITS: dict[str, tuple[bytes, Rows, list[tuple[int, str]]]] = {
    "two lines short of a bar": (
        b"a.wav|x|en|One\nb.wav|en|Two\nc.wav\nd.wav|x|en|Four",
        {"a": "One", "d": "Four"},
        [(2, COUNT), (3, COUNT)],
    ),
    "bars in the text": (b"a.wav|x|en|One|two", {"a": "One|two"}, []),
    "an empty text": (b"a.wav|x|en|\nb.wav|x|en|Two", {"a": "", "b": "Two"}, []),
    "no speaker, no language": (b"a.wav|||One", {"a": "One"}, []),
    "no name": (b"|x|en|One\nb.wav|x|en|Two", {"b": "Two"}, [(1, "names no file")]),
    "quotes": (b'"a.wav"|x|en|One\nb.wav|x|en|"Two', {"b": '"Two'}, [(1, "not found")]),
    "CRLF and byte order mark": ("\ufeffa.wav|x|en|One\r\n".encode(), {"a": "One"}, []),
    "CR": (b"a.wav|x|en|One\rb.wav|x|en|Two", {"a": "One", "b": "Two"}, []),
    "U+2028": ("a.wav|x|en|One\u2028two|three".encode(), {"a": "One two|three"}, []),
    "no suffix": (b"a|x|en|One", {"a": "One"}, []),
    "blank lines": (b"\n \na.wav|x|en|One\n\n", {"a": "One"}, []),
    "one line in Latin-1": (
        b"a.wav|x|en|caf\xe9\nb.wav|x|en|Two\nc.wav|x|en|3",
        {"b": "Two", "c": "3"},
        [(1, "is not UTF-8")],
    ),
}


@pytest.mark.parametrize("case", GPT_SOVITS)
def test_gpt_sovits(corpus, case):
    content, *expected = GPT_SOVITS[case]
    (corpus / "x.list").write_bytes(content)
    assert outcome(read_gpt_sovits(corpus / "wavs", corpus / "x.list")) == tuple(expected)


@pytest.mark.parametrize(
    ("lines", "is_told"),
    [
        (["a|Hello.|alice", "b|Bye.|alice"], True),
        (["a|Hello.|alice", "b|Bye.|bob", "c|Yes.|alice"], True),
        (["a|alice", "b|alice"], True),
        (["a|Hello.|Hello.", "b|Bye.|Bye."], False),
        (["a|alice|Hello.", "b|alice|Bye."], False),
        (["a|Hello.", "b|x|Bye."], True),
        (["a|One", "b|Two", "c|Three"], False),
    ],
)
def test_a_last_column_that_may_be_no_text_is_warned_of(corpus, caplog, lines, is_told):
    """`a|Hello world.|alice` trained the text `alice`."""
    said(corpus / "metadata.csv", "\n".join(lines))
    assert len(utterances(read_ljspeech(corpus))) == len(lines)
    assert bool(caplog.text) == is_told, caplog.text
    assert not is_told or str(corpus / "metadata.csv") in caplog.text


def test_names_in_the_place_of_texts_are_warned_of(corpus, caplog):
    table = said(corpus / "x.list", "a.wav|One.|en|anna\nb.wav|Two.|en|anna")
    assert len(utterances(read_gpt_sovits(corpus / "wavs", table))) == 2
    assert "1 different values in 2 lines (such as 'anna')" in caplog.text


def test_a_sparse_table_takes_no_memory(corpus):
    """3 GB of nothing took 6 GB."""
    table = said(corpus / "meta.csv", "audio,text\na,One")
    for num_bytes, match in ((3 << 30, "has 3,221,225,472 bytes"), (40 << 20, None)):
        os.truncate(table, num_bytes)
        with in_memory_mb(20):
            if match:
                with pytest.raises(UserError, match=match):
                    list(read_custom(corpus / "wavs", table, Columns()))
                continue
            read, rejected = outcome(read_custom(corpus / "wavs", table, Columns()))
            assert (read, len(rejected)) == ({"a": "One"}, 1)


# --- anything at all ---

PIECES = [
    b"a",
    b"wavs/b.wav",
    b"text",
    b"audio",
    b",",
    b"|",
    b";",
    b"\t",
    b'"',
    b'""',
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\0",
    b"\xe9",
    b"\xff\xfe",
    "\u2028".encode(),
    "Zoë".encode(),
    b"\\",
    b"/x/c.wav",
    b"..",
    b"1",
    b"|x|en|One\n",
    b"a|x|One\n",
    b"https://x.org/a.wav",
    b"~",
]


def entries(read: Callable[..., Iterable[Utterance | Rejected]], *arguments: Any, **options: Any):
    """How many entries `read` gives; None for a table that it refuses."""
    try:
        return len(list(read(*arguments, **options)))
    except UserError:
        return None


def test_no_table_ends_in_a_traceback(corpus):
    """Only `UserError` may come out, and no line may vanish: where quotes are text, each that is
    not blank is one entry."""
    generator = random.Random(18)
    table, metadata = corpus / "fuzz.csv", corpus / "metadata.csv"
    for _ in range(150):
        content = b"".join(generator.choices(PIECES, k=generator.randrange(40)))
        for path in (table, metadata):
            path.write_bytes(content)
        root = generator.choice([None, corpus])
        lines = content.decode("utf-8-sig", "surrogateescape").replace("\r", "\n").split("\n")
        num_lines = sum(bool(line.strip()) for line in lines)
        assert entries(read_ljspeech, corpus, root=root) in (None, num_lines)
        assert entries(read_gpt_sovits, corpus, table, root=root) in (None, num_lines)
        entries(read_custom, corpus, table, Columns(), root=root)
        numbered = Columns(audio="1", text="2")
        for quotes in (True, False):
            entries(read_custom, corpus, table, numbered, header=False, quotes=quotes, root=root)
