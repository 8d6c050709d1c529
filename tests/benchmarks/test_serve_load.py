"""The load script measures a server and says what it saw."""

from __future__ import annotations

import json
from pathlib import Path

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
