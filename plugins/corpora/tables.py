"""Corpora that are listed in a table -> utterances: LJSpeech, CSV and TSV, GPT-SoVITS lists.

In: a text file with one recording per record. Out: one utterance or rejected one per record, named
by the line on which it begins. A table that is not what it should be is no row's fault: it raises
`UserError`, before the rows that follow."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugins.audio.waveforms import AUDIO_SUFFIXES
from plugins.corpora.shapes import called
from plugins.corpora.utterance import (
    Rejected,
    Utterance,
    collapse,
    keep_inside,
    locate,
    with_reference,
)
from plugins.errors import UserError, did_you_mean, problem

# GPT-SoVITS's own name -> ISO 639.
_LANGUAGES = {"jp": "ja"}


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read."""

    text: str = "text"
    audio: str = "audio"
    speaker: str | None = None
    id: str | None = None
    language: str | None = None
    reference_audio: str | None = None
    reference_text: str | None = None

    def wanted(self) -> list[str]:
        """Those that must be there."""
        return [name for name in vars(self).values() if name is not None]

    def audios(self) -> list[str]:
        """Those of recordings."""
        return [name for name in (self.audio, self.reference_audio) if name is not None]

    def with_references(self, present: Collection[str]) -> Columns:
        """Where none was named, references are read from those of the `present` columns that are
        called so, by us or by others: a table with voices to clone means them."""
        audio = self.reference_audio or called(present, "reference_audio")
        if audio is None or audio == self.audio:
            return self
        text = self.reference_text or called(present, "reference_text")
        return replace(self, reference_audio=audio, reference_text=text)


def read_ljspeech(input_dir: Path, *, root: Path | None = None) -> Iterator[Utterance | Rejected]:
    """``metadata.csv`` (``id|text|normalized text``) with ``wavs/ID.wav`` or ``.flac``; normalized
    text wins."""
    metadata = input_dir / "metadata.csv"
    if not metadata.is_file():
        raise problem(
            source="ljspeech",
            field="input_dir",
            value=str(input_dir),
            reason="holds no metadata.csv",
            remedy="name the folder that holds it",
        )
    keep_inside(metadata, input_dir, root)
    # A quote in LJSpeech is part of the text, even an unpaired one.
    for line, fields in _records(metadata, delimiter="|", quoting=csv.QUOTE_NONE):
        place = f"{metadata}:{line}"
        if len(fields) not in (2, 3):
            raise _ragged(place, fields, "are not 2 or 3", "write id|text|normalized text")
        id_ = fields[0].strip()
        text = collapse(fields[-1]) or collapse(fields[1])
        names = [f"wavs/{id_}{suffix}" for suffix in (".wav", ".flac")]
        yield locate(place, names, folder=input_dir, root=root, id_=id_, text=text)


def read_gpt_sovits(
    input_dir: Path, list_file: Path, *, root: Path | None = None
) -> Iterator[Utterance | Rejected]:
    """``path|speaker|language|text`` per line, no header; paths are absolute or relative to
    `input_dir`.

    The text is all that follows the third bar, bars and quotes included: none of the fields before
    it can hold one."""
    if not list_file.is_file():
        raise problem(
            source="gpt_sovits",
            field="list_file",
            value=str(list_file),
            reason="not found",
            remedy="name the list with the transcripts",
        )
    keep_inside(list_file, input_dir, root)
    for line, fields in _records(list_file, delimiter="|", quoting=csv.QUOTE_NONE):
        place = f"{list_file}:{line}"
        if len(fields) < 4:
            raise _ragged(place, fields, "are not 4", "write path|speaker|language|text")
        audio, speaker, language = (field.strip() for field in fields[:3])
        language = language.lower()
        yield locate(
            place,
            [audio],
            folder=input_dir,
            root=root,
            text=collapse("|".join(fields[3:])),
            speaker=speaker or None,
            language=_LANGUAGES.get(language, language) or None,
        )


