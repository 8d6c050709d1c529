"""What was accepted and what rejected -> the report of a corpus: as a dictionary, as text, as a
picture (L4).

The same clips give the same report to the byte, in whatever order they come and whenever: it holds
no time and no path. Text and picture are made from the dictionary alone."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins.errors import problem

_MAX_BARS = 30
_MAX_TABLE_SPEAKERS = 10
_MAX_BINS = 60
_MAX_NAME = 24  # characters
_UNNAMED = "(not named)"


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
    named = any(clip.speaker is not None for clip in clips)
    return {
        "accepted": _totals(clips),
        "rejected": {
            "clips": kinds.total(),
            "reasons": dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        },
        "splits": {
            name: {**_totals(group), "speakers": len({clip.speaker for clip in group} - {None})}
            for name, group in _grouped(clips, "split").items()
        },
        "duration_s": _durations(np.array([clip.duration_s for clip in clips])),
        "speakers": {name: _totals(group) for name, group in _grouped(clips, "speaker").items()}
        if named
        else {},
    }


def table(report: Mapping[str, Any]) -> str:
    """`report` for people, without a line end at its end."""
    accepted, rejected, duration_s = report["accepted"], report["rejected"], report["duration_s"]
    lines = [f"accepted  {_count(accepted)}"]
    for name, split in report["splits"].items():
        voices = f", {_plural(split['speakers'], 'speaker')}" if report["speakers"] else ""
        lines.append(f"  {name:<{_MAX_NAME}}  {_count(split)}{voices}")
    if accepted["clips"]:
        shown = {
            "min": "shortest",
            "p5": "5 %",
            "median": "median",
            "p95": "95 %",
            "max": "longest",
        }
        lines.append(
            "duration  "
            + ", ".join(f"{text} {duration_s[key]:.2f} s" for key, text in shown.items())
        )
    if report["speakers"]:
        lines.append(f"speakers  {len(report['speakers'])}")
        lines += [
            f"  {_short(name):<{_MAX_NAME}}  {_count(s)}"
            for name, s in _largest(report, _MAX_TABLE_SPEAKERS)
        ]
    lines.append(f"rejected  {_plural(rejected['clips'], 'clip')}")
    lines += [f"  {count:>8}  {reason}" for reason, count in rejected["reasons"].items()]
    return "\n".join(lines)


def picture(report: Mapping[str, Any]) -> bytes:
    """`report` as PNG: a histogram of the durations and, if speakers are named, their hours and
    clips.

    The same bytes for the same report and the same matplotlib. Letters that its own font lacks are
    drawn as boxes. Raises UserError if matplotlib is missing."""
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        remedy = "run: pip install matplotlib"
        raise problem(
            source="report",
            field="package",
            value="matplotlib",
            reason="is not installed",
            remedy=remedy,
        ) from None
    speakers = _largest(report, _MAX_BARS)
    # The user's matplotlibrc must not change the picture.
    with style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(
            figsize=(6.4 if not speakers else 12.8, max(4.0, 1.2 + 0.22 * len(speakers))), dpi=100
        )
        figure.set_layout_engine("constrained")
        axes = figure.subplots(1, 3 if speakers else 1, squeeze=False)[0]
        _draw_durations(axes[0], report["duration_s"])
        if speakers:
            _draw_bars(axes[1], speakers, "hours")
            _draw_bars(axes[2], speakers, "clips")
        buffer = io.BytesIO()
        # Without this the version of matplotlib stands in the file.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _totals(clips: list[Accepted]) -> dict[str, Any]:
    # fsum: the exact sum, whatever the order.
    return {
        "clips": len(clips),
        "hours": round(math.fsum(clip.duration_s for clip in clips) / 3600, 4),
    }


def _grouped(clips: list[Accepted], attribute: str) -> dict[str, list[Accepted]]:
    """`clips` by speaker or split, names sorted."""
    groups: dict[str, list[Accepted]] = {}
    for clip in clips:
        name = getattr(clip, attribute)
        groups.setdefault(_UNNAMED if name is None else name, []).append(clip)
    return dict(sorted(groups.items()))


def _durations(durations_s: np.ndarray) -> dict[str, Any]:
    """Percentiles, and a histogram from 0 in bins of a whole number of seconds; a bin holds its
    lower border."""
    if not len(durations_s):
        return {"histogram": {"bin_s": 1, "clips": []}}
    cuts = np.percentile(durations_s, [0, 5, 50, 95, 100])
    bin_s = max(1, math.ceil((cuts[-1] + 1) / _MAX_BINS))
    counts = np.bincount((durations_s // bin_s).astype(np.int64))
    names = ("min", "p5", "median", "p95", "max")
    return {
        **{name: round(float(cut), 3) for name, cut in zip(names, cuts, strict=True)},
        "histogram": {"bin_s": bin_s, "clips": counts.tolist()},
    }


def _largest(report: Mapping[str, Any], most: int) -> list[tuple[str, dict[str, Any]]]:
    """The `most` speakers with the most hours, all others as one."""
    ordered = sorted(
        report["speakers"].items(), key=lambda item: (-item[1]["hours"], -item[1]["clips"], item[0])
    )
    others = [speaker for _, speaker in ordered[most:]]
    if not others:
        return ordered
    total = {
        "clips": sum(o["clips"] for o in others),
        "hours": round(math.fsum(o["hours"] for o in others), 4),
    }
    return [*ordered[:most], (f"{len(others)} others", total)]


def _draw_durations(axes: Any, duration_s: Mapping[str, Any]) -> None:
    bin_s, counts = duration_s["histogram"]["bin_s"], duration_s["histogram"]["clips"]
    axes.bar(
        [index * bin_s for index in range(len(counts))], counts, width=0.9 * bin_s, align="edge"
    )
    axes.set(title="durations", xlabel="seconds", ylabel="clips")


def _draw_bars(axes: Any, speakers: list[tuple[str, dict[str, Any]]], key: str) -> None:
    positions, names = range(len(speakers)), [_short(name) for name, _ in speakers]
    axes.barh(positions, [speaker[key] for _, speaker in speakers])
    if len(speakers) > _MAX_BARS:
        # Thousands of others would press all bars flat: theirs runs out of the picture, its number
        # is written down.
        names[-1] += f": {speakers[-1][1][key]:g}"
        axes.set_xlim(0, 1.1 * max(speaker[key] for _, speaker in speakers[:-1]) or 1)
    # A dollar in a name is a dollar and opens no formula.
    axes.set_yticks(positions, names, parse_math=False, fontsize=8)
    axes.invert_yaxis()
    axes.set(title=f"{key} per speaker", xlabel=key)


def _count(totals: Mapping[str, Any]) -> str:
    return f"{_plural(totals['clips'], 'clip')}, {totals['hours']:.2f} h"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _short(name: str) -> str:
    """`name` in one line of at most `_MAX_NAME` characters."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
