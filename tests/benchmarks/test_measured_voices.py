"""benchmarks/voices.py: what it made is what the recipe says; its table and picture are read from
figures. What LoRA makes of a voice no test can hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import voices
from benchmarks.measure import ROOT


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    text = (ROOT / "docs" / "curves" / "voices.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def section(title: str, end: str) -> str:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    return text.partition(title)[2].partition(end)[0]


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def test_the_recipe_says_what_was_heard(made: dict[str, Any]) -> None:
    heard, grid = made["heard"], section("\n## A new voice, measured", "**Strength.**")
    for count in voices.COUNTS:
        for rank in voices.RANKS:
            runs = [heard[f"clips{count}_rank{rank} {steps}"] for steps in voices.STEPS]
            cells = [f"{percent(run['wer'])} %, {run['similarity']:.2f}" for run in runs]
            cells.append(", ".join(percent(run["known_wer"]) for run in runs) + " %")
            assert f"| {count}, rank {rank} | {' | '.join(cells)} |" in grid
    strengths = section("**Strength.**", "**What goes wrong**")
    strong = [heard["base"]]
    strong += [heard[f"clips40_rank32 90 x {strength}"] for strength in voices.STRENGTHS]
    strong.append(heard["clips40_rank32 90"])
    for title, key in (("word error rate", "wer"), ("the base's voices", "known_wer")):
        cells = [f"{percent(run[key])} %" for run in strong]
        assert f"| {title} | {' | '.join(cells)} |" in strengths


def test_the_recipe_says_what_went_wrong(made: dict[str, Any]) -> None:
    table = section("**What goes wrong**", "\n## ")
    names = {"clips40_rank32": "healthy", "high_rate": "rate 2e-2, twenty times as high"}
    for name, run in voices.RUNS.items():
        if name in voices._GRID and name not in names:
            continue
        figures = made["heard"][f"{name} 90"]
        cells = (f"{percent(figures['wer'])} %", f"{figures['similarity']:.2f}")
        stops = f"{percent(figures['stopped'])} %"
        title = names.get(name, run.title)
        line = rf"\| {title} \| [\d.]+ \| {cells[0]} \| {re.escape(cells[1])} \| {stops} \|"
        assert re.search(line, table), name


def test_table_and_picture_show_every_run(made: dict[str, Any], tmp_path: Path) -> None:
    table = voices.table(made["heard"]).split("\n")
    assert len(table) == 2 + len(made["heard"])
    assert "| clips160_rank32 180 | 19% | 0.93 | 100% | 1.01 | 23% |" in table
    assert "| codec | 8% | 0.94 |  | 1.00 |  |" in table
    voices.draw(tmp_path / "voices.png", made["heard"])
    assert (tmp_path / "voices.png").stat().st_size > 10_000
