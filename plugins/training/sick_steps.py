"""A step whose loss or gradient is no number: named, not taken, counted; the third in a row ends
the run.

    micro-batch, loss () --add-->     remembered until the step is over
    gradient norm ()     --is_sick--> bool () on the device, of this rank
    agreed by all ranks  --settle-->  gradients dropped, meters put back, the rows in a warning

Knows neither signals nor data workers. MS-SWIFT takes an infinite gradient for a gradient, and logs
0 in the place of a NaN loss."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
import torch.distributed as dist
from swift.utils import get_logger
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from plugins.errors import UserError

logger = get_logger()

MOST_SKIPS_IN_A_ROW = 3
_COUNTS = "higgs_audio_guard"  # in trainer_state.json, so that a resumed run goes on counting
_MOST_NAMES = 8


class SickSteps(TrainerCallback):
    """Of one trainer."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        # Of each micro-batch of the step: where its rows come from, and its loss ().
        self._losses: list[tuple[list[str], Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        self._losses.clear()
        # A skipped step leaves no trace in the curves. Meters replace their tensor, so a shallow
        # copy will do.
        self._before = trainer._tr_loss.clone(), copy.copy(trainer.meters["train"])

    def add(self, rows: list[str], loss: Tensor) -> None:
        self._losses.append((rows, loss.detach()))

    def is_sick(self, grad_norm: Any) -> Tensor:
        """(), bool: whether this rank has a loss, or a norm of all gradients, that is not finite.
        On the device: `on_any_rank` waits for it, once."""
        sick = ~torch.isfinite(torch.stack([loss for _, loss in self._losses])).all()
        if grad_norm is None or self._has_scaler():
            return sick
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        if isinstance(grad_norm, Tensor):
            return sick | ~torch.isfinite(grad_norm).to(sick.device)
        return sick | (not math.isfinite(grad_norm))  # DeepSpeed's is a number

    def settle(self, *, skip: bool) -> None:
        """Between the last backward pass and the optimizer, on all ranks: drop the gradients of a
        sick step.

        The optimizer then finds nothing to do: weights, moments and their step counts stay as they
        are. DeepSpeed has stepped already and skips such steps by itself. Raises UserError at the
        third in a row."""
        counts = self._counts()
        counts["steps"] += 1
        if not skip:
            counts["in_a_row"] = 0
            return
        for name in ("skipped", "skipped_now", "in_a_row"):
            counts[name] += 1
        trainer = self._trainer
        for parameter in trainer.model_wrapped.parameters():
            parameter.grad = None
        loss, trainer.meters["train"] = self._before
        trainer._tr_loss.copy_(loss)
        self._blame(counts)

    def _has_scaler(self) -> bool:
        """In fp16 gradients overflow now and then: a scaler of losses skips that step and lowers
        its scale."""
        trainer = self._trainer
        if trainer.is_deepspeed_enabled:
            return bool(trainer.args.fp16)
        # MS-SWIFT sets `fp16` for fp32 models too, and on a CPU there is no scaler for it.
        scaler = trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled()

    def _blame(self, counts: dict[str, int]) -> None:
        """Name the rows whose loss is no number on any rank, else all rows of the step."""
        losses = [(rows, loss.item()) for rows, loss in self._losses]
        of_ranks: list[Any] = [losses]
        if dist.is_initialized():
            of_ranks = [None] * dist.get_world_size()
            dist.all_gather_object(of_ranks, losses)
        step_rows: list[str] = []
        sick_rows: list[str] = []
        what = "gradients that are not finite, though every loss is,"
        for rows, loss in itertools.chain.from_iterable(of_ranks):
            step_rows += rows
            if not math.isfinite(loss):
                if not sick_rows:
                    what = f"loss {loss}"
                sick_rows += rows
        counts["rows"] += len(step_rows)
        rows_shown = shown_rows(sick_rows or step_rows)
        trainer = self._trainer
        if counts["in_a_row"] == MOST_SKIPS_IN_A_ROW:
            raise UserError(
                f"training: {what} in {MOST_SKIPS_IN_A_ROW} steps in a row, of which none was taken"
                f" (rows of the last one: {rows_shown}); look at these rows, lower learning_rate,"
                " or resume from an earlier checkpoint"
            )
        if trainer.is_world_process_zero():
            step = trainer.state.global_step + 1
            logger.warning(f"step {step} skipped: {what}; rows: {rows_shown}")

    def _counts(self) -> dict[str, int]:
        # `steps` and `skipped_now` are those since the last log line, the others of the whole run.
        zeros = dict.fromkeys(("skipped", "rows", "in_a_row", "steps", "skipped_now"), 0)
        return self._trainer.state.stateful_callbacks.setdefault(_COUNTS, zeros)

    def amend(self, logs: dict[str, float]) -> None:
        """Training logs: `skipped_steps` and `skipped_rows` of the run so far, and means over the
        steps that were taken."""
        counts = self._counts()
        if "grad_norm" in logs and not math.isfinite(logs["grad_norm"]):
            del logs["grad_norm"]  # the last step was a skipped one
        taken = counts["steps"] - counts["skipped_now"]
        if not taken:
            logs.pop("loss", None)
        elif counts["skipped_now"]:
            logs["loss"] *= counts["steps"] / taken
        logs["skipped_steps"], logs["skipped_rows"] = counts["skipped"], counts["rows"]
        counts["steps"] = counts["skipped_now"] = 0


def on_any_rank(flags: list[Tensor]) -> list[bool]:
    """Each of `flags`, bool () on one device, as True if it is so on any rank: one question for
    all."""
    answer = torch.stack(flags).to(torch.int32)
    if dist.is_initialized():
        dist.all_reduce(answer, dist.ReduceOp.MAX)
    return list(map(bool, answer.tolist()))


def shown_rows(rows: list[str]) -> str:
    """The first few of them, each once."""
    names = list(dict.fromkeys(rows))
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
