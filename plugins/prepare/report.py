"""What was accepted and what rejected -> the report of a corpus: as a dictionary, as text, as a
picture.

The same clips give the same report to the byte, in whatever order they come and whenever: it holds
no time and no path. Text and picture are made from the dictionary alone."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from plugins.errors import problem

_MAX_BARS = 30
_MAX_TABLE_SPEAKERS = 10
_MAX_BINS = 60
_MAX_NAME = 24  # characters
_UNNAMED = "(not named)"
_CUTS = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}  # percentiles
_CUT_NAMES = {
    "min": "shortest",
    "p5": "5 %",
    "median": "median",
    "p95": "95 %",
    "max": "longest",
}

Totals = dict[str, Any]  # clips, hours


@dataclass(frozen=True)
class Accepted:
    """What the report needs of an accepted clip."""

    duration_s: float
    speaker: str | None
    split: str


def summarise(accepted: Iterable[Accepted], rejected_kinds: Iterable[str]) -> dict[str, Any]:
    """The content of ``report.json``: speakers by name (none if no clip names one), reasons by
    count."""
    clips = list(accepted)
    kinds = Counter(rejected_kinds)
    splits = {}
    for name, group in _grouped(clips, "split").items():
        voices = {clip.speaker for clip in group} - {None}
        splits[name] = _totals(group) | {"speakers": len(voices)}
    # A corpus that names no speaker has none, and not one without a name.
    speakers = {name: _totals(group) for name, group in _grouped(clips, "speaker").items()}
    if all(clip.speaker is None for clip in clips):
        speakers = {}
    return {
        "accepted": _totals(clips),
        "rejected": {
            "clips": kinds.total(),
            "reasons": dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))),
        },
        "splits": splits,
        "duration_s": _durations(np.array([clip.duration_s for clip in clips])),
        "speakers": speakers,
    }


def table(report: Mapping[str, Any]) -> str:
    """`report` for people, without a line end at its end."""
    accepted, rejected, duration_s = report["accepted"], report["rejected"], report["duration_s"]
    lines = [f"accepted  {_count(accepted)}"]
    for name, split in report["splits"].items():
        line = f"  {name:<{_MAX_NAME}}  {_count(split)}"
        if report["speakers"]:
            line += f", {_plural(split['speakers'], 'speaker')}"
        lines.append(line)
    if accepted["clips"]:
        cuts = [f"{name} {duration_s[key]:.2f} s" for key, name in _CUT_NAMES.items()]
        lines.append(f"duration  {', '.join(cuts)}")
    if report["speakers"]:
        lines.append(f"speakers  {len(report['speakers'])}")
        for name, totals in _largest(report, _MAX_TABLE_SPEAKERS):
            lines.append(f"  {_short(name):<{_MAX_NAME}}  {_count(totals)}")
    if "dialogues" in report:
        lines.append(f"dialogues {dialogue_total(report['dialogues'])}")
        for count, text in dialogue_counts(report["dialogues"]):
            lines.append(f"  {count:>8}  {text}")
    lines.append(f"rejected  {_plural(rejected['clips'], 'clip')}")
    for reason, count in rejected["reasons"].items():
        lines.append(f"  {count:>8}  {reason}")
    return "\n".join(lines)


def dialogue_total(dialogues: Mapping[str, Any]) -> str:
    """How many there are, of what a report says of dialogues."""
    return f"{_plural(dialogues['rows'], 'row')}, {_plural(dialogues['turns'], 'turn')}"


def dialogue_counts(dialogues: Mapping[str, Any]) -> list[tuple[int, str]]:
    """What else there is to say of them: how many, of what."""
    counts = [(count, f"of {number} speakers") for number, count in dialogues["speakers"].items()]
    if dialogues["without_references"]:
        reason = "without references: a speaker has no other clip of 3 s on that side"
        counts.append((dialogues["without_references"], reason))
    for reason, count in dialogues["single_rows"].items():
        counts.append((count, f"rows of one turn: {reason}"))
    return counts


def require_plots() -> None:
    """Raise UserError if what `picture` needs is not installed; nothing is imported."""
    if find_spec("matplotlib") is None:
        raise problem(
            source="report",
            field="package",
            value="matplotlib",
            reason="is not installed",
            remedy="run: pip install matplotlib",
        )


def picture(report: Mapping[str, Any]) -> bytes:
    """`report` as PNG: a histogram of the durations and, if speakers are named, their hours and
    clips.

    The same bytes for the same report and the same matplotlib. Letters that its own font lacks are
    drawn as boxes. Raises UserError if matplotlib is missing."""
    require_plots()
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    speakers = _largest(report, _MAX_BARS)
    # Inches. Without speakers there is only the histogram; the bars of speakers stay readable.
    size, num_axes = (6.4, 4.0), 1
    if speakers:
        size, num_axes = (12.8, max(4.0, 1.2 + 0.22 * len(speakers))), 3
    # The user's matplotlibrc must not change the picture.
    with style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=100)
        figure.set_layout_engine("constrained")
        axes = figure.subplots(1, num_axes, squeeze=False)[0]
        _draw_durations(axes[0], report["duration_s"])
        if speakers:
            _draw_bars(axes[1], speakers, "hours")
            _draw_bars(axes[2], speakers, "clips")
        buffer = io.BytesIO()
        # Without this the version of matplotlib stands in the file.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _totals(clips: list[Accepted]) -> Totals:
    # fsum: the exact sum, whatever the order.
    duration_s = math.fsum(clip.duration_s for clip in clips)
    return {"clips": len(clips), "hours": round(duration_s / 3600, 4)}


def _grouped(clips: list[Accepted], attribute: str) -> dict[str, list[Accepted]]:
    """`clips` by speaker or split, names sorted."""
    groups: dict[str, list[Accepted]] = {}
    for clip in clips:
        name = getattr(clip, attribute)
        if name is None:
            name = _UNNAMED
        groups.setdefault(name, []).append(clip)
    return dict(sorted(groups.items()))


def _durations(durations_s: np.ndarray) -> dict[str, Any]:
    """Percentiles, and a histogram from 0 in bins of a whole number of seconds; a bin holds its
    lower border."""
    if not len(durations_s):
        return {"histogram": {"bin_s": 1, "clips": []}}
    result: dict[str, Any] = {}
    for name, percent in _CUTS.items():
        result[name] = round(float(np.percentile(durations_s, percent)), 3)
    # One bin more than whole ones: the longest clip may lie on a border.
    bin_s = max(1, math.ceil((float(durations_s.max()) + 1) / _MAX_BINS))
    counts = np.bincount((durations_s // bin_s).astype(np.int64))
    return result | {"histogram": {"bin_s": bin_s, "clips": counts.tolist()}}


def _largest(report: Mapping[str, Any], most: int) -> list[tuple[str, Totals]]:
    """The `most` speakers with the most hours, all others as one."""

    def rank(speaker: tuple[str, Totals]) -> tuple[float, int, str]:
        name, totals = speaker
        return -totals["hours"], -totals["clips"], name

    ordered = sorted(report["speakers"].items(), key=rank)
    others = [totals for _, totals in ordered[most:]]
    if not others:
        return ordered
    num_clips = sum(totals["clips"] for totals in others)
    hours = math.fsum(totals["hours"] for totals in others)
    total = {"clips": num_clips, "hours": round(hours, 4)}
    return [*ordered[:most], (f"{len(others)} others", total)]


def _draw_durations(axes: Any, duration_s: Mapping[str, Any]) -> None:
    bin_s, counts = duration_s["histogram"]["bin_s"], duration_s["histogram"]["clips"]
    borders_s = [index * bin_s for index in range(len(counts))]
    axes.bar(borders_s, counts, width=0.9 * bin_s, align="edge")
    axes.set(title="durations", xlabel="seconds", ylabel="clips")


def _draw_bars(axes: Any, speakers: list[tuple[str, Totals]], key: str) -> None:
    names = [_short(name) for name, _ in speakers]
    lengths = [totals[key] for _, totals in speakers]
    positions = range(len(speakers))
    axes.barh(positions, lengths)
    if len(speakers) > _MAX_BARS:
        # Thousands of others would press all bars flat: theirs runs out of the picture, its number
        # is written down.
        names[-1] += f": {lengths[-1]:g}"
        axes.set_xlim(0, 1.1 * max(lengths[:-1]) or 1)
    # A dollar in a name is a dollar and opens no formula.
    axes.set_yticks(positions, names, parse_math=False, fontsize=8)
    axes.invert_yaxis()
    axes.set(title=f"{key} per speaker", xlabel=key)


def _count(totals: Mapping[str, Any]) -> str:
    return f"{_plural(totals['clips'], 'clip')}, {totals['hours']:.2f} h"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _short(name: str) -> str:
    """`name` in one line of at most `_MAX_NAME` characters."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    if len(name) > _MAX_NAME:
        name = name[: _MAX_NAME - 1] + "…"
    return name
