"""The command of MS-SWIFT's launcher -> its process, with nobody between a signal and the training.

    [python, FILE, ...]              --exec-->      this process becomes it
    [python, *TORCHRUN, ..., FILE, ...] --torchrun--> in this process, which hands signals to ranks

MS-SWIFT itself waits in a parent that kills its child on Ctrl-C, and leaves it behind on SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

from plugins.training import signals

TORCHRUN = ["-m", "torch.distributed.run"]
ALLOCATOR = "PYTORCH_ALLOC_CONF"
# Of earlier versions of torch, and of AMD's; today's still reads them.
_ALLOCATOR_NAMES = {ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"}


def launch(command: list[str]) -> NoReturn:
    """Run `command`, whose first word is a Python; does not return."""
    let_memory_grow()
    # An exec drops what is still buffered.
    sys.stdout.flush()
    sys.stderr.flush()
    if command[1:3] == TORCHRUN:
        sys.exit(_torchrun(command[3:]))
    os.execv(command[0], command)


def let_memory_grow() -> None:
    """Have torch, in this process and those that it starts, reuse freed GPU memory for blocks of
    other sizes: long and short clips alternate. It looks when it first needs a GPU. What the user
    has set, under any name, stays."""
    if _ALLOCATOR_NAMES.isdisjoint(os.environ):
        os.environ[ALLOCATOR] = "expandable_segments:True"


def _torchrun(arguments: list[str]) -> int:
    """The exit code: 0, STOPPED if the ranks saved after a signal, 128 + n if they ended by it
    unsaved.

    torchrun's own handlers kill ranks that are still there after 30 s, whatever they save, and its
    exit code is 1. Raises its ChildFailedError if a rank failed by itself."""
    import psutil
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        signals.keep_output()
        received.append(number)
        ranks = psutil.Process().children()
        if not ranks:
            signals.leave(number)
        for rank in ranks:  # in sessions of their own, so that a terminal does not reach them
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    signals.handle(forward)
    try:
        # It must be given one to handle; none of ours.
        run.main(["--signals_to_handle", "SIGQUIT", *arguments])
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if signals.STOPPED in codes:
            return signals.STOPPED
        for number in received:
            if codes & {-number, 128 + number}:
                return 128 + number
        raise
    return 0
