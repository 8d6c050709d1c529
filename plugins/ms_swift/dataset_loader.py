"""`--dataset` -> the table of its checked rows.

In: the name of a JSONL file, a folder of recordings or a Hugging Face dataset; or the table that
MS-SWIFT made of a dataset that is registered there (`aligned`). Out: a `datasets` table with the
columns of `FEATURES`, in training also the positions that each row takes. How a row is checked the
template in use knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Protocol

from datasets import Dataset, Features, IterableDataset, List, Value
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.dataset.loader import DatasetLoader
from swift.dataset.register import DatasetMeta
from swift.utils import get_logger, safe_ddp_context

from plugins.corpora.canonical import (
    KEY_COLUMNS,
    KNOWN_COLUMNS,
    LENGTHS,
    ROW_SOURCE,
    SPEAKER,
    canonical_row,
)
from plugins.corpora.pairs import IN_TABLE
from plugins.data.clips import LowRates, measured
from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.data.sources import all_of, read_rows
from plugins.errors import UserError, problem
from plugins.settings import HiggsAudioSettings

# Explicit, because `Dataset.from_list` would take the columns of the first row only and guess types
# per file.
FEATURES = Features(
    {
        "messages": List(
            {"role": Value("string"), "content": Value("string"), "loss": Value("bool")}
        ),
        "audios": List(Value("string")),
        "reference_audio": List(Value("string")),
        "reference_text": List(Value("string")),
        "audio_codes": List(List(List(Value("int16")))),
        "reference_codes": List(List(List(Value("int16")))),
        **dict.fromkeys(KEY_COLUMNS.values(), List(Value("string"))),
        "raw_prompt": Value("bool"),
        SPEAKER: Value("string"),
        ROW_SOURCE: Value("string"),
    }
)


_LENGTHS = {LENGTHS: List(Value("int32"))}
# What the rejected answers of pairs have of their own, as the chosen ones have it.
_REJECTED = {column: FEATURES[name] for name, column in IN_TABLE.items()}
# MS-SWIFT's column of the dataset that a row is from.
_NAME = "dataset"

logger = get_logger()


class RowTemplate(Protocol):
    """What reading rows needs of a template."""

    settings: HiggsAudioSettings

    @property
    def is_training(self) -> bool: ...

    @property
    def compares(self) -> bool:
        """Whether a row is a pair of answers."""

    def check_dialogue(self, dialogue: Dialogue) -> int:
        """The positions that the row takes; raises UserError for a faulty one."""


class HiggsDatasetLoader(DatasetLoader):
    """Reads a dataset whole and checks every row, so that a faulty one stops the run before its
    first step."""

    # MS-SWIFT makes loaders without a word about the run, so the last template that was set up
    # says that it is in use; None: no model of ours.
    template: ClassVar[RowTemplate | None] = None

    def load(
        self,
        dataset_syntax: DatasetSyntax | None = None,
        dataset_meta: DatasetMeta | None = None,
        *,
        use_hf: bool | None = None,
    ) -> Any:
        assert dataset_syntax is not None
        template = self.template
        assert template is not None, "this loader is chosen where a template is in use"
        source, subsets = dataset_syntax.dataset, dataset_syntax.subsets
        _check_name(source, subsets, use_hf)
        lengths: list[int] = []
        low = LowRates()

        def check(dialogue: Dialogue) -> None:
            lengths.append(template.check_dialogue(dialogue))
            low.look_at(dialogue)

        # One rank after the other: the first may download what the others then find.
        with safe_ddp_context(None, True):
            rows = read_rows(
                source,
                template.settings,
                check=check,
                training=template.is_training,
                pairs=template.compares,
                columns=self.columns,
                subset=next(iter(subsets), None),
            )
        if low.warning is not None:
            logger.warning(low.warning)
        features = dict(FEATURES)
        if template.compares:
            features |= _REJECTED
        if template.is_training and not self.streaming:
            in_order = iter(lengths)  # of a pair those of both answers
            for row in rows:
                row[LENGTHS] = list(islice(in_order, 2 if template.compares else 1))
            features |= _LENGTHS
        dataset = Dataset.from_list(rows, features=Features(features))
        return dataset.to_iterable_dataset() if self.streaming else dataset


def aligned(dataset: Any, template: RowTemplate) -> Any:
    """The rows of a table, or stream, that MS-SWIFT made of a dataset registered there, as ours:
    text, which can be trained beside speech. Ours, and None, are left as they are.

    Raises UserError for rows that are neither, or faulty; a stream does when it comes to one."""
    if dataset is None or ROW_SOURCE in (dataset.column_names or ()):
        return dataset
    if template.compares:
        if isinstance(dataset, IterableDataset):  # one of ours may not know its columns
            return dataset.map(_require_pair)
        raise _no_pair(_name(next(iter(dataset), {})))
    if isinstance(dataset, IterableDataset):
        return dataset.map(
            lambda row, number: _row_of_another(row, number, template),
            with_indices=True,
            remove_columns=dataset.column_names,
            features=Features({**FEATURES, _NAME: Value("string")}),
        )

    def checked(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        ours = _row_of_another(row, number, template)
        dialogue = dialogue_from_row(ours, template.settings, training=template.is_training)
        length = template.check_dialogue(measured(dialogue))
        return {**ours, LENGTHS: [length]} if template.is_training else ours

    reads = ((_place(row, i), partial(checked, i, row)) for i, row in enumerate(dataset))
    rows = all_of(reads)
    features = {**FEATURES, **(_LENGTHS if template.is_training else {}), _NAME: Value("string")}
    return Dataset.from_list(rows, features=Features(features))


def _require_pair(row: dict[str, Any]) -> dict[str, Any]:
    """`row`, which our loader has read."""
    if not row.get(ROW_SOURCE):
        raise _no_pair(_name(row))
    return row


def _no_pair(name: str) -> UserError:
    return problem(
        source="options",
        field="dataset",
        value=name,
        reason="is registered with MS-SWIFT, and has no rejected clips",
        remedy="leave it out: pairs are read from JSONL files (docs/preferences.md)",
    )


def _place(row: Mapping[str, Any], number: int) -> str:
    return f"{_name(row)}: row {number + 1}"


def _name(row: Mapping[str, Any]) -> str:
    """Of the data set that the row is from."""
    return row.get(_NAME) or "dataset"


def _row_of_another(row: Mapping[str, Any], number: int, template: RowTemplate) -> dict[str, Any]:
    """The canonical row of one that MS-SWIFT's preprocessors made."""
    name, source = _name(row), _place(row, number)
    filled = {column: value for column, value in row.items() if value not in (None, [], "")}
    for column in filled:
        if column not in KNOWN_COLUMNS:
            raise problem(
                source=source,
                field="column",
                value=column,
                reason="is neither text nor speech, which is all that this model learns",
                remedy=f"leave {name} out of --dataset",
            )
    return {**canonical_row(filled, source, template.settings), _NAME: name}


def _check_name(source: str, subsets: list[str], use_hf: bool | None) -> None:
    if len(subsets) > 1:
        raise problem(
            source="options",
            field="dataset",
            value=source,
            reason=f"names {len(subsets)} subsets",
            remedy="name each in an entry of its own",
        )
    if not os.path.exists(source) and not use_hf:
        raise problem(
            source="options",
            field="dataset",
            value=source,
            reason="not found",
            remedy="check the path; a Hugging Face dataset needs hf::ID or --use_hf true",
        )
