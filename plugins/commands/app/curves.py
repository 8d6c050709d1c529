"""The folder of a run -> its curves, its samples, how far it is. Reads what the run itself writes;
knows no Gradio, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG, SAMPLES, LIST = "logging.jsonl", "samples", "samples.jsonl"
STEP = "global_step/max_steps"
GROUPS = {
    "loss": ("loss", "loss_text", "loss_audio", "eval_loss", "eval_loss_audio", "eval_loss_text"),
    "codebooks": tuple(f"loss_audio_cb{k}" for k in range(8)),
    "accuracy": ("acc_text", "acc_audio_cb0", "acc_audio_cb7"),
    "speed": ("audio_seconds_per_second", "train_speed(s/it)", "memory_gib"),
    "learning rate": ("learning_rate", "audio_learning_rate"),
    "samples": ("sample_stop_rate", "sample_seconds"),
}
_MAX_POINTS = 600  # of a curve: what a screen shows


@dataclass(frozen=True)
class Sample:
    file: Path
    text: str
    note: str


def records(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and content of each line of the log, without what is half written or no record."""
    found = []
    with suppress(OSError):
        for line in (run / LOG).read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
                record = json.loads(line)
                found.append((int(record[STEP].partition("/")[0]), record))
    return found


def points(run: Path, group: str) -> list[tuple[int, str, float]]:
    """Step, curve and value; of a step that was taken twice, after a resume, the later one."""
    values: dict[tuple[str, int], float] = {}
    for step, record in records(run):
        for name in GROUPS[group]:
            value = record.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                values[name, step] = float(value)
    found = []
    for name in GROUPS[group]:
        of_curve = sorted((step, value) for (curve, step), value in values.items() if curve == name)
        for step, value in _thinned(of_curve):
            found.append((step, name, value))
    return found


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of neighbours where there are too many; the last point stays."""
    size = -(-len(curve) // _MAX_POINTS)
    if size <= 1:
        return curve
    thinned = []
    for begin in range(0, len(curve), size):
        piece = curve[begin : begin + size]
        thinned.append((piece[-1][0], sum(value for _, value in piece) / len(piece)))
    return thinned


def summary(run: Path) -> str:
    """The last line of the log, for people."""
    last: dict[str, Any] = {}
    for _, record in records(run):
        last |= record
    if not last:
        return ""
    parts = [f"step {last[STEP].replace('/', ' of ')}"]
    for name in ("loss", "loss_audio", "eval_loss"):
        if isinstance(last.get(name), int | float):
            parts.append(f"{name} {last[name]:.3f}")
    if last.get("remaining_time"):
        parts.append(f"{last['remaining_time']} left")
    return " · ".join(parts)


def sample_steps(run: Path) -> list[int]:
    """Steps of which there are samples, the newest first."""
    steps = []
    for folder in (run / SAMPLES).glob("step-*"):
        number = folder.name.removeprefix("step-")
        # The list comes when all are spoken.
        if number.isdigit() and (folder / LIST).is_file():
            steps.append(int(number))
    return sorted(steps, reverse=True)


def samples(run: Path, step: int) -> Iterator[Sample]:
    folder = run / SAMPLES / f"step-{step}"
    with suppress(OSError):
        for line in (folder / LIST).read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError, LookupError, TypeError):
                entry = json.loads(line)
                # A name, whatever the list says.
                file = folder / Path(entry["file"]).name
                end = "stopped by itself" if entry["stopped"] else "cut at the limit"
                note = f"{entry['seconds']:.1f} s · {end}"
                if file.is_file():
                    yield Sample(file, str(entry["text"]), note)


def stamp(run: Path) -> str:
    """Changes with whatever there is to be seen."""
    size = 0
    with suppress(OSError):
        size = (run / LOG).stat().st_size
    return f"{run} {size} {sample_steps(run)[:1]}"
