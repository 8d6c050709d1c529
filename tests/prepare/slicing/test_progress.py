"""A bar in seconds of sound: for a terminal, true to the length of the recordings."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from plugins.prepare.slicing.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    paths = []
    for number, seconds in enumerate((10, 50, 40)):
        paths.append(tmp_path / f"{number}.wav")
        sf.write(paths[-1], np.zeros(seconds * 1000, np.float32), 1000)
    (tmp_path / "1.wav").write_bytes(b"no sound")
    return paths


def test_seconds_of_all_recordings_are_counted(
    recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("voices", recordings) as progress:
        progress.at(4.0)
        progress.next()
        progress.next()  # nothing of it can be read
        progress.at(30.0)
        progress.at(1000.0)  # the header is wrong
        progress._bar.refresh()
        progress.next()
    shown = terminal.getvalue()
    assert "voices:   0%|" in shown
    assert "| 0/50 s of sound [00:00<" in shown
    assert "| 50/50 s of sound [00:00<00:00]" in shown


def test_what_was_done_before_promises_no_speed(
    recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds of sound that took none, and four that took eight: 36 more take 72."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("recordings", recordings) as progress:
        progress.next(kept=True)
        progress.next()
        progress._bar.start_t -= 8
        progress.at(4.0)
        progress._bar.refresh()
    assert "| 14/50 s of sound [00:08<01:12]" in terminal.getvalue()


def test_a_file_gets_no_bar(recordings: list[Path], capsys: Any) -> None:
    with Progress("recordings", recordings) as progress:
        progress.next(kept=True)
        progress.at(3.0)
        progress.next()
    assert capsys.readouterr().err == ""
