"""MS-SWIFT's own pipeline with our trainer, on the device: a tiny model, a few steps.

Preflight, meters, evaluation, samples and saves are those of a user's run; the checkpoint speaks.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import curves
from benchmarks.gpu.bench import Bench

STEPS = 4
_KEPT = ("loss", "grad_norm", "loss_audio", "loss_text", "memory_gib", "skipped_steps")


def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        curves.prepare(folder)
        bench.attempt("LoRA", lambda: _train(bench, folder, "LoRA", tuner_type="lora"), needs_s=20)
        bench.attempt("full", lambda: _train(bench, folder, "full"), needs_s=20)
        packed = {"packing": "true", "max_length": 512, "per_device_train_batch_size": 1}
        bench.attempt("packed", lambda: _train(bench, folder, "packed", **packed), needs_s=20)


def _train(bench: Bench, folder: Path, name: str, **options: Any) -> None:
    dtype = "bfloat16" if bench.on_gpu else "float32"
    output = folder / "healthy"  # the run of `curves` that has no fault
    shutil.rmtree(output, ignore_errors=True)
    values = {
        "dataset": folder / "few.jsonl",
        "torch_dtype": dtype,
        "use_cpu": str(not bench.on_gpu).lower(),
        "max_steps": STEPS,
        "logging_steps": 1,
        "eval_steps": STEPS,
        "save_steps": STEPS,
        "preflight": "true",
        "dataloader_num_workers": 0 if bench.tiny else 2,
        **options,
    }
    curves.train("healthy", folder, **values)  # and speaks with what it has saved
    lines = (output / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    records = list(map(json.loads, lines))
    steps = [record for record in records if "loss" in record]
    is_right = len(steps) == STEPS and all(math.isfinite(step["loss"]) for step in steps)
    is_right &= any("eval_loss" in record for record in records)
    is_right &= any("sample_stop_rate" in record for record in records)
    last = {key: steps[-1].get(key) for key in _KEPT}
    bench.check(f"{name} run", is_right, dtype=dtype, last=last)
