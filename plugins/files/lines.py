"""The lines of a text file, and the JSON in one of them.

A line ends at ``\\n`` alone: U+2028, U+0085, ``\\v``, ``\\f`` and a lone ``\\r`` are characters of
a text, at which `str.splitlines` and Python's text files would cut it in two. Of others it imports
the standard library only."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.errors import problem

MAX_LINE_BYTES = 64 << 20  # a row with the codes of a thousand clips has 40
MAX_DEPTH = 50  # of lists and objects in each other; a row needs six


class NoJson(ValueError):
    """Why a text is none that is taken. `reason` is constant per kind of fault, but for a detail in
    parentheses at its end."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy


def byte_lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """``file:line`` and content of each line that is not blank, without a byte order mark. Raises
    UserError if the file cannot be read, or for a line without end."""
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise problem(
                        source=f"{path}:{number}",
                        field="line",
                        value=line[:20],
                        reason=f"is longer than {MAX_LINE_BYTES >> 20} MiB",
                        remedy="write a row per line",
                    )
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and "\0" not in str(path):
            raise
        reason = getattr(error, "strerror", None) or "no file has such a name"
        raise problem(
            source=str(path),
            field="file",
            value=os.path.basename(path),
            reason=f"cannot be read ({reason})",
            remedy="check the path",
        ) from None


def text_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """As `byte_lines`, decoded. Raises UserError for a line that is not UTF-8, too."""
    for place, line in byte_lines(path):
        yield place, decoded(place, line)


def decoded(place: str, line: bytes) -> str:
    """Without its line feed. Raises UserError if it is not UTF-8."""
    try:
        return line.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise problem(
            source=place,
            field="line",
            value=error.reason,
            reason="is not UTF-8",
            remedy="save the file as UTF-8",
        ) from None


def parse_json(text: str) -> Any:
    """The value that `text` spells. Raises NoJson for what is no JSON, and for what Python would
    read and stumble over later: half a character, endless digits, too many brackets."""
    mend = "mend or delete the line"
    try:
        value = json.loads(text)
        # An escape may spell half a character, which no file could hold.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NoJson("escapes half a character", "write the character itself") from None
    except json.JSONDecodeError as error:
        raise NoJson(f"is no JSON ({error.msg})", mend) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # of int(): more digits than Python reads
        raise NoJson("is no JSON (a number of thousands of digits)", mend) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise _too_deep()
    return value


def depth(value: Any) -> int:
    """How many lists and objects lie in each other; 0 for anything else."""
    levels, level = 0, [value]
    while level := [entry for entry in level if isinstance(entry, dict | list)]:
        levels += 1
        inner: list[Any] = []
        for entry in level:
            inner += entry.values() if isinstance(entry, dict) else entry
        level = inner
    return levels


def _too_deep() -> NoJson:
    remedy = "write a row as docs/data-format.md shows it"
    return NoJson(f"is no JSON (nested more than {MAX_DEPTH} deep)", remedy)
