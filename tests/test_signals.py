"""SIGINT, SIGTERM and SIGHUP, to every process that a user or a service may send them to, through every launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes import (
    SLOW,
    ended,
    free_port,
    rank,
    running,
    stopped_at,
    torchrun,
    training,
    until_logged,
    written,
)
from sft import BIN, with_codes

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
TWO_RANKS = {"torchrun", "higgs-audio x2", "swift x2"}
LAUNCHERS = {
    "script": ["./train_higgs_audio.sh"],
    "higgs-audio": [str(BIN / "higgs-audio"), "sft"],
    "swift": [str(BIN / "swift"), "sft"],
    "higgs-audio x2": [str(BIN / "higgs-audio"), "sft"],
    "swift x2": [str(BIN / "swift"), "sft"],
    "torchrun": [],
}
RESUME = {
    "script": "higgs-audio sft ",
    "higgs-audio": "higgs-audio sft ",
    "swift": "swift sft ",
    "higgs-audio x2": "NPROC_PER_NODE=2 higgs-audio sft ",
    "swift x2": "NPROC_PER_NODE=2 swift sft ",
    "torchrun": "NPROC_PER_NODE=2 higgs-audio sft ",
}
name_of = {"ids": lambda each: each.name if isinstance(each, signal.Signals) else str(each).replace(" ", "-")}


@pytest.fixture(scope="module")
def dataset(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_codes(tiny, tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture(scope="module")
def slow_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plugin") / "slow_steps.py", SLOW)


Launch = Callable[[str, Path], tuple[list[str], dict[str, str]]]


@pytest.fixture(scope="module")
def launch(tiny: Path, dataset: Path, slow_steps: Path) -> Launch:
    """The command line of a launcher that trains into a folder, and its environment."""

    def launch(launcher: str, out: Path) -> tuple[list[str], dict[str, str]]:
        options = {"dataloader_num_workers": 1, "model_kwargs": '{"preflight": false}'}
        words = training(tiny, dataset, out, slow_steps, **options)
        env = {"SLOW_S": "0.3", "PYTHON": sys.executable}
        if launcher == "torchrun":
            return torchrun(*words), env
        if launcher in TWO_RANKS:
            words += ["--ddp_backend", "gloo"]
            env |= {"NPROC_PER_NODE": "2", "MASTER_PORT": free_port()}
        return [*LAUNCHERS[launcher], *words], env

    return launch


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def trainer(launcher: str, process: subprocess.Popen[str]) -> psutil.Process:
    if launcher in TWO_RANKS:
        return rank(1, process)
    file = "sft.py" if launcher == "swift" else "train.py"
    return next(member for member in family(process) if any(word.endswith(file) for word in member.cmdline()))


def check_stopped(number: signal.Signals, target: str, launcher: str, launch: Launch, out: Path) -> str:
    """Start, signal, and look at what is left; the output."""
    command, env = launch(launcher, out)
    with running(*command, **env) as process:
        until_logged(out, 2, process)
        known = family(process)
        if target == "group":
            os.killpg(process.pid, number)
        elif target == "parent":
            process.send_signal(number)
        else:
            trainer(launcher, process).send_signal(number)
        output = ended(process, 60)
        _, left = psutil.wait_procs(known, timeout=1)
        assert [member for member in left if member.status() != psutil.STATUS_ZOMBIE] == [], "orphans"
    print(f"{launcher:>15} {target:>8} {number.name:>8}: exit {process.returncode}, checkpoint {stopped_at(out)}")
    assert process.returncode == (1 if launcher == "torchrun" else 75), output[-3000:]
    assert ("Traceback" in output) == (launcher == "torchrun"), output[-5000:]
    assert 2 <= stopped_at(out) < 12
    assert output.count("resume with\n") == 1
    assert output.split("resume with\n", 1)[1].startswith(RESUME[launcher])
    return output


# The table, but for what is the same cell: where one process trains, it is also the parent.
CELLS = [
    (number, target, launcher)
    for launcher in LAUNCHERS
    for target in ("group", "parent", "trainer")
    for number in SIGNALS
    if launcher in TWO_RANKS or target != "trainer"
]
QUICK = {(signal.SIGINT, "group", "higgs-audio"), (signal.SIGTERM, "parent", "swift")}


@pytest.mark.parametrize(
    ("number", "target", "launcher"),
    [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow) for cell in CELLS],
    **name_of,
)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number: signal.Signals, target: str, launcher: str, launch: Launch, tmp_path: Path
) -> None:
    """Ctrl-C once killed the trainer through its launcher, and SIGTERM ended the launcher alone."""
    check_stopped(number, target, launcher, launch, tmp_path / "out")
