"""The project's own tests of layers, losses and delays, all their tensors on the device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from benchmarks.gpu.bench import Bench
from benchmarks.measure import ROOT

FILES = (
    "tests/model/test_dual_ffn.py",
    "tests/model/test_loss.py",
    "tests/test_delay_pattern.py",
)
# Loaded by pytest before any test makes a tensor.
_PLUGIN = """
import torch
torch.set_default_device({device!r})
torch.set_float32_matmul_precision("highest")
"""


def run(bench: Bench) -> None:
    folder = bench.folder / "suite"
    folder.mkdir(exist_ok=True)
    plugin = folder / "on_device.py"
    plugin.write_text(_PLUGIN.format(device=bench.device), encoding="utf-8")
    for file in FILES[-1:] if bench.tiny else FILES:
        bench.attempt(file, lambda file=file: _test(bench, file), needs_s=15)


def _test(bench: Bench, file: str) -> None:
    path = os.pathsep.join([str(bench.folder / "suite"), os.environ.get("PYTHONPATH", "")])
    # The tests hide all GPUs, unless somebody has chosen.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0" if bench.on_gpu else "")
    env = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": visible}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "on_device", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", file]
    left_s = bench.deadline - time.time()
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=left_s
    )
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    bench.check(file, done.returncode == 0, failed=failed[:20], tail=done.stdout[-500:])
