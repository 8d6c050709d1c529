"""A summary and its items -> a picture (L3). Needs the package matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from plugins.evaluation.scores import METRICS, Metric, column
from plugins.evaluation.speaking import BASE, TUNED

PICTURE = "report.png"
_WIDTH = 4
_PAIRED = ("wer", "similarity", "dnsmos", "distillmos")


def picture(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: of each score the systems' means and intervals; below them, if there is a base, some
    scores of each item of the tuned model against the same item of the base. Raises ImportError
    without matplotlib."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(summary["systems"])
    there = [
        m for m in METRICS if any(summary["systems"][name]["scores"][m.name] for name in names)
    ]
    pairs = [m for m in there if summary["differences"] and m.name in _PAIRED and _pairs(rows, m)]
    num_rows = [-(-len(panels) // _WIDTH) for panels in (there, pairs)]
    with style.context("default"):  # the user's matplotlibrc must not change the picture
        figure = Figure(figsize=(3.2 * _WIDTH, 2.8 * sum(num_rows)), dpi=100, layout="constrained")
        axes = figure.subplots(sum(num_rows), _WIDTH, squeeze=False).ravel()
        for panel, metric in zip(axes, there, strict=False):
            _draw_systems(panel, summary, metric, names)
        for panel, metric in zip(axes[num_rows[0] * _WIDTH :], pairs, strict=False):
            _draw_pairs(panel, rows, metric)
        for panel in axes:
            panel.set_visible(panel.has_data())
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw_systems(
    axes: Any, summary: Mapping[str, Any], metric: Metric, names: Sequence[str]
) -> None:
    for position, name in enumerate(names):
        found = summary["systems"][name]["scores"][metric.name]
        if found is None:
            continue
        low, high = (found["mean"] if found[end] is None else found[end] for end in ("low", "high"))
        # A mean of a resample's tail may lie beyond the mean by rounding only.
        errors = [[max(0.0, found["mean"] - low)], [max(0.0, high - found["mean"])]]
        axes.errorbar([position], [found["mean"]], yerr=errors, fmt="o", capsize=4)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_title(f"{metric.title} ({metric.better})", fontsize=9)


def _draw_pairs(axes: Any, rows: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    base, tuned = zip(*_pairs(rows, metric), strict=True)
    axes.scatter(base, tuned, s=12, alpha=0.6)
    ends = (min(*base, *tuned), max(*base, *tuned))
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.set(xlabel=BASE, ylabel=TUNED)
    axes.set_title(f"{metric.title}, item by item", fontsize=9)


def _pairs(rows: Sequence[Mapping[str, Any]], metric: Metric) -> list[tuple[float, float]]:
    both = zip(column(rows, BASE, metric), column(rows, TUNED, metric), strict=True)
    return [(base[0], tuned[0]) for base, tuned in both if base is not None and tuned is not None]
