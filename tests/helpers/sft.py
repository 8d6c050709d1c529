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
import torch
from conftest import ROOT

REGISTER = str(ROOT / "plugins" / "register.py")
BIN = Path(sys.executable).parent
LORA = {
    "tuner_type": "lora",
    "lora_rank": 4,
    "lora_dropout": 0.1,
    "gradient_checkpointing": "false",
}
IN_ORDER = {"dataset_shuffle": "false", "train_dataloader_shuffle": "false"}


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
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def coded(tiny: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with the codes of their clips and references: no run has to load the codec."""
    from plugins.audio.codec import Codec

    codec = Codec(str(tiny / "audio_tokenizer"))
    result = []
    for row in rows:
        codes = {"audio_codes": [codec.encode_file(row["audios"][0]).T.tolist()]}
        if "reference_audio" in row:
            codes["reference_codes"] = [codec.encode_file(row["reference_audio"]).T.tolist()]
        result.append({**row, **codes})
    return result


def sft(model: Path, dataset: Path, output_dir: Path, **options: Any) -> list[dict[str, Any]]:
    """`sft_main` in this process; returns the logged records."""
    from swift.pipelines import sft_main

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    sft_main(flags(model, dataset, output_dir, **options))
    return log_of(output_dir)


def swift(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """The literal command `swift ...`, as a user's shell runs it."""
    return run(str(BIN / "swift"), *arguments, cwd=cwd, **env)


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    # MS-SWIFT leaves the folder of the first run of a process there, and every later run then logs
    # into it.
    variables = {**os.environ, **env}
    variables.pop("TENSORBOARD_LOGGING_DIR", None)
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def log_of(output_dir: Path) -> list[dict[str, Any]]:
    """Training records of logging.jsonl."""
    lines = (output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return [record for record in records if "log_history" not in record]  # MS-SWIFT's summary


def optimizer_of(checkpoint: Path) -> dict[int, dict[str, Any]]:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]


def weights_of(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(checkpoint.glob("*model.safetensors")))


def check_untouched(before: Path, after: Path) -> None:
    first, second = weights_of(before), weights_of(after)
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    for index, state in optimizer_of(before).items():
        for name, value in optimizer_of(after)[index].items():
            assert torch.equal(value, state[name]), name


def warnings_with(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    """What was logged inside `heard` and contains `part`."""
    return [message for message in caplog.messages if part in message]


@contextlib.contextmanager
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """MS-SWIFT's logger does not propagate to the root, where pytest listens."""
    from swift.utils import get_logger

    get_logger().addHandler(caplog.handler)
    try:
        yield
    finally:
        get_logger().removeHandler(caplog.handler)
