"""MS-SWIFT's dataset registry: our columns survive it and our JSONL files go through `rows.read_rows`. L2: glue."""

from __future__ import annotations

from typing import Any

import swift
from datasets import Dataset
from swift.dataset import RowPreprocessor
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.dataset.loader import DatasetLoader
from swift.dataset.register import DatasetMeta
from swift.utils import get_logger, safe_ddp_context

from plugins.rows import COLUMNS, METADATA_COLUMNS, ROW_SOURCE, read_rows
from plugins.settings import HiggsAudioSettings

logger = get_logger()


class HiggsDatasetLoader(DatasetLoader):
    """Reads a JSONL file whole and checks every row, so that a faulty one stops the run before its first step."""

    def _load_dataset_path(self, dataset_path: str, dataset_meta: DatasetMeta) -> Any:
        with safe_ddp_context(None, True):
            dataset = Dataset.from_list(read_rows(dataset_path, HiggsAudioSettings.from_env()))
        return dataset.to_iterable_dataset() if self.streaming else dataset


def register_columns() -> None:
    """MS-SWIFT drops columns that it does not know (`RowPreprocessor.remove_useless_columns`)."""
    for column in (*COLUMNS, *METADATA_COLUMNS, ROW_SOURCE):
        if column not in RowPreprocessor.standard_keys:
            RowPreprocessor.standard_keys.append(column)


def route_jsonl_files() -> None:
    """Let `--dataset FILE.jsonl` go through `HiggsDatasetLoader`. Called when a Higgs template is set up; idempotent.

    The one patch of MS-SWIFT in this package: 4.6 looks a dataset's loader up by exact path or hub id, so a file that
    nobody registered beforehand always gets the default loader, which knows no line numbers and drops faulty rows.
    """
    if not swift.__version__.startswith("4.6."):
        logger.warning(f"JSONL rows are not checked before training: untested ms-swift {swift.__version__} (need 4.6)")
        return
    if getattr(DatasetSyntax.get_dataset_meta, "_routes_jsonl", False):
        return
    original = DatasetSyntax.get_dataset_meta

    def get_dataset_meta(self: DatasetSyntax, use_hf: bool) -> DatasetMeta:
        if self.dataset_type == "path" and self.dataset.endswith(".jsonl"):
            return DatasetMeta(loader=HiggsDatasetLoader)
        return original(self, use_hf)

    get_dataset_meta._routes_jsonl = True  # type: ignore[attr-defined]
    DatasetSyntax.get_dataset_meta = get_dataset_meta
