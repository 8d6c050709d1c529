"""Signals that stop a training, and what they do to a process that is not in a step. Standard
library only.

    imports, loading, launching --end_cleanly--> one line, exit code 128 + n
    in training                 --stopping-->    step finished, checkpoint, exit code STOPPED
    in the parent of ranks      --launcher-->    handed to each rank
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of a training that is saved: EX_TEMPFAIL of sysexits.h, "try again later". 128 + n is not saved.
STOPPED = 75
# Ctrl-C also ends what reads our output, such as `tee`, and at about the same time.
_NEIGHBOURS_END_S = 0.1


def handle(handler: Callable[[int, Any], Any]) -> dict[signal.Signals, Any]:
    """Give `handler` to each of SIGNALS; returns what handled them before. `nohup` stays in
    force."""
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {}
    for number in SIGNALS:
        if not (is_nohup and number == signal.SIGHUP):
            before[number] = signal.signal(number, handler)
    return before


def end_cleanly() -> None:
    """From here on a signal ends this process by `leave`, where Python's own has a traceback."""
    mine = os.getpid()

    def handler(number: int, frame: Any) -> None:
        # One line of all ranks, and of all processes that they forked.
        leave(number, is_told=os.environ.get("RANK", "0") == "0" and os.getpid() == mine)

    handle(handler)


def leave(number: int, *, is_told: bool = True) -> NoReturn:
    """Raise SystemExit(128 + number) after one line; the next signal does not wait for what that
    cleans up."""
    # Not before the line is out: torchrun ends all ranks as soon as it hears of one.
    late: list[int] = []
    handle(lambda number, frame: late.append(number))
    if is_told:
        tell(f"ended by {signal.Signals(number).name} outside of training; nothing was to be saved")
    handle(end)
    if late:
        end(late[0])
    raise SystemExit(128 + number)


def end(number: int, frame: Any = None) -> NoReturn:
    """End this process at once, by the signal itself, so that whoever waits for it sees which
    one."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # The first process of a container outlives signals that it does not handle.
    os._exit(128 + number)


def tell(line: str) -> None:
    """Write to stderr from a signal handler: Python's own streams may be in the middle of a
    write."""
    keep_output()
    os.write(2, f"\n{line}\n".encode())


def keep_output() -> None:
    """Let stdout or stderr that nobody reads any more go where the other goes, or nowhere.

    With the terminal (SIGHUP), or with a `tee` that Ctrl-C ended too, every write would raise an
    error, and the step that is being finished would be lost."""
    time.sleep(_NEIGHBOURS_END_S)
    lost = list(filter(_is_lost, (1, 2)))
    for descriptor in lost:
        other = 3 - descriptor
        target = os.open(os.devnull, os.O_WRONLY) if other in lost else other
        os.dup2(target, descriptor)


def _is_lost(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are always reported
    return bool(poll.poll(0))
