"""Jobs of the page: real small processes that outlive who started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from helpers.app import wait_for

from plugins.commands.app import jobs, runner
from plugins.commands.app.jobs import Action, Job, State, newest, resume, start
from plugins.commands.app.workspace import Workspace
from plugins.errors import UserError


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jobs, "PROGRAM", (sys.executable, "-uc"))
    (tmp_path / "studio").mkdir()
    return Workspace(tmp_path / "studio")


def action(code: str, **options: Any) -> Action:
    return Action("sft", (code,), "out", **options)


def over(job: Job, workspace: Workspace) -> State:
    wait_for(lambda: job.state(workspace).is_over, f"the end of {job.log()}")
    return job.state(workspace)


def reads(job: Job, text: str) -> None:
    wait_for(lambda: text in job.log(), text)


WAITS = "import time; print('begun'); time.sleep(60)"


def test_a_job_runs_and_its_end_is_kept(workspace: Workspace) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['X']); sys.exit(int(sys.stderr.isatty()))"
    job = start(workspace, action(code, env={"X": "a b"}), {"name": "ann"})
    state = over(job, workspace)
    assert state.name == "failed", "a terminal draws bars"
    assert state.line == f"0001-sft: failed, exit code 1; {workspace.root} a b"
    assert f"{workspace.root} a b\n" in job.log()
    again = newest(workspace)
    assert again is not None
    assert (again.folder, again.action, again.form) == (job.folder, job.action, {"name": "ann"})
    assert newest(workspace, "prepare") is None


def test_the_bar_is_beside_the_log(workspace: Workspace) -> None:
    code = """
import sys, time
for i in range(4):
    sys.stderr.write(f"\\rclips: {i}/4 \\x1b[A")
    time.sleep(0.6)
print("\\nended")
time.sleep(60)"""
    job = start(workspace, action(code), {})
    wait_for(lambda: "clips: 2/4" in job.state(workspace).progress, "the bar")
    assert "clips" not in job.log()
    reads(job, "ended")
    assert "clips: 3/4" in job.log()
    assert "clips: 2/4" not in job.log()
    job.stop()
    assert over(job, workspace).name == "stopped"


def test_one_at_a_time_per_device(workspace: Workspace, tmp_path: Path) -> None:
    """Whoever asks: another tab, or another page of another workspace."""
    first = start(workspace, action(WAITS), {})
    (tmp_path / "other").mkdir()
    other = Workspace(tmp_path / "other")
    message = r"device: 'cpu' has a job already: process \d+ on .*\(job 0001-sft of .*studio, since"
    for place in (workspace, other):
        with pytest.raises(UserError, match=message + r" .*\); wait for it or stop it"):
            start(place, action("print()"), {})
    assert [job.name for job in jobs.jobs(workspace)] == ["0001-sft"], "nothing is left of it"
    elsewhere = start(workspace, action("print()", device="cuda:1"), {})
    assert over(elsewhere, workspace).name == "done"
    first.stop()
    assert over(first, workspace).name == "stopped"
    assert over(start(workspace, action("print()"), {}), workspace).name == "done"


def test_two_that_start_at_once_are_one(workspace: Workspace) -> None:
    """Ten pages at the same moment."""
    script = f"""
import sys
from plugins.commands.app import jobs
from plugins.commands.app.workspace import Workspace
from plugins.errors import UserError
jobs.PROGRAM = ({sys.executable!r}, "-c")
try:
    jobs.start(Workspace({str(workspace.root)!r}), jobs.Action("sft", ({WAITS!r},), "out"), {{}})
except UserError as error:
    sys.exit("has a job already" not in str(error))
sys.exit(7)"""
    pages = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(5)]
    codes = sorted(page.wait(60) for page in pages)
    assert codes == [0, 0, 0, 0, 7]
    (job,) = jobs.jobs(workspace)
    assert job.state(workspace).name == "running", "its page has ended"
    job.stop()
    assert over(job, workspace).name == "stopped"


def test_stopped_in_order_and_resumed_by_the_same_command(workspace: Workspace) -> None:
    """As a training stops: what is done is saved, exit code 75."""
    code = """
import os, signal, sys, time
if os.path.exists("saved"):
    print("goes on"); sys.exit(0)
def save(*_):
    open("saved", "w").close(); print("saved", flush=True); time.sleep(0.5); os._exit(75)
