"""Corpora that are listed in a table -> utterances: LJSpeech, CSV and TSV, GPT-SoVITS lists.

In: a text file with one recording per record. Out: one utterance or rejected one per record, named
by the line on which it begins. A record that does not fit takes nothing from the others; a table
without the wanted columns is no row's fault and raises `UserError`. What may be meant otherwise is
warned of: the log of this module."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plugins.corpora.recordings import Recordings
from plugins.corpora.records import Record, read_lines, records
from plugins.corpora.shapes import called
from plugins.corpora.utterance import Rejected, Utterance, collapse, require_list, with_reference
from plugins.errors import UserError, did_you_mean, problem

logger = logging.getLogger(__name__)
_SAMPLE = 200  # lines by which a delimiter is guessed
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
    """``metadata.csv`` (``id|text`` or ``id|text|normalized text``) with ``wavs/ID.wav`` or another
    format; the last field is what is spoken."""
    metadata = input_dir / "metadata.csv"
    require_list(
        metadata, "ljspeech", "input_dir", "name the folder that holds it", input_dir, root
    )
    # A quote in LJSpeech is part of the text, even an unpaired one.
    rows = list(records(read_lines(metadata), delimiter="|", quoting=csv.QUOTE_NONE))
    fit = []
    for row in rows:
        if not row.fault and len(row.fields) in (2, 3):
            fit.append(row.fields)
    _warn_of_mixed_columns(metadata, fit)
    _warn_of_few_texts(metadata, [fields[-1] for fields in fit], [fields[1] for fields in fit])
    names = [fields[0].strip() for fields in fit]
    recordings = Recordings(
        names, source=metadata, folder=input_dir, root=root, below=("wavs/", "")
    )
    for row in rows:
        place = f"{metadata}:{row.line}"
        if row.fault or len(row.fields) not in (2, 3):
            yield _unread(place, row, "are not id|text|normalized text")
            continue
        id_ = row.fields[0].strip()
        yield recordings.utterance(place, id_, text=collapse(row.fields[-1]), id_=id_)


def read_gpt_sovits(
    input_dir: Path, list_file: Path, *, root: Path | None = None
) -> Iterator[Utterance | Rejected]:
    """``path|speaker|language|text`` per line, no header; paths are absolute or relative to
    `input_dir`.

    The text is all that follows the third bar, bars and quotes included: none of the fields before
    it can hold one."""
    require_list(
        list_file, "gpt_sovits", "list_file", "name the list with the transcripts", input_dir, root
    )
    rows = list(records(read_lines(list_file), delimiter="|", quoting=csv.QUOTE_NONE))
    fit = []
    for row in rows:
        if not row.fault and len(row.fields) >= 4:
            fit.append(row.fields)
    _warn_of_few_texts(list_file, ["|".join(fields[3:]) for fields in fit])
    names = [fields[0].strip() for fields in fit]
    recordings = Recordings(names, source=list_file, folder=input_dir, root=root)
    for row in rows:
        place = f"{list_file}:{row.line}"
        if row.fault or len(row.fields) < 4:
            yield _unread(place, row, "are not path|speaker|language|text")
            continue
        audio, speaker, language = map(str.strip, row.fields[:3])
        language = language.lower()
        yield recordings.utterance(
            place,
            audio,
            text=collapse("|".join(row.fields[3:])),
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
    header: bool = True,
    root: Path | None = None,
) -> Iterator[Utterance | Rejected]:
    r"""A CSV; audio paths are absolute or relative to `input_dir` and may lack their extension.

    delimiter: any one character, or ``\t`` as a shell passes it on; None: the best of comma,
    semicolon, bar and tab. quotes: False takes quotes as part of the text, as Common Voice's TSV
    files mean them. header: False for a table that begins with a recording; its columns are called
    1, 2 and so on."""
    require_list(
        csv_file, "custom", "csv_file", "name the CSV with the transcripts", input_dir, root
    )
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    lines = read_lines(csv_file)
    if delimiter is None:
        guess = _delimiter_of_header if header else _delimiter_of_rows
        delimiter = guess(lines, columns.wanted(), quoting)
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
    dialect = {"delimiter": delimiter, "quoting": quoting}
    rows = list(records(lines, strict=True, skipinitialspace=True, **dialect))
    names = _columns(rows, csv_file, columns, header=header)
    columns = columns.with_references(names)
    yield from _of_table(rows[header:], names, csv_file, columns, input_dir, root)


def _of_table(
    rows: Sequence[Record],
    names: Sequence[str],
    csv_file: Path,
    columns: Columns,
    input_dir: Path,
    root: Path | None,
) -> Iterator[Utterance | Rejected]:
    """What the `rows` below the header `names` say."""

    def said(row: Record, column: str | None) -> str:
        return row.fields[names.index(column)].strip() if column else ""

    fit = [row for row in rows if not row.fault and len(row.fields) == len(names)]
    _warn_of_few_texts(csv_file, [said(row, columns.text) for row in fit])
    paths = [said(row, columns.audio) for row in fit]
    recordings = Recordings(paths, source=csv_file, folder=input_dir, root=root)
    # Apart: many rows may name one voice, which is the recording of another row.
    paths = [said(row, columns.reference_audio) for row in fit]
    voices = Recordings(filter(None, paths), source=csv_file, folder=input_dir, root=root)
    for row in rows:
        place = f"{csv_file}:{row.line}"
        if row.fault or len(row.fields) != len(names):
            yield _unread(place, row, f"where the others have {len(names)}")
            continue
        entry = recordings.utterance(
            place,
            said(row, columns.audio),
            text=collapse(said(row, columns.text)),
            id_=said(row, columns.id),
            speaker=said(row, columns.speaker) or None,
            language=said(row, columns.language) or None,
        )
        text = collapse(said(row, columns.reference_text))
        path = said(row, columns.reference_audio)
        voice = voices.utterance(place, path, text=text) if path else None
        yield with_reference(entry, voice, text)


def _columns(
    rows: Sequence[Record], csv_file: Path, columns: Columns, *, header: bool
) -> list[str]:
    """The names of all columns. Raises UserError unless each wanted one is there, once."""
    if not rows:
        raise problem(
            source="custom",
            field="csv_file",
            value=str(csv_file),
            reason="is empty",
            remedy="write a header line and one line per recording",
        )
    first = rows[0]
    names = list(map(str.strip, first.fields))
    if not header:
        counts = Counter(len(row.fields) for row in rows if not row.fault)
        num_columns = max(counts, key=lambda count: counts[count], default=0)
        names = list(map(str, range(1, num_columns + 1)))

    def wrong(name: str, reason: str, remedy: str) -> UserError:
        place = f"{csv_file}:{first.line}"
        return problem(source=place, field="column", value=name, reason=reason, remedy=remedy)

    for name in columns.with_references(names).wanted():
        if name not in names and len(names) <= 1:
            raise wrong(name, "not found", "name the delimiter of the file")
        if name not in names:
            remedy = did_you_mean(name, names)
            if header:
                remedy += " (or give --no_header if the table has none)"
            raise wrong(name, "not found", remedy)
        if names.count(name) > 1:
            raise wrong(name, "occurs twice", "rename one of the two")
    return names


def _unread(place: str, row: Record, expected: str) -> Rejected:
    """`row` has a fault, or another number of fields: they are not what is `expected`."""
    line = "|".join(row.fields)[:200]
    if row.fault:
        return Rejected(place, "", row.fault, line)
    reason = f"wrong number of fields ({len(row.fields)} {expected})"
    return Rejected(place, row.fields[0].strip(), reason, line)


def _warn_of_mixed_columns(metadata: Path, rows: Sequence[Sequence[str]]) -> None:
    short = sum(len(fields) == 2 for fields in rows)
    if 0 < short < len(rows):
        logger.warning(
            "%s: %d of %d lines have 2 fields, the others 3; the last one of each is taken for"
            " its text",
            metadata,
            short,
            len(rows),
        )


def _warn_of_few_texts(
    table: Path, texts: Sequence[str], others: Sequence[str] | None = None
) -> None:
    """Say so if `texts` look like the names of speakers: they repeat, or do so more than `others`,
    the column before. In a table that has columns for both, only names of one word do."""
    texts = [text.strip() for text in texts if text.strip()]
    num_distinct = len(set(texts))
    repeats = len(texts) > 1 and 2 * num_distinct <= len(texts)
    if others is None:
        repeats = repeats and not any(" " in text for text in texts)
    elif not repeats:
        repeats = num_distinct < 0.9 * len(set(map(str.strip, others)))
    if repeats and texts:
        logger.warning(
            "%s: the column of the texts has %d different values in %d lines (such as %r); is it"
            " another column, of speakers?",
            table,
            num_distinct,
            len(texts),
            Counter(texts).most_common(1)[0][0][:60],
        )


def _delimiter_of_header(lines: Sequence[str], wanted: Sequence[str], quoting: int) -> str:
    """The one of ``, ; | tab`` under which the header has most of the `wanted` columns, then most
    columns at all.

    csv.Sniffer guesses from the letters of the texts and is often wrong.
    """

    def fit(delimiter: str) -> tuple[int, int]:
        dialect = {"delimiter": delimiter, "quoting": quoting, "skipinitialspace": True}
        header = next(records(lines, **dialect), Record(1, []))
        names = set(map(str.strip, header.fields))
        return len(names & set(wanted)), len(header.fields)

    return max(",;|\t", key=fit)


def _delimiter_of_rows(lines: Sequence[str], wanted: Sequence[str], quoting: int) -> str:
    """The one of ``tab | ; ,``, of which a text holds the last one most often, that gives the first
    rows one number of fields, and enough of them."""
    numbers = [int(name) for name in wanted if name.isdecimal()]
    sample = lines[:_SAMPLE]

    def fit(delimiter: str) -> float:
        dialect = {"delimiter": delimiter, "quoting": quoting, "skipinitialspace": True}
        counts = Counter(len(row.fields) for row in records(sample, **dialect))
        (count, num_rows), *_ = counts.most_common(1) or [(0, 0)]
        return num_rows / counts.total() if count >= max(numbers, default=2) else 0.0

    return max("\t|;,", key=fit)
