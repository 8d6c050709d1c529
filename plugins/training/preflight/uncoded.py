"""Rows whose clips have no codes: the codec encodes them on the CPU, and a GPU waits for it.

Trainer in, one line out, before the first step."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pyarrow.compute as pc

from plugins.corpora.canonical import KEY_COLUMNS
from plugins.corpora.pairs import REJECTED
from plugins.training.packs import table_of

# Recordings, and their codes as the row has them, or names them.
_CLIPS = {
    "audios": ("audio_codes", KEY_COLUMNS["audio_codes"]),
    "reference_audio": ("reference_codes", KEY_COLUMNS["reference_codes"]),
}
# Of a rejected answer, where rows are pairs.
_OF_REJECTED = {REJECTED["audios"]: (REJECTED["audio_codes"], REJECTED[KEY_COLUMNS["audio_codes"]])}


def warning(trainer: Any) -> str | None:
    """None on a CPU, for a stream, which cannot be looked through, and if all clips have codes."""
    rows = table_of(trainer.train_dataset)
    there = {*(getattr(rows, "column_names", None) or ())}
    clips = dict(_CLIPS)
    if there.issuperset(_OF_REJECTED):
        clips |= _OF_REJECTED
    columns = [*clips]
    for names in clips.values():
        columns += names
    is_table = hasattr(rows, "__len__") and there.issuperset(columns)
    if not is_table or not is_on_gpu(trainer.args):
        return None
    # Counted where they lie: codes of a whole corpus would fill the memory as Python lists.
    table = rows.select_columns(columns).with_format("arrow")[:]

    def lengths(column: str) -> Any:
        return pc.fill_null(pc.list_value_length(table[column]), 0)

    is_uncoded = []
    for recordings, (codes, keys) in clips.items():
        coded = pc.max_element_wise(lengths(codes), lengths(keys))
        is_uncoded.append(pc.less(coded, lengths(recordings)))
    num_uncoded = pc.sum(reduce(pc.or_, is_uncoded)).as_py()
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
