"""SIGINT, SIGTERM and SIGHUP, to every process that a user or a service may send them to, through
every launcher."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from faults.runs import steps_of
from helpers.processes import (
    OPTIONS,
    SLOW,
    ended,
    rank,
    resumed,
    running,
    stopped_at,
    torchrun,
    training,
    until_logged,
    written,
)
from helpers.sft import BIN, check_untouched, sft

from plugins.training import launcher

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ONE, TWO = ("script", "higgs-audio", "swift"), ("higgs-audio x2", "swift x2")
COMMANDS = {
    "script": ["./train_higgs_audio.sh"],
    "higgs-audio": [str(BIN / "higgs-audio"), "sft"],
    "swift": [str(BIN / "swift"), "sft"],
}
name_of = {
    "ids": lambda each: (
        each.name if isinstance(each, signal.Signals) else str(each).replace(" ", "-")
    )
}


@pytest.fixture(scope="module")
def slow_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plugin") / "slow_steps.py", SLOW)


Launch = Callable[..., tuple[list[str], dict[str, str]]]


@pytest.fixture(scope="module")
def launch(tiny: Path, dataset: Path, slow_steps: Path) -> Launch:
    """The command line of a launcher that trains into a folder, and its environment."""

    def launch(launcher: str, out: Path, **options: Any) -> tuple[list[str], dict[str, str]]:
        options = {"dataloader_num_workers": 1, "model_kwargs": '{"preflight": false}', **options}
        words = training(tiny, dataset, out, slow_steps, **options)
        env = {"SLOW_S": "0.3", "PYTHON": sys.executable}
        if launcher == "torchrun":
            return torchrun(*words), env
        command, _, ranks = launcher.partition(" x")
        if ranks:
            words += ["--ddp_backend", "gloo"]
            env["NPROC_PER_NODE"] = ranks
        return [*COMMANDS[command], *words], env

    return launch


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def is_trainer(process: psutil.Process) -> bool:
    """[python, FILE, ...], or under torchrun [python, -u, FILE, ...]."""
    try:
        words = process.cmdline()[1:3]
    except psutil.NoSuchProcess:  # it ended meanwhile
        return False
    return any(Path(word).name in {"train.py", "sft.py"} for word in words)


def check_gone(processes: list[psutil.Process], *, timeout_s: float) -> None:
    _, left = psutil.wait_procs(processes, timeout=timeout_s)
    for process in left:
        assert process.status() == psutil.STATUS_ZOMBIE, f"{process} is an orphan"


def check_stopped(
    number: signal.Signals, target: str, launcher: str, launch: Launch, out: Path, **options: Any
) -> str:
    """Start, signal, and look at what is left; the output."""
    command, env = launch(launcher, out, **options)
    with running(*command, **env) as process:
        until_logged(out, 2, process)
        known = family(process)
        if launcher in ONE:
            assert is_trainer(known[0]), "a launcher is still there"
        if target == "group":
            os.killpg(process.pid, number)
        else:
            (rank(1, process) if target == "trainer" else process).send_signal(number)
        output = ended(process, 120)
        check_gone(known, timeout_s=1)
    cell = f"{launcher:>15} {target:>8} {number.name:>8}"
    print(f"{cell}: exit {process.returncode}, checkpoint {stopped_at(out)}")
    assert process.returncode == (1 if launcher == "torchrun" else 75), output[-3000:]
    assert ("Traceback" in output) == (launcher == "torchrun"), output[-5000:]
    assert 2 <= stopped_at(out) < 12
    assert output.count("resume with\n") == 1
    ranks = "" if launcher in ONE else "NPROC_PER_NODE=2 "
    command = "swift sft " if launcher.startswith("swift") else "higgs-audio sft "
    assert output.split("resume with\n", 1)[1].startswith(ranks + command)
    return output


# The table, without what is the same cell twice: a single trainer is the parent, whichever launcher
# became it. MS-SWIFT's `swift` command and ours start ranks alike.
TARGETS = ("group", "parent", "trainer")
OF_ONE = (("SIGINT", "group"), ("SIGTERM", "parent"), ("SIGHUP", "group"))
OF_TWO = tuple(zip(("SIGINT", "SIGTERM", "SIGHUP"), TARGETS, strict=True))
CELLS = [(signal.Signals[name], target, launcher) for launcher in ONE for name, target in OF_ONE]
CELLS += [(signal.Signals[name], target, launcher) for launcher in TWO for name, target in OF_TWO]
CELLS += itertools.product(SIGNALS, TARGETS, ("torchrun",))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "target", "launcher"), CELLS, **name_of)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number: signal.Signals, target: str, launcher: str, launch: Launch, tmp_path: Path
) -> None:
    """Ctrl-C once killed the trainer through its launcher, and SIGTERM ended the launcher alone."""
    check_stopped(number, target, launcher, launch, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["higgs-audio", "swift x2"])
def test_the_printed_command_goes_on_as_if_nothing_had_happened(
    launcher: str, tiny: Path, dataset: Path, launch: Launch, tmp_path: Path
) -> None:
    """To the bit, where one process trains; else with a log without gaps."""
    out, saved = tmp_path / "out", {"save_strategy": "steps", "save_steps": 12}
    resumed(check_stopped(signal.SIGHUP, "group", launcher, launch, out, **saved))
    steps = steps_of(out / "logging.jsonl")
    assert [record["global_step/max_steps"] for record in steps] == [
        f"{n}/12" for n in range(1, 13)
    ]
    if launcher in ONE:
        sft(tiny, dataset, tmp_path / "whole", **{**OPTIONS, **saved})
        check_untouched(tmp_path / "whole" / "checkpoint-12", out / "checkpoint-12")
        assert steps == steps_of(tmp_path / "whole" / "logging.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["higgs-audio", "higgs-audio x2"])
def test_a_second_signal_ends_at_once(launcher: str, launch: Launch, tmp_path: Path) -> None:
    command, env = launch(launcher, tmp_path / "out")
    with running(*command, **{**env, "SLOW_FROM": "1", "SLOW_S": "30"}) as process:
        until_logged(tmp_path / "out", 1, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(3)
        assert process.poll() is None, "one step of 30 s"
        process.send_signal(signal.SIGTERM)
        ended(process, 20)
    assert process.returncode == (-signal.SIGTERM if launcher in ONE else 128 + signal.SIGTERM)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_a_closed_terminal(launch: Launch, tmp_path: Path) -> None:
    """It sends SIGHUP, and from then on every write to it is an error."""
    out = tmp_path / "out"
    command, env = launch("higgs-audio", out)
    terminal, theirs = pty.openpty()

    def controlled() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` it would be ignored
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams: Any = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, start_new_session=True, preexec_fn=controlled, **streams
    )
    os.close(theirs)
    shown = b""
    while b"2/12" not in shown:
        shown += os.read(terminal, 1000)
        assert process.poll() is None, shown.decode()
    os.close(terminal)
    assert process.wait(120) == 75
    assert 1 <= stopped_at(out) < 12


@pytest.mark.slow
def test_a_tee_that_ctrl_c_ends_first(launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command, env = launch("higgs-audio", out)
    with running(
        "bash", "-c", f"{shlex.join(command)} 2>&1 | tee {tmp_path}/log", **env
    ) as process:
        until_logged(out, 2, process)
        known = family(process)
        os.killpg(process.pid, signal.SIGINT)
        check_gone(known, timeout_s=120)
    assert 2 <= stopped_at(out) < 12


# --- without a training ---

# A process that says so once it is ready, and then waits.
READY = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
CLEANLY = f"from plugins.training import signals\nsignals.end_cleanly()\n{READY}"


@pytest.mark.parametrize("number", SIGNALS, **name_of)
def test_outside_of_training_a_signal_is_one_line(number: signal.Signals) -> None:
    with running(sys.executable, "-c", CLEANLY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output = ended(process, 20)
    assert process.returncode == 128 + number
    assert output == f"\nended by {number.name} outside of training; nothing was to be saved\n"


def handles_signals(process: psutil.Process) -> bool:
    """Other than Python's own, which is that of SIGINT alone."""
    (caught,) = re.findall(
        r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text("utf-8"), re.MULTILINE
    )
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("launcher", "where"),
    [
        ("higgs-audio", "trainer"),
        ("swift", "launcher"),
        pytest.param("swift", "trainer", marks=pytest.mark.slow),
        pytest.param("higgs-audio", "launcher", marks=pytest.mark.slow),
        pytest.param("swift x2", "trainer", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_it_loads(launcher: str, where: str, launch: Launch, tmp_path: Path) -> None:
    command, env = launch(launcher, tmp_path / "out")
    with running(*command, **env) as process:
        loading: list[psutil.Process] = []
        while len(loading) < (1 if launcher in ONE else 2) or not all(
            map(handles_signals, loading)
        ):
            loading = [
                member for member in family(process) if is_trainer(member) == (where == "trainer")
            ]
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        output = ended(process, 60)
    assert process.returncode == 128 + signal.SIGINT
    assert output.count("ended by SIGINT outside of training; nothing was to be saved\n") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_nohup_stays_in_force() -> None:
    with running("nohup", sys.executable, "-c", CLEANLY) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        ended(process, 20)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_lost_stdout_goes_where_stderr_goes() -> None:
    """As with `higgs-audio sft | tee log`: the resume command is seen though Ctrl-C has ended the
    `tee`."""
    code = "import sys\nfrom plugins.training import signals\nsys.stdin.readline()\n"
    code += "signals.keep_output()\nprint('kept')\n"
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == "kept\n"
    assert process.returncode == 0


RANK = """
import os, signal, sys, time
def save(*args):
    time.sleep({save_s})
    sys.exit(75)
signal.signal(signal.SIGTERM, {handler})
os.write(1, b"ready\\n")  # in one piece, whatever PYTHONUNBUFFERED says
time.sleep({work_s})
sys.exit(int(os.environ["RANK"]) * 3)
"""


@pytest.mark.parametrize(
    ("handler", "save_s", "work_s", "code"),
    [
        pytest.param("save", 1, 60, 75, id="saved"),
        pytest.param(
            "save", 33, 60, 75, id="saved-slowly", marks=pytest.mark.slow
        ),  # torchrun kills after 30 s
        pytest.param("signal.SIG_DFL", 0, 60, 143, id="ended"),
        pytest.param("save", 0, 0, 1, id="failed"),
    ],
)
def test_the_exit_code_of_ranks(
    handler: str, save_s: int, work_s: int, code: int, tmp_path: Path
) -> None:
    file = written(tmp_path / "rank.py", RANK.format(handler=handler, save_s=save_s, work_s=work_s))
    command = [sys.executable, *launcher.TORCHRUN, "--nproc_per_node", "2", str(file)]
    with running(
        sys.executable, "-c", f"from plugins.training import launcher; launcher.launch({command})"
    ) as process:
        assert process.stdout is not None
        if work_s:
            ready = (line for line in process.stdout if line == "ready\n")
            next(ready), next(ready)  # both ranks have their handlers
            process.send_signal(signal.SIGTERM)
        output = ended(process, 90)
    assert process.returncode == code, output
    assert ("Traceback" in output) == (code == 1)
