"""Rows whose clips have no codes: the codec encodes them on the CPU, and a GPU waits for it.

Trainer in, one line out, before the first step."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from plugins.corpora.canonical import KEY_COLUMNS
from plugins.training.packs import table_of

# Recordings, and their codes as the row has them.
_CLIPS = {"audios": "audio_codes", "reference_audio": "reference_codes"}


def warning(trainer: Any) -> str | None:
    """None on a CPU, for a stream, which cannot be looked through, and if all clips have codes."""
    rows = table_of(trainer.train_dataset)
    columns = [*_CLIPS, *KEY_COLUMNS, *KEY_COLUMNS.values()]
    is_table = hasattr(rows, "__len__") and {*columns} <= {*(rows.column_names or ())}
    if not is_table or not is_on_gpu(trainer.args):
        return None
    # Counted where they lie: codes of a whole corpus would fill the memory as Python lists.
    table = rows.select_columns(columns).with_format("arrow")[:]

    def lengths(column: str) -> Any:
        return pc.fill_null(pc.list_value_length(table[column]), 0)

    is_uncoded = []
    for recordings, codes in _CLIPS.items():
        coded = pc.max_element_wise(lengths(codes), lengths(KEY_COLUMNS[codes]))
        is_uncoded.append(pc.less(coded, lengths(recordings)))
    num_uncoded = pc.sum(pc.or_(*is_uncoded)).as_py()
    if not num_uncoded:
        return None
    return (
        f"{num_uncoded:,} of {len(rows):,} rows have clips without codes: the CPU encodes them in"
        " every epoch, and the GPU waits for it; encode them once: higgs-audio prepare with"
        " --encode_codes"
    )


def is_on_gpu(args: Any) -> bool:
    """args: of a training."""
    return bool(args.device.type != "cpu")
