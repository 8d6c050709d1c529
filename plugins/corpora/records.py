"""A text table -> its records, each with the line on which it begins.

In: a file of lines. Out: `Record`, with its fields, or with the reason why they cannot be read:
one line that no table could hold takes nothing from the others. What is no table at all raises
`UserError` before anything of it is in memory. Knows no columns."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.corpora.utterance import is_utf8
from plugins.errors import UserError, problem

# Millions of clips. A sparse file of gigabytes would take twice as much memory.
_MAX_TABLE_BYTES = 1 << 30
_MAX_LINE = 1 << 17  # characters, as Python's reader takes for one field
# Stands for a longer line: no reader takes it for a record of several fields.
_TOO_LONG = "?" * (_MAX_LINE + 1)


@dataclass(frozen=True)
class Record:
    """Fields of a table, or the `fault` for which there are none to rely on."""

    line: int  # from 1; a quoted text may go on below it
    fields: list[str]
    fault: str = ""


def read_lines(path: Path) -> list[str]:
    """The lines of `path` with their ends. Bytes that are not UTF-8 are kept as lone surrogates."""

    def wrong(field: str, reason: str, remedy: str) -> UserError:
        return problem(
            source="metadata", field=field, value=str(path), reason=reason, remedy=remedy
        )

    num_bytes = path.stat().st_size
    if num_bytes > _MAX_TABLE_BYTES:
        reason = f"has {num_bytes:,} bytes, more than a table of {_MAX_TABLE_BYTES:,}"
        raise wrong("size", reason, "split it, if it is a table")
    with path.open("rb") as raw:
        if raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise wrong("encoding", "is UTF-16, not UTF-8", "save it as UTF-8")
    lines = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while line := file.readline(_MAX_LINE):
            if len(line) == _MAX_LINE and not line.endswith(("\n", "\r")):
                while (rest := file.readline(_MAX_LINE)) and not rest.endswith(("\n", "\r")):
                    pass
                line = _TOO_LONG
            lines.append(line)
    # One such line is rejected; this many mean that the table was saved otherwise.
    num_foreign = sum(not is_utf8(line) for line in lines)
    if lines and 2 * num_foreign >= len(lines):
        raise wrong("encoding", "is not UTF-8", "save it as UTF-8")
    return lines


def records(lines: Sequence[str], **dialect: Any) -> Iterator[Record]:
    """Each record of `lines` that is not blank. dialect: that of `csv.reader`."""
    begin = 0
    while begin < len(lines):
        first = begin
        reader = csv.reader(_from(lines, first), **dialect)
        try:
            for fields in reader:
                if len(fields) > 1 or "".join(fields).strip():
                    yield _checked(begin + 1, fields)
                begin = first + reader.line_num
        except csv.Error:
            # A quote that is never closed would take all the lines below with it.
            if len(lines[begin]) > _MAX_LINE:
                fault = f"is longer than {_MAX_LINE:,} characters"
            else:
                fault = "quotes do not pair up (double them, or say that quotes are text)"
            yield Record(begin + 1, [lines[begin].strip()], fault)
            begin += 1


def _from(lines: Sequence[str], first: int) -> Iterator[str]:
    for i in range(first, len(lines)):
        yield lines[i]


def _checked(line: int, fields: list[str]) -> Record:
    if not is_utf8("".join(fields)):
        return Record(line, fields, "is not UTF-8 (save the table as UTF-8)")
    return Record(line, fields)
