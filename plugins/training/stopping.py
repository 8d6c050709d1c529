"""SIGINT, SIGTERM or SIGHUP in a training: the step is finished and saved, the process ends with
the resume command and exit code STOPPED.

    signal on one rank --on_signals--> asked --trainer, all ranks--> agreed
    agreed --on_step_end--> checkpoint --on_save--> SystemExit(STOPPED)

What a signal does outside of a training is `plugins.training.signals`. A rank that is killed is the
launcher's to notice; `ddp_timeout` bounds how long the others wait."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from plugins.training import signals
from plugins.training.arguments import resume_command

# Under a launcher of others Ctrl-C may arrive twice: from the terminal and from the launcher.
_ONE_SIGNAL_S = 2.0


class Stopping(TrainerCallback):
    """Of one trainer."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._signalled_s: float | None = None
        self.is_agreed = False  # by all ranks, between two steps

    @property
    def is_asked(self) -> bool:
        """A signal has reached this rank."""
        return self._signalled_s is not None

    @property
    def ends_early(self) -> bool:
        """A signal ends this run before its training is over."""
        return self.is_agreed and self._trainer.state.global_step < self._trainer.state.max_steps

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Around the training: signals wait for the end of a step."""
        self._pid = os.getpid()
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            before = signals.handle(self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_agreed:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the process here: what follows a finished training would stand in the log and remove
        checkpoints."""
        if not self.ends_early:
            return
        trainer = self._trainer
        signals.keep_output()
        # TensorBoard writes its last events.
        trainer.callback_handler.on_train_end(args, state, control)
        if trainer.is_world_process_zero():
            step = state.global_step
            checkpoint = Path(args.output_dir) / f"checkpoint-{step}"
            print(f"\nstopped by a signal after step {step}, {checkpoint} is saved; resume with")
            print(resume_command(sys.argv, checkpoint), flush=True)
        if dist.is_initialized():
            dist.barrier()  # the launcher ends all ranks as soon as one is gone
        raise SystemExit(signals.STOPPED)
