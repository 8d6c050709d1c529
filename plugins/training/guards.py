"""What keeps a run from going wrong quietly: sick steps, signals, exhausted GPUs. L3.

    loss or gradient that is no number --settle-->   step named, not taken, counted; the third in a row ends the run
    SIGINT, SIGTERM, SIGHUP            --on_save-->  step finished, checkpoint, resume command, exit code STOPPED
    torch.OutOfMemoryError             --watching--> one line with what can be lowered
    TMPDIR too long for data workers   --check_temporary_folder--> refused

Every decision is taken by all ranks alike. What ends a run at once (a killed rank, a dead worker)
is the launcher's and torch's to notice; `ddp_timeout` bounds how long the others wait."""

from __future__ import annotations

import atexit
import copy
import gc
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from swift.utils import get_logger
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import TrainerCallback

from plugins.corpora.canonical import ROW_SOURCE
from plugins.errors import UserError, problem
from plugins.training import signals
from plugins.training.packs import single_rows
from plugins.training.relaunch import resume_command

logger = get_logger()

MOST_SKIPS_IN_A_ROW = 3
_ONE_SIGNAL_S = 2.0  # under a launcher of others Ctrl-C may arrive twice: from the terminal and from the launcher
_COUNTS = "higgs_audio_guard"  # in trainer_state.json, so that a resumed run goes on counting
_SHOWN_ROWS = 8
_SOCKET = "/pymp-12345678/listener-12345678"  # where a data worker hands over a batch, below the temporary folder
_LONGEST_SOCKET_PATH_BYTES = 107  # Linux: sockaddr_un.sun_path without its final zero


