"""Runs of MS-SWIFT's own pipeline on tiny models, shared by the slow tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

REGISTER = str(ROOT / "plugins" / "register.py")
BIN = Path(sys.executable).parent


def flags(model: Path, dataset: Path, output_dir: Path, **options: Any) -> list[str]:
    """Command line of one short run on the CPU; `options` override."""
    values: dict[str, Any] = {
        "model_type": "higgs-audio-v2-3b",
        "model": model,
        "dataset": dataset,
        "output_dir": output_dir,
        "external_plugins": REGISTER,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "use_cpu": "true",
        "check_model": "false",
        "add_version": "false",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        **options,
    }
    return [
        part for name, value in values.items() if value is not None
        for part in (f"--{name}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)]))
    ]  # fmt: skip


def sft(model: Path, dataset: Path, output_dir: Path, **options: Any) -> list[dict[str, Any]]:
    """`sft_main` in this process; returns the logged records."""
    from swift.pipelines import sft_main

    sft_main(flags(model, dataset, output_dir, **options))
    return log_of(output_dir)


def swift(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """The literal command `swift ...`, as a user's shell runs it."""
    return run(str(BIN / "swift"), *arguments, cwd=cwd, **env)


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    # MS-SWIFT leaves the folder of the first run of a process there, and every later run then logs into it.
    kept = {name: value for name, value in os.environ.items() if name != "TENSORBOARD_LOGGING_DIR"}
    return subprocess.run(command, cwd=cwd, env={**kept, **env}, capture_output=True, text=True)


def log_of(output_dir: Path) -> list[dict[str, Any]]:
    """Training records of logging.jsonl (the last line is MS-SWIFT's summary)."""
    lines = (output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "log_history" not in record]


@contextlib.contextmanager
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """MS-SWIFT's logger does not propagate to the root, where pytest listens."""
    from swift.utils import get_logger

    get_logger().addHandler(caplog.handler)
    try:
        yield
    finally:
        get_logger().removeHandler(caplog.handler)
