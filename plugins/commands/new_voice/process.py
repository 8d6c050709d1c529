"""One command of the kit as a process of its own: words in, exit code out.

    terminal --Ctrl-C--> this process --SIGTERM--> the command, which ends as it does by itself
    this process killed --kernel--> the command killed: nobody goes on alone

The command writes to our terminal, progress and all. Between two of them a signal ends us."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plugins.training import signals
from plugins.training.arguments import typed

_PROGRAM = "higgs-audio"
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Interrupted(Exception):
    """A signal has ended what was going on."""

    def __init__(self, number: int, during: str = "") -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{f' in {during}' if during else ''}")


class _Now:
    """What is going on in this process."""

    child: subprocess.Popen[str] | None = None
    title = ""
    received: int | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP reach the command that runs, or raise `Interrupted`."""
    _Now.received, _Now.title = None, ""

    def handler(number: int, frame: Any) -> None:
        signals.keep_output()
        _Now.received = number
        if _Now.child is None:
            raise Interrupted(number, _Now.title)
        # A second one is the command's to understand, too.
        _Now.child.send_signal(signal.SIGTERM)

    before = signals.handle(handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def shown(words: Sequence[str]) -> str:
    """The shell's line of a command of the kit."""
    return shlex.join([typed(_PROGRAM), *words])


def run(words: Sequence[str], *, title: str, line: Callable[[str], None] | None = None) -> int:
    """The exit code of `higgs-audio WORDS`. line: is given each line of its stdout, after it was
    printed; without, the command has the terminal. Raises `Interrupted` after a signal."""
    script = Path(sys.executable).with_name(_PROGRAM)
    program = [str(script)] if script.is_file() else [sys.executable, "-m", "plugins"]
    _Now.title = title
    sys.stdout.flush()
    process = subprocess.Popen(
        [*program, *words],
        stdout=None if line is None else subprocess.PIPE,
        text=True,
        errors="replace",
        # Into a pipe it would write when it ends.
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=_with_parent(),
    )
    _Now.child = process
    try:
        if line is not None:
            assert process.stdout is not None
            for text in process.stdout:
                print(text, end="", flush=True)
                line(text.rstrip("\n"))
        code = process.wait()
    finally:
        _Now.child = None
    if _Now.received is not None:
        raise Interrupted(_Now.received, title)
    return code


def _with_parent() -> Callable[[], None]:
    """For a child before its program: it hears no Ctrl-C but ours, and is killed with us."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died a moment ago

    return prepare
