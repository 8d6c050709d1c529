"""The load script measures a server and says what it saw."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import serve


@pytest.mark.slow
def test_a_tiny_server_is_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "serve.json"
    words = ["--clients", "3", "--seconds", "2", "--requests", "70", "--output", str(output)]
    assert serve.main([*words, "--model", str(tiny), "--max_audio_s", "0.6"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["errors"] == []
    assert report["load_requests"] >= 3
    assert report["load_speech_per_s"] > 0
    assert report["memory_after_mb"] > 0
    assert "errors                        0 (0)" in capsys.readouterr().out


def test_a_server_that_answers_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of no waits was an error of its own, and hid those of the requests."""
    monkeypatch.setattr(serve, "together", lambda *_: serve.Spoken(errors=["HTTPError: 500"]))
    server: Any = SimpleNamespace(url="http://x/v1", memory_mb=lambda: 1.0)
    options = Namespace(seconds=0.0, clients=1, requests=1)
    with pytest.raises(SystemExit, match="no request was answered: HTTPError: 500"):
        serve.measured(server, options)
