"""Commands that users type, run one by one from the root, their output in logs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from plugins.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def run(title: str, logs: Path, *command: str) -> None:
    """One step, its output in a file of `logs`. Raises UserError with the end of that file."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    print(f"\n== {title}: {shown}", flush=True)
    log, started_s = logs / f"{title.replace(' ', '_')}.txt", time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    # The same numbers on every machine, and no look at the net for what lies here.
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.run(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    # The whole log has pages of progress; its end says what went wrong.
    if process.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").split("\n")[-15:])
        raise UserError(
            f"step '{title}' failed with exit code {process.returncode} (log: {log})\n{end}"
        )
    print(f"   {time.monotonic() - started_s:.0f} s", flush=True)


def script(name: str) -> str:
    """Of this environment, which need not be the active one."""
    return str(Path(sys.executable).with_name(name))
