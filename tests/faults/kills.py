"""SIGKILL at a chosen effect of a training on its output folder."""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_EFFECTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"}
_original_open = io.open


def deadly(*, folder: str, at: int) -> None:
    """Kill this process at the `at`-th effect below `folder`.

    Effects are counted before they happen: opening for writing, renaming, removing, making a
    folder, truncating; each write is one more, in whose middle it ends. Not counted is syncing:
    what a killed process has written is the kernel's and stays. torch and safetensors write from
    their own code, unseen by Python: they count as one write."""
    import safetensors.torch
    import torch

    effects = Effects(folder, at)
    torch.save = effects.torn(torch.save, 1)
    original = safetensors.torch.save_file
    for module in list(sys.modules.values()):
        if module is safetensors.torch:
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, name, effects.torn(original, 1))
    io.open = builtins.open = effects.torn_open  # type: ignore[assignment]
    sys.addaudithook(effects.on_event)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Effects:
    """Those below a folder, counted up to the deadly one."""

    def __init__(self, folder: str, at: int) -> None:
        self._folder, self._left = folder, at

    def _is_due(self) -> bool:
        self._left -= 1
        return self._left == 0

    def _is_below(self, path: object) -> bool:
        if not isinstance(path, (str, os.PathLike)):
            return False
        return os.path.abspath(os.fspath(path)).startswith(self._folder)

    def on_event(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's audit events, each before it happens."""
        if event == "open":
            flags = args[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in _EFFECTS:
            return
        path = args[0]
        if event in {"os.remove", "os.rmdir"} and args[1] >= 0:
            # `shutil.rmtree` names files by their folder.
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), path)
        if self._is_below(path) and self._is_due():
            _die()

    def torn_open(
        self,
        path: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: Any = None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """As `open`; a write may end in its middle."""
        if not set(mode) & set("wax+") or not self._is_below(path):
            return _original_open(path, mode, buffering, encoding, *rest, **named)
        is_due = self._is_due

        class File(io.FileIO):
            def write(self, content: Any, /) -> int:
                if is_due():
                    super().write(bytes(content)[: len(content) // 2])
                    _die()
                return super().write(content)

        raw = File(path, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)

    def torn(self, write: Callable[..., Any], position: int) -> Callable[..., Any]:
        """`write`, whose argument at `position` is a path, as a write that may end in its
        middle."""

        def writes(*args: Any, **named: Any) -> None:
            write(*args, **named)
            path = args[position]
            if self._is_below(path) and self._is_due():
                os.truncate(path, os.path.getsize(path) // 2)
                _die()

        return writes
