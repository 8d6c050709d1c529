"""MS-SWIFT's dataset registry: our columns survive it and our JSONL files go through `rows.read_rows`. L2: glue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import swift
from datasets import Dataset, Features, List, Value
from swift.dataset import RowPreprocessor
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.dataset.loader import DatasetLoader
from swift.dataset.register import DatasetMeta
from swift.utils import get_logger, safe_ddp_context

from plugins.errors import problem
from plugins.prompt import Dialogue
from plugins.rows import COLUMNS, KEY_COLUMNS, ROW_SOURCE, read_rows
from plugins.settings import HiggsAudioSettings

logger = get_logger()


# Explicit, because `Dataset.from_list` would take the columns of the first row only and guess types per file.
FEATURES = Features(
    {
        "messages": List({"role": Value("string"), "content": Value("string"), "loss": Value("bool")}),
        "audios": List(Value("string")),
        "reference_audio": List(Value("string")),
        "reference_text": List(Value("string")),
        "audio_codes": List(List(List(Value("int16")))),
        "reference_codes": List(List(List(Value("int16")))),
        **{column: List(Value("string")) for column in KEY_COLUMNS.values()},
        "raw_prompt": Value("bool"),
        ROW_SOURCE: Value("string"),
    }
)


class HiggsDatasetLoader(DatasetLoader):
    """Reads a JSONL file whole and checks every row, so that a faulty one stops the run before its first step."""

    check_row: Callable[[Dialogue], None]  # of the template in use

    def _load_dataset_path(self, dataset_path: str, dataset_meta: DatasetMeta) -> Any:
        if not dataset_path.endswith(".jsonl"):
            raise problem("options", "dataset", dataset_path, "is no .jsonl file", "write one JSON object per line")
        with safe_ddp_context(None, True):
            settings = HiggsAudioSettings.from_env()
            rows = read_rows(dataset_path, settings, check=type(self).check_row, columns=self.columns)
            dataset = Dataset.from_list(rows, features=FEATURES)
        return dataset.to_iterable_dataset() if self.streaming else dataset


def register_columns() -> None:
    """MS-SWIFT drops columns that it does not know (`RowPreprocessor.remove_useless_columns`)."""
    for column in (*COLUMNS, *KEY_COLUMNS.values(), ROW_SOURCE):
        if column not in RowPreprocessor.standard_keys:
            RowPreprocessor.standard_keys.append(column)


def route_jsonl_files(check_row: Callable[[Dialogue], None]) -> None:
    """Let `--dataset FILE.jsonl` go through `HiggsDatasetLoader`, and each of its rows through `check_row`.

    Called when a Higgs template is set up, so that other models keep MS-SWIFT's own loader. Idempotent.

    The one patch of MS-SWIFT in this package: 4.6 looks a dataset's loader up by exact path or hub id, so a file that
    nobody registered beforehand always gets the default loader, which knows no line numbers and drops faulty rows.
    """
    HiggsDatasetLoader.check_row = staticmethod(check_row)
    if not swift.__version__.startswith("4.6."):
        logger.warning(f"JSONL rows are not checked before training: untested ms-swift {swift.__version__} (need 4.6)")
        return
    if getattr(DatasetSyntax.get_dataset_meta, "_routes_jsonl", False):
        return
    original = DatasetSyntax.get_dataset_meta

    def get_dataset_meta(self: DatasetSyntax, use_hf: bool) -> DatasetMeta:
        if self.dataset_type == "repo" and self.dataset.endswith(".jsonl"):
            # MS-SWIFT would look for a hub repository of that name.
            raise problem("options", "dataset", self.dataset, "not found", "check the path; relative ones start here")
        if self.dataset_type == "path":
            return DatasetMeta(loader=HiggsDatasetLoader)
        return original(self, use_hf)

    get_dataset_meta._routes_jsonl = True  # type: ignore[attr-defined]
    DatasetSyntax.get_dataset_meta = get_dataset_meta