signal.signal(signal.SIGTERM, save)
print("begun")
time.sleep(60)"""
    job = start(workspace, action(code), {})
    reads(job, "begun")
    with pytest.raises(UserError, match="job: '0001-sft' has not ended early"):
        resume(workspace, job)
    job.stop()
    wait_for(lambda: job.state(workspace).name == "stopping", "its word for it")
    state = over(job, workspace)
    assert (state.name, state.can_resume) == ("stopped", True)
    resume(workspace, job)
    assert over(job, workspace).name == "done"
    assert "begun\nsaved\ngoes on" in job.log().replace("\n\n", "\n")


def test_a_resume_that_is_refused_changes_nothing(workspace: Workspace) -> None:
    job = start(workspace, action("import sys; sys.exit('error: x: y is missing; give it')"), {})
    before = over(job, workspace)
    assert before.line.endswith("failed, exit code 1; error: x: y is missing; give it")
    holder = start(workspace, action(WAITS), {})
    with pytest.raises(UserError, match="has a job already"):
        resume(workspace, job)
    assert job.state(workspace) == before
    holder.stop()
    over(holder, workspace)


@pytest.mark.parametrize("which", ["command", "runner"])
def test_a_process_that_dies_is_told(workspace: Workspace, which: str) -> None:
    job = start(workspace, action(WAITS), {})
    reads(job, "begun")
    processes = runner.json.loads((job.folder / runner.STATE).read_text())
    os.kill(processes[which]["pid"], signal.SIGKILL)
    state = over(job, workspace)
    if which == "command":
        assert state.line == "0001-sft: failed, ended by SIGKILL; begun"
    else:
        assert state.name == "lost"
        assert "its process is gone, without an exit code" in state.line
        # The command hears of it as from a terminal that is closed.
        pid = processes["command"]["pid"]
        wait_for(lambda: not psutil.pid_exists(pid), "the end of the command")
    assert state.can_resume
    assert over(start(workspace, action("print()"), {}), workspace).name == "done"


def test_a_page_that_ends_takes_no_job_with_it(workspace: Workspace) -> None:
    script = f"""
import os
from plugins.commands.app import jobs
from plugins.commands.app.workspace import Workspace
jobs.PROGRAM = ({sys.executable!r}, "-c")
jobs.start(Workspace({str(workspace.root)!r}), jobs.Action("sft", ({WAITS!r},), "out"), {{}})
os.killpg(0, 9)"""
    page = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    assert page.wait(60) == -signal.SIGKILL
    (job,) = jobs.jobs(workspace)
    time.sleep(0.5)
    assert job.state(workspace).name == "running"
    job.stop()
    assert over(job, workspace).name == "stopped"


def test_a_full_disk_is_told(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = "raise OSError(28, 'No space left on device')"
    job = start(workspace, action(code), {})
    assert "the disk is full (" in over(job, workspace).line
    job = start(workspace, action(WAITS), {})
    monkeypatch.setattr(Workspace, "free_bytes", lambda self: 3 << 20)
    message = r"workspace: .* lies on a disk that is full \(3 MiB free\); make room"
    with pytest.raises(UserError, match=message):
        start(workspace, action("print()"), {})
    assert len(list(jobs.jobs(workspace))) == 2
    job.stop()
    state = over(job, workspace)
    assert state.name == "stopped"
    with pytest.raises(UserError, match=message):
        resume(workspace, job)
    assert job.state(workspace) == state


def test_the_log_may_fill_the_disk_and_the_command_goes_on(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, as far as this machine lets mount it."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system of its own")
    try:
        monkeypatch.setattr(jobs, "FULL_BELOW", 1 << 14)
        code = """
for i in range(4000): print('x' * 200)
import sys
try:
    open('more', 'wb', buffering=0).write(bytes(1 << 16))
except OSError as error:
    sys.exit(9)"""
        job = start(Workspace(small), action(code), {})
        state = over(job, Workspace(small))
        assert "failed, the disk is full (0 MiB free): make room, then Resume; exit code 9" in (
            state.line
        )
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_the_shell_line_is_the_command(workspace: Workspace, tmp_path: Path) -> None:
    words = ("prepare", "--input_dir", "it's a folder", "--output_file", "$x.jsonl")
    line = Action("prepare", words, "x", env={"A": "b c"}).line(workspace)
    assert line == (
        f"cd {workspace.root}\n"
        """A='b c' higgs-audio prepare --input_dir 'it'"'"'s a folder' --output_file '$x.jsonl'"""
    )
    program = tmp_path / "higgs-audio"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$A" "$@"\n')
    program.chmod(0o755)
    shell = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert shell.stdout.split("\n")[:-1] == [str(workspace.root), "b c", *words]


def test_a_job_knows_no_password(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jobs.PASSWORD, "secret")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/nowhere")
    code = "import os; print([n for n in os.environ if n[:6] in ('GRADIO', 'HIGGS_')], 'ended')"
    job = start(workspace, action(code), {})
    over(job, workspace)
    assert "[] ended" in job.log()


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / runner.JOB).write_text("{"),
    lambda folder: (folder / runner.JOB).write_text('{"kind": "sft"}'),
    lambda folder: (folder / runner.JOB).unlink(),
])  # fmt: skip
def test_a_damaged_folder_costs_no_other_job(
    workspace: Workspace, damage: Callable[[Path], Any]
) -> None:
    whole = start(workspace, action("print()"), {})
    over(whole, workspace)
    other = start(workspace, action("print()"), {})
    over(other, workspace)
    damage(other.folder)
    (workspace.root / jobs.JOBS / "notes").mkdir()
    assert [job.name for job in jobs.jobs(workspace)] == [whole.name]