@dataclass(frozen=True)
class NamedRows:
    """A collator whose batches also hold where their rows come from; pickles into spawned
    workers."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if get_worker_info() is not None:
            # Ctrl-C and batch systems signal workers too, but the step that is being finished needs
            # their batches.
            for number in signals.SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        return {
            **self.collate(rows),
            ROW_SOURCE: [row.get(ROW_SOURCE, "row") for row in single_rows(rows)],
        }


def check_temporary_folder(num_workers: int) -> None:
    """Raise UserError if data workers could not open sockets there: torch would wait for their
    batches for ever."""
    if num_workers == 0 or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    folder = tempfile.gettempdir()
    longest = _LONGEST_SOCKET_PATH_BYTES - len(_SOCKET)
    if len(os.fsencode(folder)) > longest:
        reason = f"is too long for the sockets of data workers (at most {longest} bytes)"
        raise problem(
            source="environment",
            field="TMPDIR",
            value=folder,
            reason=reason,
            remedy="name a shorter one, or set dataloader_num_workers: 0",
        )


def _end_workers() -> None:
    """At exit, before multiprocessing's own hook: that sends SIGTERM, which they ignore, and then
    waits for ever.

    Asked by torch they remove their temporary files. A loader lives on in persistent workers or a
    kept traceback."""
    for each in gc.get_objects():
        if type(each) is _MultiProcessingDataLoaderIter:
            each._shutdown_workers()
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # torch raises an error for each worker that is killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class Guard(TrainerCallback):
    """Of one trainer. `rows` are those of the micro-batch that the model has or is about to get."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.rows: list[str] = []
        self._losses: list[
            tuple[list[str], Tensor]
        ] = []  # rows and loss () of each micro-batch of the step
        self._signalled_s: float | None = None
        self._stop = False  # agreed by all ranks

    # --- sick steps ---

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        self._losses.clear()
        # A skipped step leaves no trace in the curves. Meters replace their tensor, so a shallow
        # copy will do.
        self._before = trainer._tr_loss.clone(), copy.copy(trainer.meters["train"])

    def saw(self, loss: Tensor) -> None:
        self._losses.append((self.rows, loss.detach()))

    def settle(self, grad_norm: Any) -> None:
        """Between the last backward pass and the optimizer: drop the gradients of a sick step, on
        all ranks.

        The optimizer then finds nothing to do: weights, moments and their step counts stay as they
        are. DeepSpeed has stepped already and skips such steps by itself. Raises UserError at the
        third in a row."""
        sick = torch.stack([~torch.isfinite(loss) for _, loss in self._losses]).any().reshape(1)
        if grad_norm is not None and not self._has_scaler():
            sick |= not math.isfinite(float(grad_norm))
        stop = torch.tensor([self._signalled_s is not None], device=sick.device)
        flags = torch.cat([sick, stop]).to(torch.int32)
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        skip, self._stop = (bool(flag) for flag in flags.tolist())
        counts = self._counts()
        counts["steps"] += 1
        if skip:
            counts["skipped"] += 1
            counts["skipped_now"] += 1
            counts["in_a_row"] += 1
            self._skip(counts["in_a_row"])
        else:
            counts["in_a_row"] = 0

    def _has_scaler(self) -> bool:
        """In fp16 gradients overflow now and then: a scaler of losses skips that step and lowers
        its scale."""
        trainer = self._trainer
        if trainer.is_deepspeed_enabled:
            return bool(trainer.args.fp16)
        # MS-SWIFT sets `fp16` for fp32 models too, and on a CPU there is no scaler for it.
        scaler = trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled()

    def _skip(self, in_a_row: int) -> None:
        trainer = self._trainer
        for parameter in trainer.model_wrapped.parameters():
            parameter.grad = None
        loss, trainer.meters["train"] = self._before
        trainer._tr_loss.copy_(loss)
        what, rows, num_rows = self._blame()
        self._counts()["rows"] += num_rows
        if in_a_row == MOST_SKIPS_IN_A_ROW:
            reason = f"{what} in {in_a_row} steps in a row, of which none was taken (rows of the last one: {rows})"
            remedy = "look at these rows, lower learning_rate, or resume from an earlier checkpoint"
            raise UserError(f"training: {reason}; {remedy}")
        if trainer.is_world_process_zero():
            logger.warning(f"step {trainer.state.global_step + 1} skipped: {what}; rows: {rows}")

    def _blame(self) -> tuple[str, str, int]:
        """What is no number, the rows to look at, of all ranks: those whose loss it is, else all of
        the step; how many rows the step has."""
        mine = [(rows, loss.item()) for rows, loss in self._losses]
        gathered: list[Any] = [mine]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, mine)
        seen = [batch for batches in gathered for batch in batches]
        sick = [(rows, loss) for rows, loss in seen if not math.isfinite(loss)]
        what = (
            f"loss {sick[0][1]}" if sick else "gradients that are not finite, though every loss is,"
        )
        num_rows = sum(len(rows) for rows, _ in seen)
        return what, _listed([row for rows, _ in sick or seen for row in rows]), num_rows

    def _counts(self) -> dict[str, int]:
        empty = {"skipped": 0, "rows": 0, "in_a_row": 0, "steps": 0, "skipped_now": 0}
        return self._trainer.state.stateful_callbacks.setdefault(_COUNTS, empty)

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

    # --- signals ---

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the training: signals wait for the end of a step, torch.OutOfMemoryError becomes a
        UserError."""
        args = self._trainer.args
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
        checkpointing = args.gradient_checkpointing  # MS-SWIFT sets it to False while it trains
        self._pid = os.getpid()
        is_main = threading.current_thread() is threading.main_thread()
        before = signals.handle(self._on_signal) if is_main else {}
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error, checkpointing) from error
        finally:
            self._release_workers()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _release_workers(self) -> None:
        """Those that would wait for another epoch. Collected together with their queues, in the
        process's next training, they no longer hear that they are to end, and each is waited for in
        vain."""
        trainer = self._trainer
        for loader in (
            trainer.callback_handler.train_dataloader,
            *getattr(trainer, "_eval_dataloaders", {}).values(),
        ):
            loader = getattr(loader, "base_dataloader", loader)
            if getattr(loader, "_iterator", None) is not None:
                loader._iterator._shutdown_workers()
                loader._iterator = None

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # a data worker that was forked just now
        now = time.monotonic()
        if self._signalled_s is None:
            self._signalled_s = now
            signals.keep_output()
            if self._trainer.is_world_process_zero():
                name = signal.Signals(number).name
                signals.tell(f"{name}: this step is finished and saved; a second one ends at once")
        elif now - self._signalled_s > _ONE_SIGNAL_S:
            signals.end(number)

    @property
    def stopping(self) -> bool:
        """A signal ends this run before its training is over."""
        return self._stop and self._trainer.state.global_step < self._trainer.state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stop:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the process here: what follows a finished training would stand in the log and remove
        checkpoints."""
        if not self.stopping:
            return
        trainer = self._trainer
        signals.keep_output()
        trainer.callback_handler.on_train_end(
            args, state, control
        )  # TensorBoard writes its last events
        if trainer.is_world_process_zero():
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            print(
                f"\nstopped by a signal after step {state.global_step}, {checkpoint} is saved; resume with",
                flush=True,
            )
            print(resume_command(sys.argv, checkpoint), flush=True)
        if dist.is_initialized():
            dist.barrier()  # the launcher ends all ranks as soon as one is gone
        raise SystemExit(signals.STOPPED)

    # --- memory ---

    def _out_of_memory(self, error: torch.OutOfMemoryError, checkpointing: bool) -> UserError:
        args, template = self._trainer.args, self._trainer.template
        first_line = str(error).partition("\n")[0]
        levers = [
            f"per_device_train_batch_size {args.per_device_train_batch_size} with more gradient_accumulation_steps",
            f"max_length {template.max_length}",
            f"max_audio_length {template.settings.max_audio_length}",
            *([] if checkpointing else ["gradient_checkpointing false (set it to true)"]),
        ]
        remedy = (
            f"lower {', '.join(levers)}; or take a smaller configs/*.yaml (LoRA, QLoRA, ZeRO or FSDP2 instead of full):"
            " `higgs-audio doctor --config FILE.yaml` computes what each needs"
        )
        rows = _listed(self.rows)
        return UserError(
            f"training: out of GPU memory (rows of the batch: {rows}; {first_line}); {remedy}"
        )


def _listed(rows: list[str]) -> str:
    names = list(dict.fromkeys(rows))
    more = len(names) - _SHOWN_ROWS
    return ", ".join(names[:_SHOWN_ROWS]) + (f" and {more} more" if more > 0 else "")
