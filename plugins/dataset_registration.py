"""MS-SWIFT's dataset registry: our columns survive it. The loader is in `ms_swift`."""

from __future__ import annotations

from swift.dataset import RowPreprocessor

from plugins.corpora.pairs import IN_TABLE
from plugins.ms_swift.dataset_loader import FEATURES, HiggsDatasetLoader

__all__ = ["FEATURES", "HiggsDatasetLoader", "register_columns"]


def register_columns() -> None:
    """MS-SWIFT drops columns that it does not know (`RowPreprocessor.remove_useless_columns`)."""
    for column in (*FEATURES, *IN_TABLE.values()):
        if column not in RowPreprocessor.standard_keys:
            RowPreprocessor.standard_keys.append(column)
