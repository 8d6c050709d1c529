"""Where rows are read from: a JSONL file, a folder of recordings, a Hugging Face dataset ->
canonical rows (L2).

Every row is checked before the first one is used, and a faulty one is told by file and line: none
is dropped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plugins.corpora import (
    Columns,
    Rejected,
    Utterance,
    is_dataset,
    read_folder,
    read_huggingface,
)
from plugins.data.prompt import Dialogue
from plugins.data.rows import (
    COLUMNS,
    KEY_COLUMNS,
    METADATA_COLUMNS,
    ROW_SOURCE,
    canonical_row,
    dialogue_from_row,
)
from plugins.errors import UserError, did_you_mean, problem
from plugins.settings import HiggsAudioSettings

Row = dict[str, Any]
_KNOWN = {*COLUMNS, *KEY_COLUMNS.values(), *METADATA_COLUMNS, ROW_SOURCE, "audio"}


def read_rows(
    source: str,
    settings: HiggsAudioSettings,
    *,
    check: Callable[[Dialogue], None],
    training: bool = True,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
    max_problems: int = 20,
) -> list[Row]:
    """All rows of `source`, canonical and each passed to `check`. `columns` renames columns first.

    source: a JSONL file; a folder of recordings with a ``.txt`` or ``.lab`` beside each; a folder
    or Hub id of a Hugging Face dataset (columns `text`, `audio`, and `speaker`, `id`, `language` if
    `columns` names them), whose `subset` is its configuration. training: there must be something to
    train on. Raises UserError with one line per faulty row, the first `max_problems` of them:
    nothing is dropped in silence."""
    rows: list[Row] = []
    problems: list[str] = []
    beside = Path(source).resolve().parent if Path(source).is_file() else None
    found = _rows(source, columns or {}, subset, is_jailed=bool(settings.audio_root))
    if settings.audio_root and not source.endswith(".jsonl"):
        # Who names a folder trusts what lies in it, and the readers have refused all else.
        settings = dataclasses.replace(settings, audio_root=None)
    for place, read in tqdm(found, desc=source, unit=" rows", delay=2, disable=None):
        try:
            row = canonical_row(read(), place, settings, beside=beside)
            check(dialogue_from_row(row, settings, training=training))
            rows.append(row)
        except UserError as error:
            problems.append(str(error))
    if problems:
        hidden = len(problems) - max_problems
        raise UserError(
            "\n".join(problems[:max_problems] + ([f"... and {hidden} more"] if hidden > 0 else []))
        )
    if not rows:
        raise problem(
            source=source,
            field="rows",
            value=0,
            reason="there is no row",
            remedy="prepare it again with prepare_dataset.py",
        )
    return rows


def _rows(
    source: str, columns: Mapping[str, str], subset: str | None, *, is_jailed: bool
) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Where each row stands, and a function that parses it."""
    path = Path(source)
    if source.endswith(".jsonl"):
        for place, line in _numbered_lines(source):
            yield place, partial(_parse, line, place, columns)
    elif path.is_file():
        reason, remedy = (
            "is no .jsonl file",
            "write one JSON object per line, or let prepare_dataset.py do it",
        )
        raise problem(source="options", field="dataset", value=source, reason=reason, remedy=remedy)
    else:
        for found in _utterances(source, columns, subset, root=Path(source) if is_jailed else None):
            yield found.place, partial(_row_of, found)


def _utterances(
    source: str, columns: Mapping[str, str], subset: str | None, *, root: Path | None
) -> Iterator[Utterance | Rejected]:
    if Path(source).is_dir() and not is_dataset(Path(source), root):
        return read_folder(Path(source), root=root)
    from datasets.config import HF_DATASETS_CACHE

    named = {
        target: name for name, target in columns.items() if target in Columns.__dataclass_fields__
    }
    audio_dir = Path(HF_DATASETS_CACHE) / "higgs_audio"
    return read_huggingface(source, Columns(**named), audio_dir=audio_dir, config=subset, root=root)


def _row_of(found: Utterance | Rejected) -> Row:
    if isinstance(found, Utterance):
        return found.to_row()
    remedy = "mend it, or let prepare_dataset.py leave it out and list it"
    raise problem(
        source=found.place, field="clip", value=found.value, reason=found.reason, remedy=remedy
    )


def _numbered_lines(path: str) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise problem(
            source=path,
            field="file",
            value=Path(path).name,
            reason=f"cannot be read ({error.strerror})",
            remedy="check the path",
        ) from None
    except UnicodeDecodeError as error:
        raise problem(
            source=f"{path}:{number + 1}",
            field="line",
            value=error.reason,
            reason="is not UTF-8",
            remedy="save the file as UTF-8",
        ) from None


def _parse(line: str, source: str, columns: Mapping[str, str]) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise problem(
            source=source,
            field="line",
            value=line.strip(),
            reason=f"is no JSON ({error.msg})",
            remedy="mend or delete the line",
        ) from None
    if not isinstance(row, dict):
        raise problem(
            source=source,
            field="line",
            value=row,
            reason="is no JSON object",
            remedy="write one object per line",
        )
    row = {columns.get(name, name): value for name, value in row.items()}
    for column in row:
        if column not in _KNOWN:  # a mistyped `reference_audio` would train without reference
            raise problem(
                source=source,
                field="column",
                value=column,
                reason="is unknown",
                remedy=did_you_mean(column, _KNOWN),
            )
    return row
