"""MS-SWIFT's packs (`--packing true`): batches of lists of rows, and a set around the set of
rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def single_rows(batch: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The encoded rows of a batch, or of a set, whose entries are rows or packs of them."""
    for entry in batch:
        yield from entry if isinstance(entry, list) else (entry,)


def table_of(dataset: Any) -> Any:
    """The rows below MS-SWIFT's lazy and packing sets, not encoded yet; a set without either is
    returned as it is."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset
