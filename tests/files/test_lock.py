"""One process at a time has a file; who has it is said, and nobody has it after his process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from plugins.files import lock

HOLD = """
import os, sys, time
from pathlib import Path
from plugins.files import lock
assert lock.take(Path(sys.argv[1])) is None
if os.fork() == 0:  # as a data worker, which outlives its parent for a while
    time.sleep(60)
Path(sys.argv[1]).read_bytes()  # as whatever copies the folder: a lock of fcntl's would be lost
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has `tmp_path / lock`, and a child of it."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = psutil.Process(process.pid).children()
        yield process
        for child in children:
            child.kill()
        process.kill()


def no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "a file system without"])
def test_the_second_is_told_who_has_it_until_that_one_is_killed(
    has_locks: bool,
    holder: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its child lives on: a lock that it had inherited would last."""
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    other = lock.take(tmp_path / "lock")
    assert isinstance(other, lock.Holder)
    assert (other.pid, other.host) == (holder.pid, socket.gethostname())
    assert str(other).startswith(f"process {holder.pid} on {socket.gethostname()} (-c ")
    holder.kill()
    holder.wait()
    try:
        assert lock.take(tmp_path / "lock") is None
        assert lock.take(tmp_path / "." / "lock") is None, "it is ours already"
    finally:
        lock.release_all()
    assert list(tmp_path.iterdir()) == []


NOTES = {
    "empty": "",
    "no JSON": "{",
    "a list": "[1]",
    "a number": "7",
    "without fields": "{}",
    "no numbers": json.dumps({"pid": "x", "host": "h", "command": "c", "started_s": 0}),
    "deep": "[" * 5000,
    "no UTF-8": "\udcff",
    "a dead process": json.dumps(
        {"pid": 2**22 + 1, "host": socket.gethostname(), "command": "c", "started_s": 0}
    ),
    "a number that was given again": json.dumps(
        {"pid": os.getpid(), "host": socket.gethostname(), "command": "c", "started_s": 0}
    ),
}


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "none"])
@pytest.mark.parametrize("case", NOTES)
def test_what_a_dead_process_left_is_taken_over(
    case: str, has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    file = tmp_path / "lock"
    file.write_bytes(NOTES[case].encode(errors="surrogateescape"))
    try:
        assert lock.take(file) is None
        assert json.loads(file.read_text())["pid"] == os.getpid()
    finally:
        lock.release(file)


def test_without_locks_another_machine_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    file = tmp_path / "lock"
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere", "command": "c", "started_s": 0}))
    other = lock.take(file)
    assert isinstance(other, lock.Holder)
    assert not other.is_here
    assert file.exists()
    monkeypatch.undo()
    assert lock.take(file) is None, "a file system with locks knows better"
    lock.release(file)


def test_a_file_that_was_removed_in_the_meantime_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two would have it: one the old file, one the new."""
    file, calls = tmp_path / "lock", []
    original = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        original(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1:
            file.unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    assert lock.take(file) is None
    assert len(calls) == 2
    assert file.exists()
    lock.release(file)
