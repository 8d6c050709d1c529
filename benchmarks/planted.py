"""The failures of `benchmarks/curves.py`: what is wrong, and how it gets into a run.

Data and options are wrong by themselves; wrong labels are planted into the collator of this
process, where `plugins.training.preflight` would find them before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plugins import collator
from plugins.delay_pattern import IGNORE_INDEX, apply_delay, delay_labels


@dataclass(frozen=True)
class Run:
    """title: what is wrong. plant: puts the defect into this process. takes: which rows of
    `curves.prepare`."""

    title: str
    plant: Callable[[], None] | None = None
    takes: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)


def _plant(apply_delay: Any = apply_delay, delay_labels: Any = delay_labels) -> None:
    """Let the collator delay and label each clip with these functions, of the signatures of
    `plugins.delay_pattern`."""

    # Clip by clip, as the definition does it: not the strided copies of the collator.
    def apply_delays(clips: Sequence[Tensor], **ids: int) -> Tensor:
        return torch.cat([apply_delay(codes, **ids) for codes in clips])

    def labels_of(clips: Sequence[Tensor], trained: Sequence[bool], *, eos_id: int) -> Tensor:
        assert all(trained), "these rows have no references"
        return torch.cat([delay_labels(codes, eos_id=eos_id) for codes in clips])

    collator.apply_delays, collator.delay_labels_of = apply_delays, labels_of


def _moved(by: int) -> Callable[..., Tensor]:
    """Labels `by` frames later than they belong; what falls off is not trained."""

    def labels(codes: Tensor, *, eos_id: int) -> Tensor:
        right = delay_labels(codes, eos_id=eos_id)
        moved = right.roll(by, dims=0)
        # What `roll` brings round from the other end belongs nowhere.
        wrapped = moved[:by] if by > 0 else moved[by:]
        wrapped.fill_(IGNORE_INDEX)
        return moved

    return labels


def _without_eos(codes: Tensor, *, eos_id: int) -> Tensor:
    labels = delay_labels(codes, eos_id=eos_id)
    return labels.masked_fill(labels == eos_id, IGNORE_INDEX)


def _undelayed(codes: Tensor, *, bos_id: int, eos_id: int) -> Tensor:
    """All codebooks of a frame in one step, in as many steps as with the delay."""
    frames = apply_delay(codes, bos_id=bos_id, eos_id=eos_id).fill_(eos_id)
    frames[0], frames[1 : codes.shape[1] + 1] = bos_id, codes.T
    return frames


def _undelayed_labels(codes: Tensor, *, eos_id: int) -> Tensor:
    labels = _undelayed(codes, bos_id=IGNORE_INDEX, eos_id=eos_id)
    # BOS, the codes, one EOS; the rest is filling.
    labels[codes.shape[1] + 2 :] = IGNORE_INDEX
    return labels


RUNS = {
    "healthy": Run("healthy"),
    "unshifted": Run("labels not shifted", partial(_plant, delay_labels=_moved(1))),
    "shifted_twice": Run("labels shifted twice", partial(_plant, delay_labels=_moved(-1))),
    "no_eos": Run("end of stream not trained", partial(_plant, delay_labels=_without_eos)),
    "no_delay": Run("no delay pattern", partial(_plant, _undelayed, _undelayed_labels)),
    "high_rate": Run("learning rate too high", options={"learning_rate": 0.1}),
    "few_takes": Run("overfitting: two takes", takes="few"),
    "text_only": Run("audio not trained", options={"audio_loss_weight": 0}),
}
