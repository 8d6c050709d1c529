"""A summary and the scores of its items -> a PNG. Needs the package matplotlib; knows no clips."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plugins.evaluation.scores import METRICS, Metric, column
from plugins.evaluation.speaking import BASE, TUNED

PICTURE = "report.png"
_WIDTH = 4  # panels beside one another
_PAIRED = ("wer", "similarity", "dnsmos", "distillmos")


def picture(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: of each score the systems' means and intervals; below them, if there is a base, some
    scores of each item of the tuned model against the same item of the base. Raises ImportError
    without matplotlib."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored, paired = [], []
    for metric in METRICS:
        if any(system["scores"][metric.name] for system in summary["systems"].values()):
            scored.append(metric)
            if summary["differences"] and metric.name in _PAIRED and _pairs(rows, metric):
                paired.append(metric)
    upper = math.ceil(len(scored) / _WIDTH)
    num_rows = upper + math.ceil(len(paired) / _WIDTH)
    with style.context("default"):  # the user's matplotlibrc must not change the picture
        figure = Figure(figsize=(3.2 * _WIDTH, 2.8 * num_rows), dpi=100, layout="constrained")
        axes = figure.subplots(num_rows, _WIDTH, squeeze=False).ravel()
        for panel, metric in zip(axes, scored, strict=False):
            _draw_systems(panel, summary["systems"], metric)
        for panel, metric in zip(axes[upper * _WIDTH :], paired, strict=False):
            _draw_pairs(panel, rows, metric)
        for panel in axes:
            panel.set_visible(panel.has_data())
        buffer = io.BytesIO()
        # The name of the software holds its version: equal scores, equal bytes.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw_systems(axes: Any, systems: Mapping[str, Any], metric: Metric) -> None:
    for position, system in enumerate(systems.values()):
        score = system["scores"][metric.name]
        if score is None:
            continue
        mean, low, high = score["mean"], score["low"], score["high"]
        if low is None:  # a single item
            low = high = mean
        # A mean of a resample's tail may lie beyond the mean by rounding only.
        errors = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
        axes.errorbar([position], [mean], yerr=errors, fmt="o", capsize=4)
    axes.set_xticks(range(len(systems)), list(systems), rotation=20)
    axes.set_xlim(-0.5, len(systems) - 0.5)
    axes.set_title(f"{metric.title} ({metric.better})", fontsize=9)


def _draw_pairs(axes: Any, rows: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    base, tuned = zip(*_pairs(rows, metric), strict=True)
    axes.scatter(base, tuned, s=12, alpha=0.6)
    ends = (min(*base, *tuned), max(*base, *tuned))
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.set(xlabel=BASE, ylabel=TUNED)
    axes.set_title(f"{metric.title}, item by item", fontsize=9)


def _pairs(rows: Sequence[Mapping[str, Any]], metric: Metric) -> list[tuple[float, float]]:
    """Values of the items that both said."""
    pairs = []
    for base, tuned in zip(column(rows, BASE, metric), column(rows, TUNED, metric), strict=True):
        if base is not None and tuned is not None:
            pairs.append((base[0], tuned[0]))
    return pairs
