"""A full disk, GPU memory that is exhausted: what was saved is kept, and one line says what to
do."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sft import IN_ORDER, LORA, heard, log_of, sft, warnings_with

from plugins.errors import UserError
from plugins.files.checkpoints import damage
from plugins.training import exhausted

# --- memory ---


def test_out_of_memory_is_one_line_with_what_can_be_lowered(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    from plugins.ms_swift.template import HiggsAudioTemplate

    def exhausted(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."
        )

    monkeypatch.setattr(HiggsAudioTemplate, "compute_sft_loss", exhausted)
    options = {"per_device_train_batch_size": 2, "max_length": 1500, **IN_ORDER, **LORA}
    with pytest.raises(UserError) as caught:
        sft(tiny, dataset, tmp_path / "out", **options)
    line = str(caught.value)
    assert "\n" not in line
    for part in ("train.jsonl:1, ", "Tried to allocate 2.00 GiB", "configs/"):
        assert part in line
    for lever in ("per_device_train_batch_size 2", "max_length 1500", "max_audio_length 1024"):
        assert lever in line
    assert "gradient_checkpointing" in line
    with pytest.raises(UserError) as caught:
        sft(tiny, dataset, tmp_path / "other", **{**options, "gradient_checkpointing": "true"})
    assert "gradient_checkpointing" not in str(caught.value)


# --- disk ---


def test_a_checkpoint_that_does_not_fit_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, dataset: Path, tmp_path: Path
) -> None:

    usage = exhausted.shutil.disk_usage("/")
    monkeypatch.setattr(
        exhausted.shutil, "disk_usage", lambda path: usage._replace(free=20 * 2**20)
    )
    with pytest.raises(
        UserError, match=r"^disk: output_dir: '.*out' has 0\.02 GiB free.*0\.\d\d GiB"
    ):
        sft(tiny, dataset, tmp_path / "out", **LORA)
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert not (tmp_path / "out" / "logging.jsonl").exists() or not log_of(tmp_path / "out")


@pytest.mark.parametrize(("tuner", "small_files_bytes"), [("full", 2**20), ("lora", 2**18)])
def test_a_checkpoint_takes_no_more_than_was_estimated(
    tuner: str,
    small_files_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    """And not much less: a margin of gigabytes would refuse runs that fit."""

    estimates: list[int] = []
    original = exhausted.checkpoint_bytes
    monkeypatch.setattr(exhausted, "_SMALL_FILES_BYTES", small_files_bytes)
    monkeypatch.setattr(
        exhausted,
        "checkpoint_bytes",
        lambda trainer: estimates.append(original(trainer)) or estimates[-1],
    )
    sft(tiny, dataset, tmp_path / "out", max_steps=1, **{**LORA, "tuner_type": tuner})
    checkpoint = tmp_path / "out" / "checkpoint-1"
    actual = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert 0.7 * estimates[-1] < actual <= estimates[-1]


def test_a_disk_that_fills_up_between_two_saves_costs_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, dataset: Path, tmp_path: Path
) -> None:

    usage, calls = exhausted.shutil.disk_usage("/"), iter(range(100))
    monkeypatch.setattr(
        exhausted.shutil,
        "disk_usage",
        lambda path: usage._replace(free=usage.free if next(calls) < 2 else 0),
    )
    with pytest.raises(UserError, match="disk: output_dir"):
        sft(
            tiny,
            dataset,
            tmp_path / "out",
            **{**LORA, "max_steps": 4, "save_steps": 1, "save_total_limit": 1},
        )
    assert damage(tmp_path / "out" / "checkpoint-1") is None
    assert not (tmp_path / "out" / "checkpoint-2").exists()


@pytest.mark.parametrize("num_bytes", [20_000, 200_000], ids=["adapter", "optimizer"])
def test_a_write_that_fails_leaves_the_checkpoints_before_it(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    """No file may become larger than `num_bytes`, as on a disk that fills up, from the second save
    on."""
    from plugins.trainer import HiggsAudioTrainer

    original = HiggsAudioTrainer.save_model
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_model(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        original(self, *args, **kwargs)

    monkeypatch.setattr(HiggsAudioTrainer, "save_model", save_model)
    out = tmp_path / "out"
    try:
        with pytest.raises(UserError) as caught:
            sft(
                tiny,
                dataset,
                out,
                **{**LORA, "max_steps": 4, "save_steps": 1, "save_total_limit": 1},
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = str(caught.value)
    assert line.startswith(f"{out / 'checkpoint-2'}: cannot be written (")
    assert "\n" not in line
    assert damage(out / "checkpoint-1") is None
    assert not (out / "checkpoint-2").exists()


def test_a_log_that_cannot_be_written_is_said_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from plugins.trainer import HiggsAudioTrainer

    original = HiggsAudioTrainer.log
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = tmp_path / "out" / "logging.jsonl"

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == 2:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (log.stat().st_size + 10, limits[1])
            )  # room for half a line
        try:
            original(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(HiggsAudioTrainer, "log", full)
    with heard(caplog):
        records = sft(tiny, dataset, tmp_path / "out", **{**LORA, "max_steps": 3})
    steps = [record for record in records if "loss_audio" in record]
    assert [record["global_step/max_steps"] for record in steps] == ["1/3", "3/3"]
    (error,) = warnings_with(caplog, "cannot be written")
    assert error.startswith(f"{log}: cannot be written (File too large); training goes on")
    state_file = tmp_path / "out" / "checkpoint-3" / "trainer_state.json"
    history = json.loads(state_file.read_text(encoding="utf-8"))["log_history"]
    assert [record["step"] for record in history if "loss_audio" in record] == [1, 2, 3]
