"""Rows that stand in one sequence do not see each other: shown on the user's own model and
attention.

The kernels of flash attention, torch's and the package's, run on GPUs only, so that no test of ours
has seen them at work. But what must be true of them can be seen anywhere: another first row leaves
the hidden states of the others as they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from plugins.data.tokens import SpecialTokens
from plugins.training.preflight.probe import in_eval_mode, on_device

# Measured on a CPU, random weights, rows of 20 and of 350 positions, fp32 and bf16: 0, and 0.014 to
# 0.019 for rows that see each other.
_NOISE = 1e-3


def layout_complaint(pack: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str | None:
    """How `pack` is not the batches of `rows`, each of that row alone, one after the other; None if
    it is."""
    for name in ("input_ids", "labels", "position_ids", "audio_input_ids", "audio_labels"):
        if not torch.equal(pack[name], torch.cat([row[name] for row in rows], dim=1)):
            return f"{name} of a pack are not those of its rows one after the other"
    starts = list(accumulate((row["input_ids"].shape[1] for row in rows), initial=0))
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if pack[name].tolist() != starts:
            return f"{name} are {pack[name].tolist()} for rows that begin at {starts[:-1]}"
    return None


@torch.no_grad()
def sight(model: Any, pack: dict[str, Any], tokens: SpecialTokens) -> float:
    """How far hidden states after the first row move when its text becomes another, relative to how
    far its own do."""
    second = int(pack["cu_seq_lens_q"][1])
    first = pack["input_ids"][0, 1:second]
    is_text = (first != tokens.audio) & (first != tokens.audio_delay)
    if tokens.tower is not None:
        is_text &= first != tokens.tower.placeholder
    other = pack["input_ids"].clone()
    other[0, 1:second][is_text] = first[is_text].roll(1)
    with in_eval_mode(model):
        hidden = _hidden(model, pack)
        moved = _hidden(model, {**pack, "input_ids": other})
    moves = (hidden - moved).abs().mean(dim=(0, 2))  # (S,)
    assert moves[:second].any(), "the first row is the same one"
    return float(moves[second:].mean() / moves[:second].mean())


def sees(model: Any, pack: dict[str, Any], tokens: SpecialTokens) -> bool:
    """Whether rows of `pack` see the first one."""
    return sight(model, pack, tokens) > _NOISE


def _hidden(model: Any, batch: dict[str, Any]) -> Tensor:
    inputs = on_device(model, batch)
    del inputs["labels"], inputs["audio_labels"]
    return model.hidden_states(**inputs).float()
