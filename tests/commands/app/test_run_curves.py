"""Curves and samples from what a run writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugins.commands.app import curves


def write(run: Path, *lines: Any) -> None:
    run.mkdir(exist_ok=True)
    with (run / curves.LOG).open("a") as file:
        for line in lines:
            file.write(line if isinstance(line, str) else json.dumps(line) + "\n")


def record(step: int, **values: Any) -> dict[str, Any]:
    return {**values, curves.STEP: f"{step}/20", "remaining_time": "5s"}


def test_the_log_of_a_run_becomes_curves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert curves.points(run, "loss") == []
    assert curves.summary(run) == ""
    write(run, record(1, loss=3.0, loss_audio=2.0), record(2, loss=2.0, loss_text=float("nan")))
    write(run, "{half a li\n", "[1]\n", {"log_history": []}, "\n", {curves.STEP: "x"})
    # After a resume a step is there twice.
    write(run, record(2, loss=2.5), record(3, eval_loss=1.5), '{"loss": 1.0, "global')
    assert curves.points(run, "loss") == [
        (1, "loss", 3.0),
        (2, "loss", 2.5),
        (1, "loss_audio", 2.0),
        (3, "eval_loss", 1.5),
    ]
    summary = "step 3 of 20 · loss 2.500 · loss_audio 2.000 · eval_loss 1.500 · 5s left"
    assert curves.summary(run) == summary


def test_long_curves_are_thinned_and_keep_their_end(tmp_path: Path) -> None:
    write(tmp_path / "run", *(record(step, loss=float(step)) for step in range(1, 2001)))
    points = curves.points(tmp_path / "run", "loss")
    assert len(points) <= 600
    assert points[-1][0] == 2000
    assert points[0] == (4, "loss", 2.5)


def test_samples_are_those_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, name in ((0, "0.wav"), (10, "../../secret.wav")):
        folder = run / curves.SAMPLES / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "0.wav").touch()
        entry = {"file": name, "text": "Hi.", "seconds": 1.25, "stopped": True}
        (folder / curves.LIST).write_text(json.dumps(entry) + "\n{half")
    for name in ("step-x", "step-20"):  # of 20 the list is not there yet
        (run / curves.SAMPLES / name).mkdir()
    (tmp_path / "secret.wav").touch()
    assert curves.sample_steps(run) == [10, 0]
    (sample,) = curves.samples(run, 0)
    assert (sample.text, sample.note) == ("Hi.", "1.2 s · stopped by itself")
    assert list(curves.samples(run, 10)) == []
    before = curves.stamp(run)
    write(run, record(1))
    assert curves.stamp(run) != before
