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


def deadly(*, folder: str, at: int) -> None:
    """Kill this process at the `at`-th effect below `folder`.

    Effects are counted before they happen: opening for writing, renaming, removing, making a
    folder, truncating; each write is one more, in whose middle it ends. Not counted is syncing:
    what a killed process has written is the kernel's and stays. torch and safetensors write from
    their own code, unseen by Python: they count as one write."""
    import safetensors.torch
    import torch

    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == at

    def below(path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(os.fspath(path)).startswith(
            folder
        )

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if event == "open" or event in _EFFECTS:
            path = args[0]
            if (
                event in {"os.remove", "os.rmdir"} and args[1] >= 0
            ):  # `shutil.rmtree` names files by their folder
                path = os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), path)
            if below(path) and due():
                die()

    original_open = io.open

    def torn_open(
        path: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: Any = None,
        *rest: Any,
        **named: Any,
    ):
        if not set(mode) & set("wax+") or not below(path):
            return original_open(path, mode, buffering, encoding, *rest, **named)

        class File(io.FileIO):
            def write(self, content: Any, /) -> int:
                if due():
                    super().write(bytes(content)[: len(content) // 2])
                    die()
                return super().write(content)

        raw = File(path, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)

    def torn(write: Callable[..., Any], position: int) -> Callable[..., Any]:
        def writes(*args: Any, **named: Any) -> None:
            write(*args, **named)
            path = args[position]
            if below(path) and due():
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        return writes

    torch.save = torn(torch.save, 1)
    for module in [module for module in list(sys.modules.values()) if hasattr(module, "__dict__")]:
        for name, value in list(vars(module).items()):
            if value is safetensors.torch.save_file and module is not safetensors.torch:
                setattr(module, name, torn(value, 1))
    io.open = builtins.open = torn_open  # type: ignore[assignment]
    sys.addaudithook(heard)
