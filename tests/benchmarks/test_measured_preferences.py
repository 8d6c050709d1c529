"""benchmarks/preferences.py: what it made is what docs/preferences.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks import preferences
from benchmarks.measure import ROOT


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    text = (ROOT / "docs" / "curves" / "preferences.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_the_page_says_what_was_heard(made: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8")
    assert preferences.table(made["heard"]) in page
    takes = made["takes"]
    of_each = (
        f"of {takes['texts']} sentences {takes['best']} best takes and {takes['pairs']} pairs are"
        f" trained on, {takes['held_out']} pairs held out"
    )
    assert of_each in " ".join(page.split())


def test_errors_are_a_fifth_fewer(made: dict[str, Any]) -> None:
    """Relative to the tuned model, by a recogniser that has chosen nothing. Not of all ways to
    learn and to speak: the page says which."""
    heard = made["heard"]
    for name, peer in (
        ("tuned, best of 8", "tuned, drawn"),
        ("sft, drawn", "tuned, drawn"),
        ("dpo, greedy", "tuned, greedy"),
    ):
        learnt, tuned = heard[name], heard[peer]
        assert learnt["wer_second"][0] < 0.8 * tuned["wer_second"][0], name
        assert learnt["similarity"][0] > tuned["similarity"][0] - 0.02, name
        assert learnt["stopped"][0] >= tuned["stopped"][0], name


def test_the_picture_is_drawn(made: dict[str, Any], tmp_path: Path) -> None:
    picture = tmp_path / "it.png"
    preferences.draw(picture, made["heard"], made["curves"]["dpo"])
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_what_is_missing_is_told_before_anything_is_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preferences, "OUT", tmp_path)
    monkeypatch.setattr(preferences, "find_spec", lambda name: None)
    for reason in ("run `make demo` first", "pip install moonshine-voice"):
        with pytest.raises(SystemExit):
            preferences.main(["--work", str(tmp_path / "work")])
        assert reason in capsys.readouterr().err
        (tmp_path / "run" / "checkpoint-64").mkdir(parents=True, exist_ok=True)
    assert not (tmp_path / "work").exists()
