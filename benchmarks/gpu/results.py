"""A measurement -> a line of results.jsonl; all lines -> a table. Knows neither torch nor a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Results:
    """Lines are appended at once, by several processes: nothing is lost with one that is ended.

    header: device, torch and driver of every line."""

    path: Path
    header: Mapping[str, str] = field(default_factory=dict)
    judges_speed: bool = True

    def add(
        self,
        name: str,
        value: Any,
        unit: str,
        *,
        least: float | None = None,
        most: float | None = None,
        **detail: Any,
    ) -> None:
        """least, most: the goal. detail: dtype, and whatever explains the value."""
        goal, verdict = "", ""
        if least is not None:
            goal, is_met = f">= {least:.3g}", value >= least
        elif most is not None:
            goal, is_met = f"<= {most:.3g}", value <= most
        if goal and self.judges_speed:
            verdict = "met" if is_met else "missed"
        self._append(name, value, unit, goal, verdict, detail)

    def check(self, name: str, is_right: bool, **detail: Any) -> None:
        self._append(name, is_right, "right", "", "met" if is_right else "failed", detail)

    def fail(self, name: str, reason: str, **detail: Any) -> None:
        self._append(name, None, "error", "", "failed", {"reason": reason, **detail})

    def skip(self, name: str, reason: str) -> None:
        self._append(name, None, "skipped", "", "", {"reason": reason})

    def _append(
        self, name: str, value: Any, unit: str, goal: str, verdict: str, detail: dict[str, Any]
    ) -> None:
        record = {"name": name, "value": value, "unit": unit, "goal": goal, "verdict": verdict}
        record |= {"device": "", "dtype": "", "torch": "", "driver": "", **self.header, **detail}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown; above it the machine."""
    lines = ["| name | value | unit | dtype | goal | |", "|---|---:|---|---|---|---|"]
    machines = set()
    for record in records:
        if record["device"]:
            machines.add("{device}, driver {driver}, torch {torch}".format(**record))
        value = record["value"]
        if isinstance(value, float):
            value = f"{value:.4g}"
        text = str(record.get("reason", value))[:60]
        cells = [record["name"], text, record["unit"], record["dtype"], record["goal"]]
        lines.append(f"| {' | '.join([*cells, record['verdict']])} |")
    return "\n".join([*sorted(machines), "", *lines])
