"""Steps whose numbers are sick, in this process. Several ranks: `test_ranks.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sft import IN_ORDER, LORA, check_untouched, heard, sft, warnings_with

from plugins.errors import UserError


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From then on the losses of those micro-batches (counted from 0) are multiplied by `value`."""
    from plugins.ms_swift.template import HiggsAudioTemplate

    def infect(*batches: int, value: float = float("nan")) -> None:
        original, count = HiggsAudioTemplate.compute_sft_loss, iter(range(1000))

        def compute_sft_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = original(self, *args, **kwargs)
            if next(count) in batches:
                outputs.loss = outputs.loss * value
            return outputs

        monkeypatch.setattr(HiggsAudioTemplate, "compute_sft_loss", compute_sft_loss)

    return infect


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sick_step_is_named_not_taken_and_counted(
    value: float,
    sick: Any,
    tiny: Path,
    dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MS-SWIFT takes an infinite gradient for a gradient, and logs 0 in the place of a NaN loss."""
    sick(3, value=value)  # of two per step: the second one of the second step
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 3}
    options |= {**IN_ORDER, "save_steps": 1, "learning_rate": 1e-2, **LORA}
    with heard(caplog):
        records = sft(tiny, dataset, tmp_path / "out", **options)
    check_untouched(tmp_path / "out" / "checkpoint-1", tmp_path / "out" / "checkpoint-2")
    (warning,) = warnings_with(caplog, "skipped")
    assert warning.startswith(f"step 2 skipped: loss {value}; rows: ")
    assert warning.endswith("train.jsonl:4"), "row 3 is of the same step, and healthy"
    first, second, third = records[:3]
    assert first["skipped_steps"] == first["skipped_rows"] == 0
    assert third["skipped_rows"] == 2
    assert second["skipped_steps"] == third["skipped_steps"] == 1
    assert not {"loss", "grad_norm", "loss_audio"} & second.keys(), (
        "nothing was learned in that step"
    )
    assert third["loss"] > 0
    with pytest.raises(AssertionError):
        check_untouched(tmp_path / "out" / "checkpoint-2", tmp_path / "out" / "checkpoint-3")


@pytest.mark.slow
def test_a_logged_mean_is_one_over_the_steps_that_were_taken(
    sick: Any, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    options = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 4}
    options |= {"learning_rate": 0.0, **LORA, "lora_dropout": 0, **IN_ORDER}
    sick(1)
    records = sft(tiny, dataset, tmp_path / "mean", **options)
    (mean,) = (record for record in records if "loss" in record)
    sick()
    steps = sft(tiny, dataset, tmp_path / "steps", **{**options, "logging_steps": 1})
    assert mean["skipped_steps"] == 1
    taken = [steps[i]["loss"] for i in (0, 2, 3)]
    assert mean["loss"] == pytest.approx(sum(taken) / 3, rel=1e-5)


def test_a_gradient_that_overflows_under_a_finite_loss_names_the_whole_step(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from plugins.trainer import HiggsAudioTrainer

    original = HiggsAudioTrainer.training_step

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        if self.state.global_step == 1:
            gradients = (parameter.grad for parameter in model.parameters())
            next(filter(torch.is_tensor, gradients))[0] = float("inf")
        return loss

    monkeypatch.setattr(HiggsAudioTrainer, "training_step", training_step)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 2}
    options |= {"save_steps": 1, **IN_ORDER}
    with heard(caplog):
        sft(tiny, dataset, tmp_path / "out", **options, **LORA)
    check_untouched(tmp_path / "out" / "checkpoint-1", tmp_path / "out" / "checkpoint-2")
    (warning,) = warnings_with(caplog, "skipped")
    assert re.fullmatch(
        r"step 2 skipped: gradients .*; rows: \S+train.jsonl:3, \S+train.jsonl:4", warning
    )


def test_three_sick_steps_in_a_row_end_the_run_with_one_line(
    sick: Any, tiny: Path, dataset: Path, tmp_path: Path
) -> None:

    sick(0, 2, 3, 4, 5)  # the first one alone does not count
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 8}
    options |= {"save_steps": 1, **IN_ORDER}
    with pytest.raises(
        UserError, match=r"^training: loss nan in 3 steps in a row.*train\.jsonl:5\).*lower"
    ) as caught:
        sft(tiny, dataset, tmp_path / "out", **options, **LORA)
    assert "\n" not in str(caught.value)
    check_untouched(tmp_path / "out" / "checkpoint-2", tmp_path / "out" / "checkpoint-4")
    assert not (tmp_path / "out" / "checkpoint-5").exists()


@pytest.mark.slow
def test_skipped_steps_are_still_counted_after_a_resume(
    sick: Any, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    options = {"per_device_train_batch_size": 1, "save_steps": 1, "max_steps": 4, **LORA}
    sick(0)
    sft(tiny, dataset, tmp_path / "out", **options)
    sick()
    again = {**options, "resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-2")}
    records = sft(tiny, dataset, tmp_path / "out", **again)
    assert [record["skipped_steps"] for record in records if "loss_audio" in record] == [1, 1, 1]
