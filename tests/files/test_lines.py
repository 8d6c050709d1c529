"""Where a line of a file ends, and what in it is JSON that can be worked with."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from plugins.errors import UserError
from plugins.files.lines import NoJson, byte_lines, parse_json, text_lines

# Each is a character of a text, at which Python's `splitlines` or text files end a line.
INSIDE = ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("character", INSIDE)
def test_a_line_ends_at_a_line_feed_only(character: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"one{character}more\ntwo\n".encode())
    assert list(text_lines(path)) == [(f"{path}:1", f"one{character}more"), (f"{path}:2", "two")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\n \t\n", []),
        (b"a", [(1, "a")]),
        (b"a\n\nb", [(1, "a"), (3, "b")]),
        (b"a\r\nb\r\n", [(1, "a\r"), (2, "b\r")]),  # JSON, and all else here, passes over it
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [(1, "a"), (2, "\ufeffb")]),
        ("é\n音\n".encode(), [(1, "é"), (2, "音")]),
        (b"a\0b\n", [(1, "a\0b")]),
    ],
)
def test_lines_keep_their_numbers(
    content: bytes, expected: list[tuple[int, str]], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert list(text_lines(path)) == [(f"{path}:{number}", line) for number, line in expected]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n\xe9\n", r"a\.txt:2: line: .* is not UTF-8; save the file as UTF-8"),
        ("a\n".encode("utf-16"), r"a\.txt:1: line: .* is not UTF-8"),
        (b"x" * 1100, r"a\.txt:1: line: .* is longer than 0 MiB; write a row per line"),
        (None, r"a\.txt: file: 'a\.txt' cannot be read \(No such file or directory\); check"),
    ],
)
def test_what_is_no_text_is_told(
    content: bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.files.lines.MAX_LINE_BYTES", 1000)
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(text_lines(tmp_path / "a.txt"))


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "a" * 300, "", "folder/"):
        with pytest.raises(UserError, match="cannot be read"):
            list(byte_lines(f"{tmp_path}/{name}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"is no JSON \(Expecting value\)"),
        ("{", r"is no JSON \("),
        ("{} {}", r"is no JSON \(Extra data\)"),
        ("[" * 200_000, r"is no JSON \(nested"),
        ("[" * 200 + "]" * 200, r"is no JSON \(nested more than 50 deep\)"),
        ('{"a":' * 200 + "1" + "}" * 200, r"is no JSON \(nested"),
        ("9" * 6000, r"is no JSON \(a number of thousands of digits\)"),
        ('{"a": -' + "9" * 6000 + "}", r"a number of thousands of digits"),
        (r'"\ud83d"', "escapes half a character"),
        (r'{"\udc00": 1}', "escapes half a character"),
        (r'{"a": ["\ude00\ud83d"]}', "escapes half a character"),
        ("'a'", r"is no JSON \("),
    ],
)
def test_what_is_no_json_of_a_row(text: str, said: str) -> None:
    with pytest.raises(NoJson) as raised:
        parse_json(text)
    assert re.search(said, raised.value.reason)
    assert raised.value.remedy


@pytest.mark.parametrize("value", [{"a": "\U0001f600"}, [[1]] * 2000, {"a\0b": "\0"}, 10**4000])
def test_whatever_else_is_json_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


def test_no_bytes_raise_anything_else(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "a.txt"
    pieces = [b"\n", b"\r", b"\xef\xbb\xbf", b"\xff", b"{", b"[", b'"', b"\\ud800", b"\0", b"1e999"]
    for _ in range(300):
        path.write_bytes(b"".join(draw.choices(pieces, k=draw.randrange(12))))
        try:
            for _place, line in text_lines(path):
                parse_json(line)
        except (UserError, NoJson):
            pass
