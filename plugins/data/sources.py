"""What `--dataset` names -> canonical rows: a JSONL file, a folder of recordings, a Hugging Face
dataset.

Every row is checked before the first one is used, and a faulty one is told by file and line: none
is dropped. It knows how rows are read, not what is asked of them: that is the caller's `check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
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
from plugins.corpora.canonical import RowError, canonical_row, parse_row
from plugins.corpora.pairs import canonical_pair, with_rejected
from plugins.data.clips import measured
from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.errors import UserError, problem
from plugins.files.lines import byte_lines, decoded
from plugins.settings import HiggsAudioSettings

Row = dict[str, Any]


def read_rows(
    source: str,
    settings: HiggsAudioSettings,
    *,
    check: Callable[[Dialogue], None],
    training: bool = True,
    pairs: bool = False,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
    max_problems: int = 20,
) -> list[Row]:
    """All rows of `source`, canonical, and each passed to `check`, its clips with the headers of
    their files. `columns` renames columns first.

    source: a JSONL file; a folder of recordings with a ``.txt`` or ``.lab`` beside each; a folder
    or Hub id of a Hugging Face dataset (columns `text`, `audio`, and `speaker`, `id`, `language` if
    `columns` names them), whose `subset` is its configuration. training: there must be something to
    train on. pairs: each row has a rejected answer too, which is checked after the chosen one.
    Raises UserError with one line per faulty row, the first `max_problems` of them: nothing is
    dropped in silence."""
    beside = Path(source).resolve().parent if Path(source).is_file() else None
    places = _rows(source, columns or {}, subset, is_jailed=bool(settings.audio_root))
    if settings.audio_root and not source.endswith(".jsonl"):
        # Who names a folder trusts what lies in it, and the readers have refused all else.
        settings = dataclasses.replace(settings, audio_root=None)

    def checked(place: str, read: Callable[[], Row]) -> Row:
        if not pairs:
            row = canonical_row(read(), place, settings, beside=beside)
            check(measured(dialogue_from_row(row, settings, training=training)))
            return row
        chosen, rejected = canonical_pair(read(), place, settings, beside=beside)
        for answer in (chosen, rejected):
            dialogue = dialogue_from_row(answer, settings, training=training)
            _require_clip(dialogue)
            check(measured(dialogue))
        return with_rejected(chosen, rejected)

    # The bar shows itself where the reading takes more than two seconds.
    bar = tqdm(places, desc=source, unit=" rows", delay=2, disable=None)
    reads = ((place, partial(checked, place, read)) for place, read in bar)
    rows = all_of(reads, max_problems=max_problems)
    if not rows:
        raise problem(
            source=source,
            field="rows",
            value=0,
            reason="there is no row",
            remedy="prepare it again with prepare_dataset.py",
        )
    return rows


def _require_clip(dialogue: Dialogue) -> None:
    if next(dialogue.targets(), None) is None:
        raise problem(
            source=dialogue.source,
            field="messages",
            value=None,
            reason="train no clip, and preferences compare clips",
            remedy="give the answer a turn with a clip",
        )


def all_of(reads: Iterable[tuple[str, Callable[[], Row]]], *, max_problems: int = 20) -> list[Row]:
    """The row of each read, which is given with its place. Raises UserError with a line for each
    fault, all at once: who mends a file wants to know the last one after the first reading."""
    rows: list[Row] = []
    faults: dict[str, list[str]] = {}  # what is wrong -> where
    for place, read in reads:
        try:
            rows.append(read())
        except UserError as error:
            fault = str(error).removeprefix(f"{place}: ")
            faults.setdefault(fault, []).append(place)
    if faults:
        raise UserError("\n".join(_told_once(faults, max_problems)))
    return rows


def _told_once(faults: Mapping[str, Sequence[str]], max_problems: int) -> Iterator[str]:
    """A line for each of the first faults; one that all rows share, such as a folder that was left
    behind, is said once."""
    for fault, places in islice(faults.items(), max_problems):
        is_placed = not fault.startswith(places[0])
        line = f"{places[0]}: {fault}" if is_placed else fault
        if len(places) > 1:
            line += f" (and so in {len(places) - 1} more: {_numbers(places[1:])})"
        yield line
    if len(faults) > max_problems:
        yield f"... and {len(faults) - max_problems} more"


def _numbers(places: Sequence[str]) -> str:
    """The rows of `places`, FILE:NUMBER: the first ten, and the last one."""
    numbers = [place.rpartition(":")[2].strip() for place in places]
    if len(numbers) > 11:
        numbers[10:-1] = ["..."]
    return ", ".join(numbers)


def _rows(
    source: str, columns: Mapping[str, str], subset: str | None, *, is_jailed: bool
) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Where each row stands, and a function that parses it: its fault is one of that row."""
    path = Path(source)
    if source.endswith(".jsonl"):
        # In bytes: a line that is not UTF-8 is a fault of that line.
        for place, line in byte_lines(source):
            yield place, partial(_parse, line, place, columns)
    elif path.is_file():
        raise problem(
            source="options",
            field="dataset",
            value=source,
            reason="is no .jsonl file",
            remedy="write one JSON object per line, or let prepare_dataset.py do it",
        )
    else:
        root = path if is_jailed else None
        for utterance in _utterances(source, columns, subset, root=root):
            yield utterance.place, partial(_row_of, utterance)


def _utterances(
    source: str, columns: Mapping[str, str], subset: str | None, *, root: Path | None
) -> Iterator[Utterance | Rejected]:
    if Path(source).is_dir() and not is_dataset(Path(source), root):
        return read_folder(Path(source), root=root)
    # Imported where it is needed: it is slow.
    from datasets.config import HF_DATASETS_CACHE

    named: dict[str, str] = {}
    for name, target in columns.items():
        if target in Columns.__dataclass_fields__:
            named[target] = name
    # Recordings that the dataset holds as bytes become files beside its own cache.
    audio_dir = Path(HF_DATASETS_CACHE) / "higgs_audio"
    return read_huggingface(source, Columns(**named), audio_dir=audio_dir, config=subset, root=root)


def _row_of(utterance: Utterance | Rejected) -> Row:
    if isinstance(utterance, Utterance):
        return utterance.to_row()
    raise problem(
        source=utterance.place,
        field="clip",
        value=utterance.value,
        reason=utterance.reason,
        remedy="mend it, or let prepare_dataset.py leave it out and list it",
    )


def _parse(line: bytes, source: str, columns: Mapping[str, str]) -> Row:
    try:
        return parse_row(decoded(source, line), columns)
    except RowError as error:
        raise error.at(source) from None
