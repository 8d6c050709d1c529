"""A finished voice -> what came of it, for people: speech, rejections, base against tuned, and the
line that speaks. Reads what the steps have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plugins.commands.new_voice.places import Places
from plugins.commands.new_voice.state import State
from plugins.evaluation.report import DIFFERENCE, STAR, SUMMARY, TRUTH, shown
from plugins.evaluation.scores import METRICS
from plugins.evaluation.speaking import BASE, TUNED
from plugins.files.disk import read_json
from plugins.training.arguments import speak_command

_SHOWN = ("wer", "similarity", "stopped")
_COLUMNS = (BASE, TUNED, TRUTH)
_AGAIN = "remove it and start the same command again"


def summary(places: Places, state: State, steps: Sequence[str]) -> str:
    """Of a voice all of whose `steps` are done, without a line end at its end."""
    counts = read_json(places.counts, _AGAIN)
    scores = read_json(places.evaluation / SUMMARY, _AGAIN)
    training = state.record("training")
    assert training is not None
    best = training.outcome
    lines = ["", f"== {places.name}", *_speech(counts), ""]
    lines += _table(scores)
    chosen = f"step {best['step']} of {best['steps']}, of the lowest validation loss"
    lines += ["", f"adapter   {places.adapter} ({chosen}), with its card"]
    lines.append(f"listen    {places.page}: recordings, base and tuned beside each other")
    lines.append(f"rejected  {places.heard}: what was left out, to be heard")
    lines.append(f"speak     {speak_command(places.adapter)}")
    lines.append(f"time      {_times(state, steps)}")
    return "\n".join(lines)


def _speech(counts: Mapping[str, Any]) -> list[str]:
    accepted, rejected = counts["accepted"], counts["rejected"]
    sides = []
    for name, totals in counts["splits"].items():
        sides.append(f"{totals['clips']} {name}")
    minutes = 60 * accepted["hours"]
    lines = [f"speech    {minutes:.1f} minutes in {accepted['clips']} clips: {', '.join(sides)}"]
    lines.append(f"rejected  {rejected['clips']}")
    for reason, count in rejected["reasons"].items():
        lines.append(f"          {count} {reason}")
    return lines


def _table(scores: Mapping[str, Any]) -> list[str]:
    """Base, tuned and the recordings side by side."""
    lines = [f"{scores['items']} held-out clips".ljust(20)]
    names = [name for name in _COLUMNS if name in scores["systems"]]
    lines[0] += "".join(f"{name:>12}" for name in names)
    for metric in METRICS:
        if metric.name not in _SHOWN:
            continue
        line = f"{metric.title:<20}"
        for name in names:
            score = scores["systems"][name]["scores"][metric.name]
            cell = "-" if score is None else shown(score["mean"], metric)
            line += f"{cell:>12}"
        paired = scores["differences"].get(DIFFERENCE, {}).get(metric.name)
        if paired and paired["low"] is not None and not paired["low"] <= 0 <= paired["high"]:
            line += "  *"
        lines.append(line)
    if any(line.endswith("*") for line in lines):
        lines.append(f"*: {STAR}")
    return lines


def _times(state: State, steps: Sequence[str]) -> str:
    parts = []
    for step in steps:
        record = state.record(step)
        if record is not None:
            parts.append(f"{step} {record.seconds:.0f} s")
    return ", ".join(parts)
