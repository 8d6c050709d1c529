"""MS-SWIFT's packs (`--packing true`): batches of lists of rows, and a set around the set of rows.
L2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from swift.dataset import IterablePackingDataset, PackingDataset

from plugins.errors import problem


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


def refuse_unsupported(args: Any, train_dataset: Any) -> None:
    """Raise UserError for what packs of MS-SWIFT 4.6 cannot be: streamed, or grouped by length."""
    if isinstance(train_dataset, IterablePackingDataset):
        reason = "encodes a stream in processes of its own, where a row that fails is left out in silence"
        raise problem(
            source="options",
            field="packing",
            value="true",
            reason=reason,
            remedy="leave --streaming out, or use --padding_free true",
        )
    if isinstance(train_dataset, PackingDataset) and args.group_by_length:
        raise problem(
            source="options",
            field="group_by_length",
            value="true",
            reason="has no meaning for packs, which are full",
            remedy="leave it out",
        )
