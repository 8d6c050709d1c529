"""What a signal does to `higgs-audio new-voice` and to the command that it runs: a stand-in here,
which notes what reaches it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from plugins.commands.new_voice.places import Places
from plugins.errors import UserError
from plugins.files.lock import release_all
from plugins.training.signals import STOPPED

RUN = """
import sys
sys.executable = sys.argv[1] + "/python"  # whose neighbour is the command
from plugins.commands.new_voice import process
try:
    with process.stoppable():
        print(process.run(["sft"], title="step 3 of 4: training"))
except process.Interrupted as stop:
    print(stop)
    sys.exit(75)
"""
COMMAND = """\
#!{python}
import os, signal, sys, time
def told(number, frame):
    open("{folder}/told", "a").write(f"{{number}} ")
    time.sleep(0.3)  # a step is finished
    sys.exit(75)
signal.signal(signal.SIGTERM, told)
with open("{folder}/new", "w") as file:
    file.write(str(os.getpid()))
os.rename("{folder}/new", "{folder}/pid")
time.sleep(60)
"""


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The folder of the stand-in."""
    script = tmp_path / "higgs-audio"
    script.write_text(COMMAND.format(python=sys.executable, folder=tmp_path))
    script.chmod(0o755)
    return tmp_path


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """The process, and that of its command."""
    with subprocess.Popen(
        ["env", "--default-signal=HUP,INT", sys.executable, "-c", RUN, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            end_s = time.monotonic() + 60
            while not (folder / "pid").exists():
                assert time.monotonic() < end_s
                assert process.poll() is None
                time.sleep(0.02)
            yield process, psutil.Process(int((folder / "pid").read_text()))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process.wait(timeout=10)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command(number: signal.Signals, command: Path) -> None:
    with running(command) as (process, child):
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == STOPPED
        assert f"stopped by {number.name} in step 3 of 4: training" in out
        assert (command / "told").read_text() == f"{signal.SIGTERM} "
        assert not child.is_running()


def test_ctrl_c_reaches_it_once(command: Path) -> None:
    """A terminal sends it to all of its group."""
    with running(command) as (process, child):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == STOPPED
        assert (command / "told").read_text() == f"{signal.SIGTERM} "
        assert not child.is_running()


def test_nobody_goes_on_alone(command: Path) -> None:
    """A command that outlives us would hold its folder against the one that goes on."""
    with running(command) as (process, child):
        process.kill()
        process.wait()
        wait_for_end(child)
        assert not (command / "told").exists()


def test_one_at_a_time(tmp_path: Path) -> None:
    voice = tmp_path / "ann"
    Places(voice, "ann").hold()  # makes the folder
    release_all()
    code = f"""
from pathlib import Path
from plugins.commands.new_voice.places import Places
Places(Path({str(voice)!r}), "ann").hold()
print(flush=True)
input()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match=f"is being made by process {other.pid} on"):
            Places(voice, "ann").hold()
        other.communicate(b"\n")
    Places(voice, "ann").hold()
    release_all()