def read_custom(
    input_dir: Path,
    csv_file: Path,
    columns: Columns,
    *,
    delimiter: str | None = None,
    quotes: bool = True,
    root: Path | None = None,
) -> Iterator[Utterance | Rejected]:
    r"""A CSV with a header; audio paths are absolute or relative to `input_dir` and may lack their
    extension.

    delimiter: any one character, or ``\t`` as a shell passes it on; None: the best of comma,
    semicolon, bar and tab. quotes: False takes quotes as part of the text, as Common Voice's TSV
    files mean them."""
    if not csv_file.is_file():
        raise problem(
            source="custom",
            field="csv_file",
            value=str(csv_file),
            reason="not found",
            remedy="name the CSV with the transcripts",
        )
    keep_inside(csv_file, input_dir, root)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    if delimiter is None:
        delimiter = _guess_delimiter(csv_file, columns.wanted(), quoting)
    delimiter = "\t" if delimiter == r"\t" else delimiter
    # What Python's reader would not take, or would read nonsense by.
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise problem(
            source="custom",
            field="delimiter",
            value=delimiter,
            reason="delimits no fields",
            remedy="name one character, not the quote",
        )
    records = _records(
        csv_file, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=True
    )
    header = _header(records, csv_file, columns)
    columns = columns.with_references(header)
    for line, fields in records:
        place = f"{csv_file}:{line}"
        if len(fields) != len(header):
            reason = f"where the header has {len(header)}"
            raise _ragged(place, fields, reason, "quote a text that holds the delimiter")
        yield _of_record(place, dict(zip(header, fields, strict=True)), columns, input_dir, root)


def _header(
    records: Iterator[tuple[int, list[str]]], csv_file: Path, columns: Columns
) -> list[str]:
    """The names of all columns, from the first record. Raises UserError unless each wanted one is
    there, once."""
    line, fields = next(records, (1, []))
    header = [name.strip() for name in fields]
    if not header:
        raise problem(
            source="custom",
            field="csv_file",
            value=str(csv_file),
            reason="is empty",
            remedy="write a header line and one line per recording",
        )

    def wrong(name: str, reason: str, remedy: str) -> UserError:
        place = f"{csv_file}:{line}"
        return problem(source=place, field="column", value=name, reason=reason, remedy=remedy)

    for name in columns.wanted():
        if name not in header and len(header) == 1:
            raise wrong(name, "not found", "name the delimiter of the file")
        if name not in header:
            raise wrong(name, "not found", did_you_mean(name, header))
        if header.count(name) > 1:
            raise wrong(name, "occurs twice", "rename one of the two")
    return header


def _ragged(place: str, fields: list[str], reason: str, remedy: str) -> UserError:
    return problem(source=place, field="fields", value=len(fields), reason=reason, remedy=remedy)


def _of_record(
    place: str, record: dict[str, str], columns: Columns, input_dir: Path, root: Path | None
) -> Utterance | Rejected:
    def said(column: str | None) -> str:
        return record[column].strip() if column else ""

    entry = locate(
        place,
        _with_suffixes(said(columns.audio)),
        folder=input_dir,
        root=root,
        text=collapse(record[columns.text]),
        id_=said(columns.id),
        speaker=said(columns.speaker) or None,
        language=said(columns.language) or None,
    )
    return with_reference(
        entry,
        _with_suffixes(said(columns.reference_audio)),
        folder=input_dir,
        root=root,
        text=collapse(said(columns.reference_text)),
    )


def _with_suffixes(name: str) -> list[str]:
    """A list may leave the suffix out, but not the whole name."""
    return [name, *(name + suffix for suffix in AUDIO_SUFFIXES)] if name else [name]


def _records(path: Path, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """Each non-blank record of a CSV with the number of the line on which it begins."""
    # Where the record begins, which `line_num` forgets: a quoted text may hold line breaks.
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **dialect)
            for fields in reader:
                if len(fields) > 1 or "".join(fields).strip():
                    yield line, fields
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise problem(
            source="metadata",
            field="encoding",
            value=str(path),
            reason="is not UTF-8",
            remedy="save it as UTF-8",
        ) from None
    except csv.Error as error:
        raise problem(
            source=f"{path}:{line}",
            field="CSV",
            value=str(error),
            reason="stops the reading",
            remedy="mend the quotes there",
        ) from None


def _guess_delimiter(path: Path, wanted: list[str], quoting: int) -> str:
    """The one of ``, ; | tab`` under which the header has most of the `wanted` columns, then most
    columns at all.

    csv.Sniffer guesses from the letters of the texts and is often wrong.
    """

    def fit(delimiter: str) -> tuple[int, int]:
        records = _records(path, delimiter=delimiter, quoting=quoting, skipinitialspace=True)
        _, fields = next(records, (1, []))
        return len({name.strip() for name in fields} & set(wanted)), len(fields)

    return max(",;|\t", key=fit)
