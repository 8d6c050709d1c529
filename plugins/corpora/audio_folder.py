"""What `datasets` calls an AudioFolder, and the notes beside the clips of a WebDataset.

In: a folder with ``metadata.csv`` (or ``metadata.tsv``, ``metadata.jsonl``), whose `file_name` says
which recording beside or below it a row means; or ``x.json`` with the text of ``x.wav``. Out:
utterances, or what such a note says. Other tables are of no concern here."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from plugins.audio.waveforms import AudioError
from plugins.corpora.jsonl import read_jsonl
from plugins.corpora.shapes import SPEAKER_NAMES, TEXT_NAMES
from plugins.corpora.tables import Columns, read_custom
from plugins.corpora.utterance import Rejected, Utterance, collapse, keep_inside
from plugins.errors import problem

_FILE_NAME = "file_name"
_DELIMITERS = {"metadata.csv": ",", "metadata.tsv": "\t"}
_JSONL = "metadata.jsonl"
_MAX_HEADER = 100_000  # characters
_MAX_NOTE_BYTES = 1_000_000
NOTE_SUFFIX = ".json"


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


def read_note(path: Path, input_dir: Path, root: Path | None) -> dict[str, str | None]:
    """`text`, `speaker` and `language` of a clip, of the JSON beside it. Raises `AudioError`."""
    keep_inside(path, input_dir, root)
    # Reading a pipe would wait for its writer forever.
    if not path.is_file():
        raise AudioError(path, "is not a regular file", "write a text file")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_NOTE_BYTES + 1)
        if len(content) > _MAX_NOTE_BYTES:
            reason = f"is larger than {_MAX_NOTE_BYTES:,} bytes"
            raise AudioError(path, reason, "write what the clip says, no more")
        note = json.loads(content.decode("utf-8-sig"))
    except AudioError:
        raise  # which is a ValueError too
    except OSError as error:
        reason = f"may not be read ({error.strerror})"
        raise AudioError(path, reason, "grant read permission") from None
    except (ValueError, RecursionError):
        raise AudioError(path, "is no JSON", "write an object with a text") from None
    names = note if isinstance(note, dict) else {}
    text = next((names[name] for name in TEXT_NAMES if isinstance(names.get(name), str)), None)
    if text is None:
        raise AudioError(path, f"names no text ({', '.join(TEXT_NAMES)})", "add one")
    speaker = next((names[name] for name in SPEAKER_NAMES if names.get(name)), None)
    language = names.get("language")
    return {
        "text": collapse(text),
        "speaker": str(speaker) if isinstance(speaker, str | int) else None,
        "language": language if isinstance(language, str) else None,
    }


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
    return [field.strip() for field in fields]
