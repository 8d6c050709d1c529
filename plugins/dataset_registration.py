"""MS-SWIFT's dataset registry: our columns survive it, and `--dataset` goes through `row_sources`.
L2: glue."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import swift
from datasets import Dataset, Features, List, Value
from swift.dataset import AddLengthPreprocessor, RowPreprocessor
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.dataset.loader import DatasetLoader
from swift.dataset.register import DatasetMeta
from swift.utils import get_logger, safe_ddp_context

from plugins.corpora.canonical import COLUMNS, KEY_COLUMNS, LENGTHS, ROW_SOURCE, SPEAKER
from plugins.data.dialogue import Dialogue
from plugins.data.sources import read_rows
from plugins.errors import problem
from plugins.settings import HiggsAudioSettings

logger = get_logger()


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
        **{column: List(Value("string")) for column in KEY_COLUMNS.values()},
        "raw_prompt": Value("bool"),
        SPEAKER: Value("string"),
        ROW_SOURCE: Value("string"),
    }
)


class HiggsDatasetLoader(DatasetLoader):
    """Reads a dataset whole and checks every row, so that a faulty one stops the run before its
    first step."""

    check_row: Callable[
        [Dialogue], int
    ]  # of the template in use; gives the positions that the row takes
    is_training: Callable[[], bool]
    settings: Callable[[], HiggsAudioSettings]

    def load(
        self,
        dataset_syntax: DatasetSyntax | None = None,
        dataset_meta: DatasetMeta | None = None,
        *,
        use_hf: bool | None = None,
    ) -> Any:
        assert dataset_syntax is not None
        source, subsets = dataset_syntax.dataset, dataset_syntax.subsets
        if len(subsets) > 1:
            raise problem(
                source="options",
                field="dataset",
                value=source,
                reason=f"names {len(subsets)} subsets",
                remedy="name each in an entry of its own",
            )
        if not os.path.exists(source) and not use_hf:
            remedy = "check the path; a Hugging Face dataset needs hf::ID or --use_hf true"
            raise problem(
                source="options", field="dataset", value=source, reason="not found", remedy=remedy
            )
        training = type(self).is_training()
        lengths: list[list[int]] = []
        with safe_ddp_context(None, True):
            rows = read_rows(
                source,
                type(self).settings(),
                check=lambda dialogue: lengths.append([type(self).check_row(dialogue)]),
                training=training,
                columns=self.columns,
                subset=next(iter(subsets), None),
            )
        features = FEATURES
        if training and not self.streaming:
            rows = [{**row, LENGTHS: length} for row, length in zip(rows, lengths, strict=True)]
            features = Features({**FEATURES, LENGTHS: List(Value("int32"))})
        dataset = Dataset.from_list(rows, features=features)
        return dataset.to_iterable_dataset() if self.streaming else dataset


def register_columns() -> None:
    """MS-SWIFT drops columns that it does not know (`RowPreprocessor.remove_useless_columns`)."""
    for column in (*COLUMNS, *KEY_COLUMNS.values(), SPEAKER, ROW_SOURCE):
        if column not in RowPreprocessor.standard_keys:
            RowPreprocessor.standard_keys.append(column)


def route_datasets(
    check_row: Callable[[Dialogue], int],
    *,
    is_training: Callable[[], bool],
    settings: Callable[[], HiggsAudioSettings],
) -> None:
    """Let `--dataset` go through `HiggsDatasetLoader`, and each of its rows through `check_row`.

    Called when a Higgs template is set up, so that other models keep MS-SWIFT's own loader;
    datasets that somebody registered with MS-SWIFT keep theirs. Idempotent.

    Patches MS-SWIFT twice (`swift_inference` has a third patch). 4.6 looks a dataset's loader up by
    exact path or hub id, so one that nobody registered beforehand always gets the default loader,
    which knows no line numbers and drops faulty rows. And to learn the lengths of rows, for
    `group_by_length` and `packing`, it encodes each in full, which decodes all audio and runs the
    codec on it, and throws the result away: our rows bring their lengths."""
    HiggsDatasetLoader.check_row = staticmethod(check_row)
    HiggsDatasetLoader.is_training = staticmethod(is_training)
    HiggsDatasetLoader.settings = staticmethod(settings)
    if not swift.__version__.startswith("4.6."):
        logger.warning(
            f"rows are not checked before training: untested ms-swift {swift.__version__} (need 4.6)"
        )
        return
    if getattr(DatasetSyntax.get_dataset_meta, "_is_routed", False):
        return
    original = DatasetSyntax.get_dataset_meta

    def get_dataset_meta(self: DatasetSyntax, use_hf: bool) -> DatasetMeta:
        meta = original(self, use_hf)
        is_registered = meta.dataset_path or meta.hf_dataset_id or meta.ms_dataset_id
        return meta if is_registered else DatasetMeta(loader=HiggsDatasetLoader)

    def add_lengths(self: AddLengthPreprocessor, dataset: Any, **kwargs: Any) -> Any:
        if LENGTHS in dataset.column_names and None not in dataset[LENGTHS]:
            return dataset
        return RowPreprocessor.__call__(self, dataset, **kwargs)

    get_dataset_meta._is_routed = True  # type: ignore[attr-defined]
    DatasetSyntax.get_dataset_meta = get_dataset_meta
    AddLengthPreprocessor.__call__ = add_lengths
