"""What follows the last step: the last log line, samples, the card, and a note that all is done.

trainer after its last step           --close-->  card, END_FILE
run killed after its last checkpoint  --finish--> log line and samples, as if it had not been
run without a single step             --check_steps, FirstStep--> UserError
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from plugins.errors import problem
from plugins.training import card, resume


def close(trainer: Any) -> None:
    """After the last step and all that transformers does then: the card, and that it is done."""
    card.write(trainer)
    resume.note_end(trainer)


def finish(trainer: Any, checkpoint: Path) -> Any:
    """What transformers does after the last step, for a run that ends with `checkpoint`; returns
    its TrainOutput."""
    args, steps, epochs = trainer.args, trainer.state.max_steps, trainer.state.num_train_epochs
    # As a resumed training reads its state: with the numbers of this rank, and of its callbacks.
    trainer._init_training_state(steps, steps, epochs, str(checkpoint), None)
    state = trainer.state
    trainer._initial_global_step = state.global_step
    trainer._tr_loss = torch.tensor(0.0, device=args.device)
    trainer._total_loss_scalar = 0.0
    if trainer.is_deepspeed_enabled:
        # Only a wrapped model can load the best one, and steps alone need one wrapped.
        args.load_best_model_at_end = False
    # Sums since the last log line belong to the mode in which that line would have been written.
    trainer.model.train(not _is_evaluated(state))
    trainer.control = trainer.callback_handler.on_train_begin(args, state, trainer.control)
    return trainer._finalize_training(None, 0, time.time())


def _is_evaluated(state: Any) -> bool:
    """Whether the last step was followed by an evaluation, which leaves the model in that mode."""
    for record in state.log_history:
        if "eval_loss" in record and record.get("step") == state.global_step:
            return True
    return False


def check_steps(trainer: Any) -> None:
    """Raise UserError, on each rank, if no step would be taken: for too few rows, or no epoch."""
    args, rows = trainer.args, trainer.train_dataset
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise problem(
            source="options",
            field="num_train_epochs",
            value=args.num_train_epochs,
            reason="leaves no step to take",
            remedy="give more than 0, or max_steps",
        )
    if not hasattr(rows, "__len__"):
        return
    # MS-SWIFT gives each process the same number of rows, and with drop_last full batches only.
    each, remedy = 1, "start fewer processes (NPROC_PER_NODE)"
    if args.dataloader_drop_last:
        each = args.per_device_train_batch_size
        remedy = "leave --dataloader_drop_last out"
    needed = each * args.world_size
    if len(rows) < needed:
        raise problem(
            source="training",
            field="number of rows",
            value=len(rows),
            reason=f"leaves no step to take ({args.world_size} processes, {each} rows each)",
            remedy=f"give {needed} rows or more, or {remedy}",
        )


class FirstStep(TrainerCallback):
    """Raises UserError if the first epoch ends without a step: a stream shows its length only then.

    transformers would end as if all were well, or start epochs for ever, none of which has the
    batches of a step."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            return
        num_batches = args.gradient_accumulation_steps * args.world_size
        raise problem(
            source="training",
            field="steps",
            value=0,
            reason="were taken when the rows were at their end",
            remedy=f"a step takes {num_batches} batches of"
            f" {args.per_device_train_batch_size} rows: give more rows, or lower"
            " gradient_accumulation_steps or the number of processes",
        )
