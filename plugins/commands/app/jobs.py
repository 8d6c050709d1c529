"""Jobs: the kit's own commands as processes that outlive a tab and the page.

    Action --start--> WORKSPACE/higgs_jobs/0007-sft/ and a process beside it (`runner.py`)
    folder --state--> what has become of it, in words; read anew each time, so that every tab and
                      every page of the workspace sees the same

One at a time per device. Stopped by SIGTERM, by which a training saves and everything else can be
gone on with by the same command. Knows no Gradio and no torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plugins.commands.app import runner
from plugins.commands.app.workspace import Workspace
from plugins.errors import UserError, problem
from plugins.files.disk import replace_when_done
from plugins.training.signals import STOPPED

JOBS = "higgs_jobs"
PASSWORD = "HIGGS_AUDIO_PASSWORD"  # of the page, no command's
FULL_BELOW = 32 << 20  # bytes free: a checkpoint, or a corpus, has no room
_ROOT = Path(__file__).resolve().parents[3]
PROGRAM = (sys.executable, str(_ROOT / "plugins" / "__main__.py"))  # `higgs-audio`, of this Python
_RUNNER = f"import sys; from {runner.__name__} import main; main(sys.argv[1])"
_FOLDER = re.compile(r"(\d{4,})-(\w+)")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_TAIL_BYTES = 1 << 16
_MAX_REASON = 300  # characters
_STARTS_IN_S = 60.0  # of a machine that has much else to do

Name = Literal["starting", "running", "stopping", "done", "stopped", "failed", "lost"]


@dataclass(frozen=True)
class Action:
    """What a tab wants done. words: of the command line behind `higgs-audio`. makes: what is
    written, as a word of the workspace."""

    kind: str
    words: tuple[str, ...]
    makes: str
    device: str = "cpu"
    env: Mapping[str, str] = field(default_factory=dict)

    def line(self, workspace: Workspace) -> str:
        """The shell's lines that do the same."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        words.append(shlex.join(["higgs-audio", *self.words]))
        return f"cd {shlex.quote(str(workspace.root))}\n{' '.join(words)}"


@dataclass(frozen=True)
class State:
    """name, and a line about it for people. progress: the bar that moves, if there is one."""

    name: Name
    line: str
    progress: str = ""

    @property
    def is_over(self) -> bool:
        return self.name in ("done", "stopped", "failed", "lost")

    @property
    def can_resume(self) -> bool:
        return self.name in ("stopped", "failed", "lost")


@dataclass(frozen=True)
class Job:
    """One that was started. form: what the tab's fields held, to be shown again."""

    folder: Path
    action: Action
    form: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    def log(self) -> str:
        """Its end."""
        return _tail(self.folder / runner.LOG)

    def state(self, workspace: Workspace) -> State:
        result = _read(self.folder / runner.RESULT)
        if result is not None:
            return self._ended(result, workspace)
        if not self._lives("runner"):
            # A folder that was made just now has nobody yet.
            age_s = time.time() - (self.folder / runner.JOB).stat().st_mtime
            if not (self.folder / runner.STATE).exists() and age_s < _STARTS_IN_S:
                return State("starting", f"{self.name}: starting")
            reason = "its process is gone, without an exit code: killed, or the machine went down"
            return State("lost", f"{self.name}: {reason}. Resume goes on by the same command.")
        progress = _tail(self.folder / runner.PROGRESS).strip()
        if (self.folder / runner.STOP).exists():
            return State(
                "stopping", f"{self.name}: stopping, what is done is being saved", progress
            )
        return State("running", f"{self.name}: running on {self.action.device}", progress)

    def _ended(self, result: Mapping[str, Any], workspace: Workspace) -> State:
        code = result.get("code")
        if code == 0:
            return State("done", f"{self.name}: done, {self.action.makes}")
        is_asked = (self.folder / runner.STOP).exists()
        ended_by_signal = code in (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGHUP)
        if code == STOPPED or (is_asked and ended_by_signal):
            return State("stopped", f"{self.name}: stopped. Resume goes on where it was.")
        reason = result.get("error") or complaint(self.log()) or "see its log"
        if code is not None and code < 0:
            reason = f"ended by {signal.Signals(-code).name}; {reason}"
        elif code is not None:
            reason = f"exit code {code}; {reason}"
        free = workspace.free_bytes()
        if "No space left" in self.log() or free < FULL_BELOW:
            reason = f"the disk is full ({free >> 20} MiB free): make room, then Resume; {reason}"
        return State("failed", f"{self.name}: failed, {reason}")

    def stop(self) -> None:
        """Ask it to end in order; once more ends a training at once."""
        with suppress(OSError):  # a full disk keeps nobody from stopping
            (self.folder / runner.STOP).touch()
        state = _read(self.folder / runner.STATE) or {}
        if self._lives("command"):
            with suppress(ProcessLookupError):
                os.kill(state["command"]["pid"], signal.SIGTERM)

    def _lives(self, which: str) -> bool:
        """Whether its runner, or its command, still is that very process."""
        import psutil

        with suppress(LookupError, TypeError, psutil.Error):
            note = (_read(self.folder / runner.STATE) or {})[which]
            process = psutil.Process(int(note["pid"]))
            is_same = abs(process.create_time() - float(note["started_s"])) < 1
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        return False


