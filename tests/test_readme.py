"""What README promises and a fast test can hold: the way to an environment, and the lines that our
commands print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.sft import BIN

from plugins.prepare.summary import _rows
from plugins.training.arguments import speak_command

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_environment_is_made_and_activated_before_anything_is_run() -> None:
    """It was never activated: `higgs-audio` was "command not found"."""
    lines = section("Install").partition("```bash\n")[2].partition("```")[0].splitlines()
    commands = [line.partition("#")[0].strip() for line in lines]
    clone, make, activate, first = commands
    assert clone.startswith("git clone ")
    assert clone.endswith(" && cd higgs-audio-swift")
    assert [make, activate, first] == [
        "make install",
        "source .venv/bin/activate",
        "higgs-audio --help",
    ]
    assert README.index("source .venv/bin/activate") < README.index("higgs-audio speak")
    assert "python prepare_dataset.py" not in README


def test_what_the_four_commands_print_is_what_they_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a real run, held by the functions that make them."""
    text = section("Your voice in four commands").partition("```text\n")[2].partition("```")[0]
    rows, doctor, sft, speak = text.splitlines()
    sides: Any = {"train": range(39), "val": range(1)}
    assert rows == f"rows      {_rows(sides)}"
    nats = r"[\d.]+ nats per code after their own texts, [\d.]+ after another row's"
    assert re.fullmatch(f"ok      texts: {nats}", doctor)
    (checkpoint,) = re.findall(r"--model (\S+)", sft)
    monkeypatch.setenv("PATH", str(BIN))
    assert sft == f"speak with: {speak_command(Path(checkpoint))}"
    assert re.fullmatch(r"me\.wav: [\d.]+ s, \d+ frames, .*, stopped by itself", speak)


def test_the_front_page_fits_an_evening() -> None:
    assert len(README.encode()) <= 10_000
    assert len(README.splitlines()) <= 150
    assert max(map(len, README.splitlines())) <= 120
