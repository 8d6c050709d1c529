"""A file that one process at a time holds: the lock of an output folder, or of one being written.

The kernel takes the lock from a process that ends, however it ends, on network folders too; a note
in the file says who has it. Where the file system knows no locks, the note alone decides: who wrote
it is looked for on this machine, and believed to live on any other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = ".higgs_audio_lock"  # of the file, in the folder that is meant
_TAKEN = {errno.EACCES, errno.EAGAIN}
# Of file systems without locks, or whose server has none.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_held: dict[Path, int] = {}  # descriptors of this process


@dataclass(frozen=True)
class Holder:
    """The process that has a lock."""

    pid: int
    host: str
    command: str
    started_s: float  # of the process, by the clock of its host

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started_s))
        return f"process {self.pid} on {self.host} ({self.command}, since {since})"

    @property
    def is_here(self) -> bool:
        """On this machine."""
        return self.host == socket.gethostname()

    @property
    def may_live(self) -> bool:
        import psutil

        if not self.is_here:
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started_s) < 1
        except psutil.Error:
            return False


def take(file: Path) -> Holder | str | None:
    """Hold `file`, which is made if it is not there, until `release` or the end of this process.

    Returns None, or who has it: a Holder, or a few words if that one has not said who it is. Raises
    OSError if the file cannot be written."""
    file = file.resolve()
    if file in _held:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not `lockf`: that is lost as soon as anything in this process reads the file.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other = None
        except OSError as error:
            other = _noted(descriptor)
            if error.errno in _TAKEN:
                os.close(descriptor)
                return other or "another process"
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if other is not None and other.may_live:
            os.close(descriptor)
            return other
        if _is_still(file, descriptor):
            break
        # The one before removed it in the meantime: what was locked is no longer its file.
        os.close(descriptor)
    _held[file] = descriptor
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(_this_process())).encode() + b"\n", 0)
    return None


def release(file: Path) -> None:
    """Give up and remove `file`, if this process has it."""
    file = file.resolve()
    descriptor = _held.pop(file, None)
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        file.unlink()  # before it is free: afterwards it may be another's
    os.close(descriptor)


def release_all() -> None:
    for file in list(_held):
        release(file)


def _leave_to_parent() -> None:
    """In a forked child, a data worker for example: it may outlive its parent, whose locks it must
    not have."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _noted(descriptor: int) -> Holder | None:
    try:
        note = json.loads(os.pread(descriptor, 10_000, 0))
        return Holder(
            int(note["pid"]), str(note["host"]), str(note["command"]), float(note["started_s"])
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _this_process() -> Holder:
    import psutil

    words = [Path(word).name for word in sys.argv[:1]] + sys.argv[1:2]
    started = psutil.Process().create_time()
    return Holder(os.getpid(), socket.gethostname(), " ".join(words), started)
