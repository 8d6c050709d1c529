"""`python -m benchmarks.gpu` without a GPU: each part runs, and says what it has to."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import env, inputs, numerics, train
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.results import Results, read, table

FIELDS = {"name", "value", "unit", "device", "dtype", "torch", "driver"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("here", tmp_path, "cpu", tiny=True, deadline=time.time() + 600)


def records_of(bench: Bench) -> list[dict[str, Any]]:
    return read(bench.folder / "results.jsonl")


def test_a_line_has_all_that_a_number_depends_on(bench: Bench) -> None:
    env.run(bench)
    records = records_of(bench)
    assert all(record.keys() >= FIELDS for record in records)
    units = {record["name"]: record["unit"] for record in records}
    assert units["here: copy"] == "TB/s"
    assert units["here: matrix product"] == "TFLOP/s"
    assert {record["torch"] for record in records} == {torch.__version__}
    assert bench.measured("here: copy", -1) > 0
    assert bench.measured("here: nothing", -1) == -1


def test_a_fault_costs_nothing_but_itself(bench: Bench) -> None:
    def fault() -> None:
        raise torch.OutOfMemoryError("none left\nat all")

    bench.attempt("first", fault)
    bench.attempt("second", sys.exit)
    bench.attempt("third", lambda: bench.check("third", True))
    bench.attempt("fourth", lambda: bench.check("fourth", True), needs_s=10_000)
    records = records_of(bench)
    assert [record["verdict"] for record in records] == ["failed", "failed", "met", ""]
    assert records[0]["reason"] == "OutOfMemoryError: none left at all"
    assert records[3]["unit"] == "skipped"
    for record in records:
        assert f"| {record['name']} | " in table(records)


@pytest.mark.parametrize(
    ("value", "goal", "verdict"),
    [
        (0.06, {"most": 0.065}, "met"),
        (0.07, {"most": 0.065}, "missed"),
        (1.5, {"least": 1.3}, "met"),
        (1.2, {"least": 1.3}, "missed"),
        (1.2, {}, ""),
        (1.2, {"least": None, "most": None}, ""),
    ],
)
def test_goals(tmp_path: Path, value: float, goal: dict[str, float], verdict: str) -> None:
    for judges_speed in (True, False):
        results = Results(tmp_path / f"{judges_speed}.jsonl", judges_speed=judges_speed)
        results.add("speed", value, "x", **goal)
        (record,) = read(results.path)
        assert record["verdict"] == (verdict if judges_speed else "")


def test_operations_of_a_step_are_those_that_torch_counts() -> None:
    """But for attention, of which torch counts the whole square."""
    from torch.utils.flop_counter import FlopCounterMode

    model = inputs.build(inputs.config_of(inputs.TINY), torch.float32, "cpu")
    batch = inputs.training_batch(model, [(20, 100), (20, 100)])
    with FlopCounterMode(display=False) as counter:
        train.loss_of(model(**batch)).backward()
    counts = counter.get_flop_counts()["Global"]
    linear = sum(count for operator, count in counts.items() if "attention" not in str(operator))
    length, query = batch["input_ids"].shape[1], 8 * 64
    attention = 3.5 * 2 * (2.0 * length * length * query * 2)  # rows, and layers
    counted = train.flops(model.config, batch, full=True) - attention
    assert counted == pytest.approx(linear, rel=0.02)


def test_frames_in_common() -> None:
    frames = torch.arange(12).view(4, 3)
    changed = frames.clone()
    changed[2, 1] = 0
    assert numerics.common_frames(frames, frames[:3]) == 3
    assert numerics.common_frames(frames, changed) == 2


def test_what_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.LIMITS_S, "env", -5)
    assert gpu.main(["--cpu", "--tiny", "--parts", "env", "--output", str(tmp_path)]) == 1
    (record,) = read(tmp_path / "results.jsonl")
    assert record["reason"] == "its time was up"
    assert "its time was up" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_named(tmp_path: Path) -> None:
    """Each part says so in a line, not in a trace in its log."""
    assert gpu.main(["--parts", "codec", "--output", str(tmp_path)]) == 1
    (record,) = read(tmp_path / "results.jsonl")
    assert record["reason"] == "torch sees no GPU: mend that, or give --cpu --tiny"


@pytest.mark.slow
def test_everything_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--cpu", "--tiny", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = list(map(json.loads, lines))
    assert {record["name"].partition(": ")[0] for record in records} == set(gpu.LIMITS_S)
    assert all(record.keys() >= FIELDS for record in records)
    for record in records:
        assert f"| {record['name']} | " in printed
    # What is right is judged without a GPU too, how fast anything is not.
    judged = {record["unit"] for record in records if record["verdict"]}
    assert judged == {"right"}
