"""What `datasets` calls an AudioFolder -> utterances.

In: a folder with ``metadata.csv`` (or ``metadata.tsv``, ``metadata.jsonl``), whose `file_name` says
which recording beside or below it a row means. Out: one utterance or rejected one per row. Other
tables are of no concern here."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from plugins.corpora.jsonl import read_jsonl
from plugins.corpora.shapes import SPEAKER_NAMES, TEXT_NAMES
from plugins.corpora.tables import Columns, read_custom
from plugins.corpora.utterance import Rejected, Utterance, keep_inside
from plugins.errors import problem

_FILE_NAME = "file_name"
_DELIMITERS = {"metadata.csv": ",", "metadata.tsv": "\t"}
_JSONL = "metadata.jsonl"
_MAX_HEADER = 100_000  # characters


def metadata_of(folder: Path, names: Sequence[str], input_dir: Path, root: Path | None) -> str:
    """Which of the `names` in `folder` is the table of an AudioFolder; "" if none is."""
    for name in (*_DELIMITERS, _JSONL):
        if name in names and (folder / name).is_file():
            keep_inside(folder / name, input_dir, root)
            if _FILE_NAME in _columns(folder / name):
                return name
    return ""


def read_metadata(
    folder: Path, name: str, input_dir: Path, root: Path | None
) -> Iterator[Utterance | Rejected]:
    """The rows of the table `name` in `folder`. Texts and speakers stand in the first column that
    is called like one; ids are paths below `input_dir`. Raises UserError for a table without a
    column of texts."""
    table = folder / name
    if name == _JSONL:
        entries = read_jsonl(folder, table, root=root)
    else:
        header = _columns(table)
        text = next(filter(header.__contains__, TEXT_NAMES), None)
        if text is None:
            raise problem(
                source=f"{table}:1",
                field="columns",
                value=header,
                reason=f"name no text ({', '.join(TEXT_NAMES)})",
                remedy=f"rename that column, or give --dataset_type custom --csv_file {table}"
                f" --audio_column {_FILE_NAME} --text_column NAME",
            )
        speaker = next(filter(header.__contains__, SPEAKER_NAMES), None)
        columns = Columns(text=text, audio=_FILE_NAME, speaker=speaker)
        entries = read_custom(folder, table, columns, delimiter=_DELIMITERS[name], root=root)
    for entry in entries:
        # Two subsets may have files of one name.
        below = folder.relative_to(input_dir)
        yield replace(entry, id=(below / entry.id).as_posix() if entry.id else "")


def _columns(table: Path) -> list[str]:
    """The names in its first line; none of what is no table."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        line = file.readline(_MAX_HEADER)
    try:
        if table.name == _JSONL:
            row = json.loads(line)
            return list(row) if isinstance(row, dict) else []
        fields = next(csv.reader([line], delimiter=_DELIMITERS[table.name]), [])
    except (ValueError, RecursionError, csv.Error):
        return []
    return list(map(str.strip, fields))
