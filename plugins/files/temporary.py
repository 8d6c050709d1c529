"""Folders for what others send, which do not outlive who made them.

A folder is its maker's for as long as the file in it is locked, and the system unlocks that however
a process ends. So whoever starts next knows which are left of the dead, and removes them."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "higgs-audio-"
_LOCK = ".higgs-audio-lock"  # whatever has none is not ours, and may be somebody's model


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A new folder, whose name says its `purpose`; it is removed at the end."""
    while True:
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-")))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(lock)  # another's `sweep` came between the last two lines
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep() -> None:
    """Remove the folders that dead processes of this user left."""
    with os.scandir(tempfile.gettempdir()) as entries:
        folders = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]
    for folder in folders:
        _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    try:
        status = folder.lstat()
        # The folder for temporary files is everybody's: never through a link, nor another's.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its maker lives
    finally:
        os.close(lock)
