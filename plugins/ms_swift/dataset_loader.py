"""`--dataset` -> the table of its checked rows.

In: the name of a JSONL file, a folder of recordings or a Hugging Face dataset. Out: a `datasets`
table with the columns of `FEATURES`, in training also the positions that each row takes. How a row
is checked the template in use knows."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Protocol

from datasets import Dataset, Features, List, Value
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.dataset.loader import DatasetLoader
from swift.dataset.register import DatasetMeta
from swift.utils import safe_ddp_context

from plugins.corpora.canonical import KEY_COLUMNS, LENGTHS, ROW_SOURCE, SPEAKER
from plugins.data.dialogue import Dialogue
from plugins.data.sources import read_rows
from plugins.errors import problem
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


class RowTemplate(Protocol):
    """What reading rows needs of a template."""

    settings: HiggsAudioSettings

    @property
    def is_training(self) -> bool: ...

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
        # One rank after the other: the first may download what the others then find.
        with safe_ddp_context(None, True):
            rows = read_rows(
                source,
                template.settings,
                check=lambda dialogue: lengths.append(template.check_dialogue(dialogue)),
                training=template.is_training,
                columns=self.columns,
                subset=next(iter(subsets), None),
            )
        features = FEATURES
        if template.is_training and not self.streaming:
            for row, length in zip(rows, lengths, strict=True):
                row[LENGTHS] = [length]
            features = Features({**FEATURES, LENGTHS: List(Value("int32"))})
        dataset = Dataset.from_list(rows, features=features)
        return dataset.to_iterable_dataset() if self.streaming else dataset


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
