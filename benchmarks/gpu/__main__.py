"""Starts the parts, ends those whose time is up, and prints the table."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.results import Results, read, table
from benchmarks.measure import ROOT

# Seconds that a part may take, start included. What stands together runs together: nothing of it is
# timed.
GROUPS = (
    {"env": 45},
    {"numerics": 120, "swift": 120, "suite": 100},
    {"train": 155},
    {"codec": 50},
    {"decode": 170},
)
LIMITS_S = {part: limit_s for group in GROUPS for part, limit_s in group.items()}
_CPU_FACTOR = 4  # slower, and of no interest how much


def main(argv: Sequence[str] | None = None) -> int:
    """0 if nothing failed; a goal that is missed is no failure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__.splitlines()[0]
    )
    parser.add_argument("--parts", nargs="+", choices=LIMITS_S, default=list(LIMITS_S))
    parser.add_argument("--cpu", action="store_true", help="without a GPU; for --tiny")
    parser.add_argument("--tiny", action="store_true", help="small models and few rounds")
    parser.add_argument("--budget_s", type=float, default=540, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)  # of one part, this one
    args = parser.parse_args(argv)
    if args.deadline is not None:
        return _run_part(args)
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(args.output / "results.jsonl")
    results.path.unlink(missing_ok=True)
    deadline = time.time() + args.budget_s * (_CPU_FACTOR if args.cpu else 1)
    for group in GROUPS:
        chosen = [part for part in group if part in args.parts]
        _run_together(chosen, args, results, deadline)
    records = read(results.path)
    print(f"\n{table(records)}\n\n{results.path}")
    return int(any(record["verdict"] == "failed" for record in records))


def _run_together(
    parts: Sequence[str], args: argparse.Namespace, results: Results, deadline: float
) -> None:
    running = {}
    for part in parts:
        limit_s = LIMITS_S[part] * (_CPU_FACTOR if args.cpu else 1)
        end = min(time.time() + limit_s, deadline)
        running[part] = _start(part, args, end), end
    for part, (process, end) in running.items():
        try:
            code = process.wait(max(end + 5 - time.time(), 1))
        except subprocess.TimeoutExpired:
            # The group of a process that was started here: its workers too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            results.fail(part, "its time was up")
            continue
        if code:
            log = (args.output / f"{part}.log").read_text(encoding="utf-8", errors="replace")
            results.fail(part, f"exit code {code}", log=log[-700:])


def _start(part: str, args: argparse.Namespace, end: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--parts", part, "--deadline", str(end)]
    command += ["--output", str(args.output)]
    command += ["--cpu"] * args.cpu + ["--tiny"] * args.tiny
    env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4"}
    # As the launcher of a training does.
    env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    env |= os.environ
    if args.cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    print(f"{part}: at most {end - time.time():.0f} s", flush=True)
    with (args.output / f"{part}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )


def _run_part(args: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu.bench import Bench

    (part,) = args.parts
    if not args.cpu and not torch.cuda.is_available():
        reason = "torch sees no GPU: mend that, or give --cpu --tiny"
        Results(args.output / "results.jsonl").fail(part, reason)
        return 0
    device = "cpu" if args.cpu else "cuda"
    bench = Bench(part, args.output, device, tiny=args.tiny, deadline=args.deadline)
    import_module(f"benchmarks.gpu.{part}").run(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
