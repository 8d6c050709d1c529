"""One training at a time writes an output folder: the lock of its first rank.

MS-SWIFT's args.json, log and checkpoints have the same names in each run. The lock ends with its
process, also by SIGKILL, so that a run that was killed can be resumed at once.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from plugins.errors import UserError, problem
from plugins.files import lock


def hold(output_dir: str | Path) -> None:
    """Let this run, of however many ranks, be the only one that writes `output_dir`.

    Raises UserError, on every rank, if another process has it."""
    refusal: list[str | None] = [None]
    if os.environ.get("RANK", "0") == "0":
        try:
            _hold(Path(output_dir))
        except UserError as error:
            refusal = [str(error)]
    if dist.is_initialized():
        dist.broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])


def hold_output(args: Any, model: Any) -> None:
    """As `hold`, for MS-SWIFT's arguments: before it writes anything into the folder that it has
    chosen."""
    hold(args.output_dir)


@contextmanager
def released() -> Iterator[None]:
    """Afterwards the folder is free for others, whose process may go on: a notebook's does."""
    try:
        yield
    finally:
        lock.release_all()


def _hold(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = lock.take(folder / lock.NAME)
    except OSError as error:
        reason = f"cannot be locked ({error.strerror})"
        raise _refused(folder, reason, "name another folder") from None
    if holder is not None:
        reason = f"is being trained in by {holder}"
        remedy = "wait for it or stop it, or name another folder"
        if isinstance(holder, lock.Holder) and not holder.is_here:
            remedy += f"; if it does not run any more, remove {folder / lock.NAME}"
        raise _refused(folder, reason, remedy)
    atexit.register(lock.release_all)


def _refused(folder: Path, reason: str, remedy: str) -> UserError:
    return problem(
        source="options", field="output_dir", value=str(folder), reason=reason, remedy=remedy
    )
