"""Arms of one run -> how many times faster one is than another, as a table and as JSON.

In: functions that do one round of work and return how many items that was. Out: items per second of
each arm and round, ratios with their uncertainty, and what the machine was. Knows nothing of what
is measured."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugins.files.disk import replace_when_done

Arm = Callable[[int], int]  # round -> items done in it
Rates = dict[str, list[float]]  # arm -> items per second in each round
ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "numpy", "soundfile", "soxr", "librosa", "transformers", "ms-swift")


@dataclass(frozen=True)
class Comparison:
    """What is claimed: arm `ours` does `target` times as many items per second as arm `peer`.

    limit: the arm that does only what cannot be left out, the bound of what `ours` could reach.
    """

    id: str
    ours: str
    peer: str
    target: float
    limit: str | None = None


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds and its 95 % interval."""

    value: float
    low: float
    high: float


def alternate(arms: Mapping[str, Arm], num_rounds: int) -> Rates:
    """Every arm once per round, in turn forwards and backwards: what the machine does meanwhile
    hits all of them."""
    rates: Rates = {name: [] for name in arms}
    for i in range(num_rounds):
        print(f"round {i + 1} of {num_rounds}: {'; '.join(arms)}", file=sys.stderr)
        for name in list(arms)[:: -1 if i % 2 else 1]:
            gc.collect()
            os.sync()  # no arm must wait for what another one has written
            started_s = time.perf_counter()
            num_items = arms[name](i)
            rates[name].append(num_items / (time.perf_counter() - started_s))
    return rates


def count(items: Iterable[Any]) -> int:
    """How many, without keeping any of them: for arms whose items come one by one."""
    return sum(1 for _ in items)


def ratio(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """Of two arms' rates, round by round; the interval by the percentile bootstrap over rounds."""
    # Of each round, not of the means: both arms of a round met the same machine.
    by_round = np.asarray(ours) / np.asarray(peer)
    drawn = np.random.default_rng(0).integers(len(by_round), size=(10_000, len(by_round)))
    low, high = np.percentile(np.median(by_round[drawn], axis=1), (2.5, 97.5))
    return Ratio(float(np.median(by_round)), float(low), float(high))


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        # Above 0 before the start: the machine has other work.
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        "commit": _commit(),
    }


def line_of(header: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in header.items())


def compare(comparisons: Sequence[Comparison], rates: Rates) -> list[dict[str, Any]]:
    """One record per comparison: its fields, median rates, ratio with interval, ratio at the limit,
    verdict."""
    records = []
    for claim in comparisons:
        ours, peer = rates[claim.ours], rates[claim.peer]
        measured = ratio(ours, peer)
        at_limit = None
        if claim.limit:
            at_limit = ratio(rates[claim.limit], peer).value
        medians = {"ours_per_s": float(np.median(ours)), "peer_per_s": float(np.median(peer))}
        verdict = {"at_limit": at_limit, "verdict": _verdict(measured.value, claim, at_limit)}
        records.append({**asdict(claim), **medians, **asdict(measured), **verdict})
    return records


def _verdict(value: float, claim: Comparison, at_limit: float | None) -> str:
    if value >= claim.target:
        return "met"
    # Nobody could have met it on this machine.
    if at_limit is not None and at_limit < claim.target:
        return "beyond limit"
    return "missed"


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| id | ours | peer | ours/s | peer/s | ratio [95 %] | target | limit | |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for record in records:
        at_limit = ""
        if record["at_limit"] is not None:
            at_limit = f"{record['at_limit']:.2f} x"
        cells = (
            record["id"],
            record["ours"],
            record["peer"],
            _figure(record["ours_per_s"]),
            _figure(record["peer_per_s"]),
            "{value:.2f} x [{low:.2f}, {high:.2f}]".format(**record),
            f"{record['target']:g} x",
            at_limit,
            record["verdict"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3f}"


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    with replace_when_done(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    # Not Linux, or a processor that says nothing there.
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Short hash, with `+changes` if the working tree differs from it; `none` without git."""

    def git(*arguments: str) -> str:
        # Others may work in this repository at the same time.
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        if git("status", "--porcelain"):
            commit += "+changes"
        return commit
    except (OSError, subprocess.CalledProcessError):
        return "none"