def start(workspace: Workspace, action: Action, form: Mapping[str, Any]) -> Job:
    """Returns when it runs. Raises UserError if its device has another one, or nothing can be
    written."""
    require_room(workspace)
    folder = _new_folder(workspace, action.kind)
    job = Job(folder, action, form)
    try:
        content = {
            "kind": action.kind,
            "words": action.words,
            "makes": action.makes,
            "device": action.device,
            "env": dict(action.env),
            "form": dict(form),
            "workspace": str(workspace.root),
            "process": [*PROGRAM, *action.words],
        }
        with replace_when_done(folder / runner.JOB) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        _await(job, _spawn(folder))
    except (UserError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return job


def resume(workspace: Workspace, job: Job) -> None:
    """Run the same command again. Raises UserError as `start` does."""
    require_room(workspace)
    if not job.state(workspace).can_resume:
        raise problem(
            source="page",
            field="job",
            value=job.name,
            reason="has not ended early",
            remedy="start a new one",
        )
    before = _read(job.folder / runner.RESULT)
    for name in (runner.STOP, runner.RESULT, runner.STATE):
        (job.folder / name).unlink(missing_ok=True)
    try:
        _await(job, _spawn(job.folder))
    except UserError:
        # It has ended as it had.
        (job.folder / runner.RESULT).unlink(missing_ok=True)
        if before is not None:
            with replace_when_done(job.folder / runner.RESULT) as temporary:
                temporary.write_text(json.dumps(before), encoding="utf-8")
        raise


def jobs(workspace: Workspace, kinds: Sequence[str] = ()) -> Iterator[Job]:
    """Those of the workspace, the newest first. A folder that is none of ours is passed over."""
    numbered = []
    with suppress(OSError):
        for folder in (workspace.root / JOBS).iterdir():
            if match := _FOLDER.fullmatch(folder.name):
                numbered.append((int(match[1]), folder))
    for _, folder in sorted(numbered, reverse=True):
        content = _read(folder / runner.JOB)
        with suppress(LookupError, TypeError, AttributeError):
            if content is not None and (not kinds or content["kind"] in kinds):
                yield _job(folder, content)


def newest(workspace: Workspace, *kinds: str) -> Job | None:
    return next(jobs(workspace, kinds), None)


def require_room(workspace: Workspace) -> None:
    """Raise UserError if the disk of the workspace is full."""
    free = workspace.free_bytes()
    if free < FULL_BELOW:
        raise problem(
            source="page",
            field="workspace",
            value=str(workspace.root),
            reason=f"lies on a disk that is full ({free >> 20} MiB free)",
            remedy="make room, then start again: what was made before is kept",
        )


def complaint(log: str) -> str:
    """The line of a log that says why its command failed: the kit's own, or the last one."""
    lines = [line.strip() for line in log.split("\n") if line.strip()]
    for line in reversed(lines[-40:]):
        if re.match(r"(higgs-audio[\w -]*: )?error: ", line):
            return line
    return lines[-1][:_MAX_REASON] if lines else ""


def _job(folder: Path, content: Mapping[str, Any]) -> Job:
    action = Action(
        str(content["kind"]),
        tuple(map(str, content["words"])),
        str(content["makes"]),
        str(content["device"]),
        dict(content["env"]),
    )
    return Job(folder, action, dict(content["form"]))


def _new_folder(workspace: Workspace, kind: str) -> Path:
    place = workspace.inside(JOBS, field="workspace")
    place.mkdir(exist_ok=True)
    numbers = [int(match[1]) for path in place.iterdir() if (match := _FOLDER.match(path.name))]
    number = max(numbers, default=0)
    while True:
        number += 1
        folder = place / f"{number:04d}-{kind}"
        # Another tab may take the number at the same moment.
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def _spawn(folder: Path) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    env.pop(PASSWORD, None)
    # A checkout that is not installed must be importable too.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH"))))
    with (folder / runner.LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUNNER, str(folder)],
            cwd=_ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # A child that nobody waits for would stay in the table of processes.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def _await(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Until it runs or has ended; what does neither is ended."""
    end_s = time.monotonic() + _STARTS_IN_S
    while time.monotonic() < end_s:
        result = _read(job.folder / runner.RESULT)
        if result is not None and "refused" in result:
            raise problem(
                source="page",
                field="device",
                value=job.action.device,
                reason=f"has a job already: {result['refused']}",
                remedy="wait for it or stop it, then start this one",
            )
        if result is not None or (job.folder / runner.STATE).exists():
            return
        time.sleep(0.05)
    process.kill()  # its command, if there is one, hears that as SIGHUP
    reason = complaint(job.log()) or "its process says nothing"
    raise problem(
        source="page", field="job", value=job.name, reason=f"does not start ({reason})",
        remedy="see the terminal of the page",
    )  # fmt: skip


def _read(file: Path) -> dict[str, Any] | None:
    """None for what is not there, or not whole."""
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return None


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return _ESCAPES.sub("", text)
