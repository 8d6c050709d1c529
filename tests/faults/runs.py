"""Many short trainings from one warm process: importing takes far longer than the training itself.

python runs.py    reads jobs from standard input, one JSON object per line, forks a process for
                  each, and answers with its exit status (minus the signal that ended it)
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
# Of a log line, what depends on the clock.
TIMES = ("elapsed_time", "remaining_time", "train_speed", "runtime", "_per_second", "memory")


class Runs:
    """The warm process; `sft` is `higgs-audio sft` in a fork of it."""

    def __init__(self, log: Path, **env: str) -> None:
        self.log = log
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **env}
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def sft(self, flags: list[str], **fault: Any) -> int:
        """Exit status; its output is in `log`. fault: arguments of `kills.deadly`, or
        `sigterm_after_s`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"flags": flags, "fault": fault, "log": str(self.log)}) + "\n"
        )
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def said(self) -> str:
        """What the last run wrote to both of its streams."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self) -> str:
        return self.said()[-2000:]

    def close(self) -> None:
        self.process.communicate("")


def options(**changed: Any) -> dict[str, Any]:
    """LoRA with dropout, shuffled rows, accumulation: 5 rows are 3 steps of an epoch, so 2 and 4
    stand inside one."""
    return {
        "tuner_type": "lora", "target_modules": "all-linear", "lora_rank": 4, "lora_dropout": 0.1,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
        "max_steps": 6, "save_steps": 2, "logging_steps": 1, "gradient_checkpointing": "false",
        "fp16": "false", "bf16": "false", "split_dataset_ratio": 0, "preflight": "false",
        "dataloader_num_workers": 0, **changed,
    }  # fmt: skip


def adapter_of(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "adapter_model.safetensors").read_bytes()).hexdigest()


def timeless(log: Path) -> list[dict[str, Any]]:
    """What a training logged, without what depends on the clock and without MS-SWIFT's summary."""
    records = []
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name in list(record):
            if any(time in name for time in TIMES):
                del record[name]
        if "log_history" not in record:
            records.append(record)
    return records


def steps_of(log: Path) -> list[dict[str, Any]]:
    """Without the last line, which is missing if the run is killed after its last checkpoint was
    whole."""
    return [record for record in timeless(log) if "train_loss" not in record]


def _job(flags: list[str], fault: dict[str, Any], log: str) -> None:
    from faults.kills import deadly

    from plugins.errors import UserError
    from plugins.train import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if "sigterm_after_s" in fault:
        threading.Timer(fault["sigterm_after_s"], os.kill, (os.getpid(), signal.SIGTERM)).start()
    elif fault:
        deadly(**fault)
    status = 2
    try:
        main(flags)
        status = 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        # Whatever ended it: this process must not go back to its jobs.
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # what a process of its own would do
        os._exit(status)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch
    from swift.pipelines import sft_main  # noqa: F401 (imported before the first fork)

    from plugins.register import register_higgs_audio_all

    torch.set_num_threads(1)
    register_higgs_audio_all()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _job(**job)
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
