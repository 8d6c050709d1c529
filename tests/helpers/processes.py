"""Trainings in processes of their own, which are signalled, killed and looked after. Shared by slow
tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from helpers.sft import BIN, LORA, REGISTER, flags

from plugins.training.launcher import TORCHRUN

TIMEOUT_S = 240
SLOW = """
import os, time
from plugins.trainer import HiggsAudioTrainer
original_step = HiggsAudioTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step >= int(os.environ.get("SLOW_FROM", "0")):
        time.sleep(float(os.environ.get("SLOW_S", "0")))
    return original_step(self, *args, **kwargs)
if original_step.__module__ != __name__:  # MS-SWIFT may import this file twice
    HiggsAudioTrainer.training_step = training_step
"""
OPTIONS = {
    **LORA,
    "max_steps": 12,
    "per_device_train_batch_size": 1,
    "save_strategy": "no",
    "learning_rate": 1e-3,
}
TRAIN = str(ROOT / "plugins" / "train.py")


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def running(*command: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process group of its own, of which nothing is left afterwards. It hears SIGHUP even where
    the tests run under `nohup`."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", **env}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(
        ["env", "--default-signal=HUP", *command],
        cwd=ROOT,
        env=variables,
        start_new_session=True,
        **pipes,
    ) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """What is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def until_logged(out: Path, num_lines: int, process: subprocess.Popen[str]) -> None:
    log, end = out / "logging.jsonl", time.monotonic() + TIMEOUT_S
    while not log.is_file() or log.read_text(encoding="utf-8").count("\n") < num_lines:
        if process.poll() is not None or time.monotonic() > end:
            kill(process)
            pytest.fail(f"no {num_lines} steps were logged\n{process.communicate()[0][-3000:]}")
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The output of a process, and of its descendants, that end in time."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"still there after {timeout_s} s\n{process.communicate()[0][-3000:]}")
    return output


def from_first_traceback(output: str) -> str:
    """Of several ranks the one that failed first says why; later ones only waited for it."""
    return output[max(0, output.find("Traceback")) :]


def training(model: Path, rows: Path, out: Path, *plugins: Path, **options: Any) -> list[str]:
    return flags(
        model, rows, out, **{**OPTIONS, "external_plugins": [REGISTER, *plugins], **options}
    )


def torchrun(*arguments: str) -> list[str]:
    launcher = [sys.executable, *TORCHRUN, "--standalone", "--nproc_per_node", "2"]
    return [*launcher, TRAIN, *arguments, "--ddp_backend", "gloo"]


def rank(number: int, launcher: subprocess.Popen[str]) -> psutil.Process:
    for child in psutil.Process(launcher.pid).children():
        if child.environ().get("RANK") == str(number):
            return child
    pytest.fail(f"no rank {number}")


def resumed(output: str) -> str:
    """The printed line, after a shell has run it."""
    command = output.split("resume with\n", 1)[1].splitlines()[0]
    with running("bash", "-c", command) as process:
        text = ended(process, TIMEOUT_S)
    assert process.returncode == 0, from_first_traceback(text)
    return command


def stopped_at(out: Path) -> int:
    from plugins.files.checkpoints import damage

    (checkpoint,) = out.glob("checkpoint-*")
    assert damage(checkpoint) is None
    return int(checkpoint.name.partition("-")[2])
