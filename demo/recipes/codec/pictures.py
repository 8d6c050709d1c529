"""Spectrograms before and after the codec, and the loss curves."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plugins.audio.waveforms import SAMPLE_RATE_HZ


def spectrograms(path: Path, title: str, before: np.ndarray, after: np.ndarray) -> None:
    """Two waveforms (N,) at 24 kHz, one above the other, 80 dB deep."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    figure.suptitle(title)
    panels = {"original": before, "round trip": after}
    rows = figure.subplots(2, 1, sharex=True)
    for axes, (name, samples) in zip(rows, panels.items(), strict=True):
        # Digital silence has no logarithm.
        *_, image = axes.specgram(
            samples + 1e-12, NFFT=512, noverlap=384, Fs=SAMPLE_RATE_HZ, vmin=-120, vmax=-40
        )
        axes.set(ylim=(0, 8000), ylabel=f"{name}, Hz")
        figure.colorbar(image, ax=axes, label="dB")
    axes.set_xlabel("s")
    # A quarter of what it would be as PNG: the repository carries it.
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 80})


def curves(table: Path, path: Path) -> None:
    """table: network, step, loss."""
    points = defaultdict(list)
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row["network"]].append((int(row["step"]), float(row["loss"])))
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        axes.plot(*zip(*curve, strict=True))  # all steps, all losses
        axes.set(title=name, xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(path, dpi=80)
