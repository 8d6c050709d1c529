"""The process beside a job: it holds the device, runs the command, keeps its log and exit code.

    job.json --main--> lock of the device, or result.json with the refusal
             --------> state.json (who runs), log.txt, progress.txt (the line that moves)
             --------> result.json (exit code), by rename

In a session of its own, so that it ends neither with the page nor with its terminal. The command
gets a terminal too, a small one that nobody sees: so it draws its bars, a full disk takes its log
but not the command, and if this process is killed the command hears SIGHUP, as from any terminal
that goes. Standard library and psutil only: the page waits for it."""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from plugins.files import lock
from plugins.files.disk import replace_when_done

JOB, STATE, RESULT = "job.json", "state.json", "result.json"
LOG, PROGRESS, STOP = "log.txt", "progress.txt", "stop"
_LINES, _COLUMNS = 24, 110
_RESULT_BYTES = 4096
_PROGRESS_EVERY_S = 0.5
_QUIET_S = 1.0  # after the command's end, for what its helpers still say


def main(name: str) -> None:
    """name: of the job's folder."""
    # Under nohup the command would not hear that this process is gone.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    folder = Path(name)
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    # On a full disk this place is there already, and a rename needs none.
    result = folder / ".result"
    result.write_bytes(b" " * _RESULT_BYTES)
    # What the lock says of its holder.
    sys.argv = ["job", f"{folder.name} of {job['workspace']}"]
    place = lock_of(job["device"])
    place.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.take(place)
    if holder is not None:
        _end(result, {"refused": str(holder)})
        return
    try:
        _end(result, _run(folder, job))
    finally:
        lock.release(place)


def lock_of(device: str) -> Path:
    """One for all pages of this user on this machine, whatever their workspaces."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"{os.uname().nodename}-{device.replace(':', '')}.lock"
    return Path(cache) / "higgs-audio-swift" / "devices" / name


def who(pid: int) -> dict[str, Any]:
    return {"pid": pid, "started_s": psutil.Process(pid).create_time()}


def _run(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """The command from start to end: what goes into the result."""
    terminal, inner = os.openpty()
    tty.setraw(inner)  # bytes as they are written
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    try:
        process = subprocess.Popen(
            job["process"],
            cwd=job["workspace"],
            env={**os.environ, **job["env"], "PYTHONUNBUFFERED": "1", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
        )
    except OSError as error:
        return {"error": f"{job['process'][0]}: {error.strerror}"}
    os.close(inner)

    def forward(number: int, frame: Any) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    # Of a machine that shuts down: the command first, then this one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    with suppress(OSError, psutil.Error), replace_when_done(folder / STATE) as temporary:
        state = {"runner": who(os.getpid()), "command": who(process.pid)}
        temporary.write_text(json.dumps(state), encoding="utf-8")
    _keep_log(folder, terminal, process)
    return {"code": process.wait()}


def _keep_log(folder: Path, terminal: int, process: subprocess.Popen[bytes]) -> None:
    """Until the command has ended and nobody speaks any more. Lines that end go into the log; of
    one that is drawn again and again only the last state is kept, beside it."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    line, shown_s, quiet_since_s = "", 0.0, None
    # Without buffers of ours: what did not fit on the disk is not tried again at the end.
    with (
        (folder / LOG).open("ab", buffering=0) as log,
        (folder / PROGRESS).open("wb", buffering=0) as progress,
    ):
        while True:
            ready, _, _ = select.select([terminal], [], [], 0.2)
            if not ready:
                if process.poll() is None:
                    continue
                quiet_since_s = quiet_since_s or time.monotonic()
                if time.monotonic() - quiet_since_s > _QUIET_S:
                    break
                continue
            try:
                block = os.read(terminal, 1 << 16)
            except OSError as error:
                if error.errno != errno.EIO:  # all have closed it
                    raise
                break
            *lines, line = (line + decode(block)).split("\n")
            # A full disk: what is said is lost, the command goes on.
            with suppress(OSError):
                log.write("".join(f"{_last_drawn(text)}\n" for text in lines).encode())
            line = _last_drawn(line) if len(line) > 1 << 16 else line
            if lines or time.monotonic() - shown_s > _PROGRESS_EVERY_S:
                shown_s = time.monotonic()
                with suppress(OSError):
                    _show(progress, _last_drawn(line))
        with suppress(OSError):
            log.write((_last_drawn(line) + "\n" if line.strip() else "").encode())


def _last_drawn(line: str) -> str:
    """Of a line that was drawn over by carriage returns, what one sees last."""
    for text in reversed(line.split("\r")):
        if text.strip():
            return text
    return ""


def _show(progress: Any, line: str) -> None:
    progress.seek(0)
    progress.truncate(progress.write(line.encode()))


def _end(place: Path, result: dict[str, Any]) -> None:
    content = json.dumps({**result, "ended_s": time.time()}).encode()[:_RESULT_BYTES]
    with place.open("r+b") as file:
        file.write(content.ljust(_RESULT_BYTES))
        file.flush()
        with suppress(OSError):
            os.fsync(file.fileno())
    os.replace(place, place.with_name(RESULT))
