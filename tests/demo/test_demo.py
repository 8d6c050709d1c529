"""The demo: what it says, and when it trains again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.sft import run as run_command

from demo import run


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder, with a demo that is finished."""
    monkeypatch.setattr(run, "OUT", tmp_path)
    monkeypatch.setattr(run, "FINISHED", tmp_path / "finished.json")
    run.FINISHED.write_text('{"dialogue_stopped": false}', encoding="utf-8")
    return tmp_path


def test_without_a_recogniser_the_summary_says_so(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "run").mkdir()
    step = json.dumps(dict.fromkeys(run._CURVES, 1.5))
    (out / "run" / "logging.jsonl").write_text(f"{step}\n", encoding="utf-8")
    scores: dict[str, Any] = {"wer": None, "similarity": None, "stopped": {"mean": 1.0}}
    summary = {
        "systems": {name: {"scores": scores} for name in ("truth", "codec", "base", "tuned")},
        "missing": {"transcript": "package faster_whisper is not installed; run: pip install x"},
    }
    for name in ("plain", "shown"):
        (out / name).mkdir()
        (out / name / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    run._summary()
    shown = capsys.readouterr().out
    assert "missing: package faster_whisper is not installed; run: pip install x" in shown
    (line,) = (line for line in shown.split("\n") if line.startswith("tuned after"))
    assert line.split()[-4:] == ["-", "100.0", "%", "-"]
    assert "the dialogue did not end by itself" in shown


def test_a_finished_demo_is_shown_again_and_not_made_again(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` once more used to delete all of it and to train for minutes."""
    (out / "data").mkdir()
    monkeypatch.setattr(run, "run", lambda title, *_: pytest.fail(f"{title} again"))
    monkeypatch.setattr(run, "_summary", lambda: print("the summary"))
    assert run.main() == 0
    assert (out / "data").is_dir()
    shown = capsys.readouterr().out
    assert "the summary" in shown
    assert f"`rm -r {out}` starts anew" in shown


@pytest.fixture(scope="module")
def demo() -> dict[str, dict[str, Any]]:
    """What `make demo` leaves behind: the summaries of its two evaluations."""
    run.FINISHED.unlink(missing_ok=True)  # or it would show what it has shown before
    done = run_command(sys.executable, "-m", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing" not in done.stdout
    print(done.stdout)
    summaries = {}
    for name in ("plain", "shown"):
        path = run.OUT / name / "summary.json"
        summaries[name] = json.loads(path.read_text(encoding="utf-8"))
    return summaries


def mean(summary: dict[str, Any], system: str, score: str) -> float:
    return float(summary["systems"][system]["scores"][score]["mean"])


@pytest.mark.slow
def test_the_new_voice_says_what_nobody_taught_it(demo: dict[str, dict[str, Any]]) -> None:
    plain = demo["plain"]
    assert mean(plain, "tuned", "stopped") == 1
    assert mean(plain, "tuned", "wer") <= mean(plain, "base", "wer") + 0.05


@pytest.mark.slow
def test_it_is_the_new_voice(demo: dict[str, dict[str, Any]]) -> None:
    """The base does not come near it, not even after a recording of it."""
    tuned = mean(demo["plain"], "tuned", "similarity")
    assert tuned >= 0.8
    assert tuned >= mean(demo["shown"], "base", "similarity") + 0.1


@pytest.mark.slow
def test_it_converses(demo: dict[str, dict[str, Any]]) -> None:
    assert json.loads(run.FINISHED.read_text(encoding="utf-8"))["dialogue_stopped"]
    spoken = run.OUT / "spoken" / "dialogue.wav"
    assert spoken.stat().st_size > 4 * 1.5 * 24_000 * 2  # four lines of 1.5 s in 16 bit
