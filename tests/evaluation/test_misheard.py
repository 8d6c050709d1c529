"""A recogniser that does not understand the recordings themselves: with Italian texts and the
default, which hears English, every system had a WER of 100 %, unsaid."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.evaluation import report


def summary(wer: float | None, *, name: str = "truth") -> dict[str, Any]:
    scores = {} if wer is None else {"mean": wer, "low": None, "high": None, "items": 1}
    return {"systems": {name: {"scores": {"wer": scores}}}, "settings": {"language": "en"}}


@pytest.mark.parametrize("wer", [0.5, 1.0, 1.7])
def test_it_is_warned_of(wer: float) -> None:
    warning = report.misheard(summary(wer))
    assert warning is not None
    assert warning.startswith(f"WER of the recordings themselves is {100 * wer:.0f} %: are the")
    assert "language 'en'" in warning
    assert "Give --language and --asr" in warning


def test_it_is_not_where_the_recordings_are_understood_or_not_there() -> None:
    assert report.misheard(summary(0.2)) is None
    assert report.misheard(summary(None)) is None
    assert report.misheard(summary(1.0, name="model")) is None
    assert report.misheard({"systems": {}, "settings": {}}) is None
