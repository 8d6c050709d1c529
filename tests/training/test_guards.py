"""What goes wrong in the middle of a training: sick numbers, full disks, exhausted memory. Signals
and dead processes: `test_guard_processes.py`."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from helpers.sft import (
    BIN,
    IN_ORDER,
    LORA,
    check_untouched,
    heard,
    log_of,
    sft,
    weights_of,
    with_codes,
)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()


@pytest.fixture(scope="module")
def dataset(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_codes(tiny, tmp_path_factory.mktemp("data") / "train.jsonl")


# --- steps whose numbers are sick ---


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
    options = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "save_steps": 1,
    }
    options |= {**IN_ORDER, "learning_rate": 1e-2, **LORA}
    with heard(caplog):
        records = sft(tiny, dataset, tmp_path / "out", **options)
    check_untouched(tmp_path / "out" / "checkpoint-1", tmp_path / "out" / "checkpoint-2")
    warnings = [
        record.getMessage() for record in caplog.records if "skipped" in record.getMessage()
    ]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"step 2 skipped: loss {value}; rows: ")
    assert warnings[0].endswith("train.jsonl:4"), "row 3 is of the same step, and healthy"
    first, second, third = records[:3]
    assert first["skipped_steps"] == first["skipped_rows"] == 0
    assert third["skipped_rows"] == 2
    assert second["skipped_steps"] == third["skipped_steps"] == 1
    assert not {"loss", "grad_norm", "loss_audio"} & second.keys(), (
        "nothing was learned in that step"
    )
    assert third["loss"] > 0
    moved, before = (
        weights_of(tmp_path / "out" / "checkpoint-3"),
        weights_of(tmp_path / "out" / "checkpoint-2"),
    )
    assert not all(torch.equal(moved[name], before[name]) for name in moved)


def test_a_logged_mean_is_one_over_the_steps_that_were_taken(
    sick: Any, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 0.0,
        "logging_steps": 4,
        **LORA,
    }
    options |= {**IN_ORDER, "lora_dropout": 0}
    sick(1)
    (record,) = (
        record for record in sft(tiny, dataset, tmp_path / "mean", **options) if "loss" in record
    )
    sick()
    each = sft(tiny, dataset, tmp_path / "each", **{**options, "logging_steps": 1})
    assert record["skipped_steps"] == 1
    taken = [each[step]["loss"] for step in (0, 2, 3)]
    assert record["loss"] == pytest.approx(sum(taken) / 3, rel=1e-5)


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
            next(parameter for parameter in model.parameters() if parameter.grad is not None).grad[
                0
            ] = float("inf")
        return loss

    monkeypatch.setattr(HiggsAudioTrainer, "training_step", training_step)
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "save_steps": 1,
    }
    options |= IN_ORDER
    with heard(caplog):
        sft(tiny, dataset, tmp_path / "out", **options, **LORA)
    check_untouched(tmp_path / "out" / "checkpoint-1", tmp_path / "out" / "checkpoint-2")
    (warning,) = (
        record.getMessage() for record in caplog.records if "skipped" in record.getMessage()
    )
    assert re.fullmatch(
        r"step 2 skipped: gradients .*; rows: \S+train.jsonl:3, \S+train.jsonl:4", warning
    )


def test_three_sick_steps_in_a_row_end_the_run_with_one_line(
    sick: Any, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    from plugins.errors import UserError

    sick(0, 2, 3, 4, 5)  # the first one alone does not count
    options = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 8,
        "save_steps": 1,
    }
    options |= IN_ORDER
    with pytest.raises(
        UserError, match=r"^training: loss nan in 3 steps in a row.*train\.jsonl:5\).*lower"
    ) as caught:
        sft(tiny, dataset, tmp_path / "out", **options, **LORA)
    assert "\n" not in str(caught.value)
    check_untouched(tmp_path / "out" / "checkpoint-2", tmp_path / "out" / "checkpoint-4")
    assert not (tmp_path / "out" / "checkpoint-5").exists()


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


# --- memory ---


def test_out_of_memory_is_one_line_with_what_can_be_lowered(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    from plugins.errors import UserError
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
    for part in (
        "per_device_train_batch_size 2", "max_length 1500", "max_audio_length 1024", "gradient_checkpointing",
        "configs/", "train.jsonl:1, ", "Tried to allocate 2.00 GiB",
    ):  # fmt: skip
        assert part in line
    with pytest.raises(UserError) as caught:
        sft(tiny, dataset, tmp_path / "other", **{**options, "gradient_checkpointing": "true"})
    assert "gradient_checkpointing" not in str(caught.value)


# --- disk ---


def test_a_checkpoint_that_does_not_fit_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    from plugins.errors import UserError
    from plugins.training import disk as disk_guard

    usage = disk_guard.shutil.disk_usage("/")
    monkeypatch.setattr(
        disk_guard.shutil, "disk_usage", lambda path: usage._replace(free=20 * 2**20)
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
    from plugins.training import disk as disk_guard

    estimates: list[int] = []
    original = disk_guard.checkpoint_bytes
    monkeypatch.setattr(disk_guard, "_SMALL_FILES_BYTES", small_files_bytes)
    monkeypatch.setattr(
        disk_guard,
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
    from plugins.errors import UserError
    from plugins.training import disk as disk_guard
    from plugins.training.saves import damage

    usage, calls = disk_guard.shutil.disk_usage("/"), iter(range(100))
    monkeypatch.setattr(
        disk_guard.shutil,
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
    from plugins.errors import UserError
    from plugins.trainer import HiggsAudioTrainer
    from plugins.training.saves import damage

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
    assert [record["global_step/max_steps"] for record in records if "loss_audio" in record] == [
        "1/3",
        "3/3",
    ]
    (error,) = (
        record.getMessage()
        for record in caplog.records
        if "cannot be written" in record.getMessage()
    )
    assert error.startswith(f"{log}: cannot be written (File too large); training goes on")
    state = json.loads(
        (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8")
    )
    assert [record["step"] for record in state["log_history"] if "loss_audio" in record] == [
        1,
        2,
        3,
    ]


# --- the line that goes on ---


@pytest.fixture
def _active(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of this interpreter, as a shell has it after `activate`."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")


PYTHON_FILES = {
    "swift": "/site-packages/swift/cli/sft.py",
    "higgs-audio": str(ROOT / "plugins" / "train.py"),
}


@pytest.mark.usefixtures("_active")
@pytest.mark.parametrize("name", PYTHON_FILES)
def test_the_resume_command_is_what_was_typed_but_for_the_folder(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where a shell finds another program of that name, or none, it is the one of this
    environment."""
    from plugins.training.relaunch import resume_command

    typed = [
        "--model",
        "a b",
        "--output_dir",
        "out",
        "--add_version",
        "true",
        "--lora_rank",
        "8",
        "--val",
        "x",
        "y",
    ]
    line = resume_command(
        [PYTHON_FILES[name], *typed, "--resume_from_checkpoint", "old"], Path("out/v0/checkpoint-7")
    )
    assert line == (
        f"{name} sft --model 'a b' --lora_rank 8 --val x y"
        " --resume_from_checkpoint out/v0/checkpoint-7 --output_dir out/v0 --add_version false"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    assert resume_command([PYTHON_FILES[name]], Path("out/checkpoint-7")).startswith(
        f"{BIN / name} sft --resume"
    )


@pytest.mark.usefixtures("_active")
def test_the_resume_command_names_the_yaml_file_processes_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-SWIFT puts the flags in the place of the file; what the file says in `ENV:` would be lost
    with it."""
    from plugins.training.relaunch import resume_command

    config = tmp_path / "run.yaml"
    config.write_text("ENV:\n  OMP_NUM_THREADS: 1\nmodel: m\nlora_rank: 8\n", encoding="utf-8")
    for variable, value in {
        "SWIFT_CONFIG_FILE": str(config), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "AUDIO_LEARNING_RATE": "0.1",
        "OMP_NUM_THREADS": "1", "AUDIO_LOSS_WEIGHT": "2", "GROUP_WORLD_SIZE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    argv = [
        PYTHON_FILES["swift"],
        "--model",
        "m",
        "--lora_rank",
        "8",
        "--model_kwargs",
        '{"audio_loss_weight": 2}',
    ]
    words = shlex.split(resume_command(argv, Path("out/checkpoint-7")))
    assert words[:6] == [
        "AUDIO_LEARNING_RATE=0.1",
        "NPROC_PER_NODE=4",
        "swift",
        "sft",
        str(config),
        "--model_kwargs",
    ]


@pytest.mark.usefixtures("_active")
def test_the_real_command_is_what_was_typed_but_for_the_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a flag, as a variable, in `--model_kwargs`, or in the YAML file, which then cannot stand
    in the command."""
    from plugins.training.relaunch import real_command

    monkeypatch.setenv("DRY_RUN", "true")  # where each of them ends up
    program, typed = PYTHON_FILES["higgs-audio"], ["--model", "m", "--lora_rank", "8"]
    assert (
        real_command([program, *typed, "--dry_run", "true"])
        == "higgs-audio sft --model m --lora_rank 8"
    )
    assert (
        real_command([program, "--dry_run=true", *typed])
        == "higgs-audio sft --model m --lora_rank 8"
    )
    kwargs = ["--model_kwargs", '{"dry_run": true, "audio_loss_weight": 2}']
    line = real_command([PYTHON_FILES["swift"], *typed, *kwargs])
    assert shlex.split(line) == [
        "swift",
        "sft",
        *typed,
        "--model_kwargs",
        '{"audio_loss_weight": 2}',
    ]
    config = tmp_path / "run.yaml"
    monkeypatch.setenv("SWIFT_CONFIG_FILE", str(config))
    config.write_text("model: m\nlora_rank: 8\n", encoding="utf-8")
    assert real_command([program, *typed, "--dry_run"]) == f"higgs-audio sft {config}"
    config.write_text("model: m\nlora_rank: 8\ndry_run: true\n", encoding="utf-8")
    assert (
        real_command([program, *typed, "--dry_run", "true"])
        == "higgs-audio sft --model m --lora_rank 8"
    )


@pytest.mark.parametrize("num_bytes", [75, 76])
def test_a_temporary_folder_too_long_for_workers_is_refused(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where multiprocessing's own sockets fail; torch would print that and wait for ever."""
    from plugins.errors import UserError
    from plugins.training import guards

    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        folder = Path(base, "x" * (num_bytes - len(base) - 1))
        folder.mkdir()
        listen = (
            "from multiprocessing.connection import Listener; Listener(family='AF_UNIX').close()"
        )
        env = {**os.environ, "TMPDIR": str(folder)}
        works = (
            subprocess.run([sys.executable, "-c", listen], env=env, capture_output=True).returncode
            == 0
        )
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        guards.check_temporary_folder(0)
        with (
            nullcontext()
            if works
            else pytest.raises(UserError, match=r"TMPDIR: .* too long for the sockets")
        ):
            guards.check_temporary_folder(1)
    assert works == (num_bytes == 75)


def test_named_rows_travel_into_spawned_workers(tiny: Path) -> None:
    from plugins.training.guards import NamedRows

    collator = pickle.loads(pickle.dumps(NamedRows(len)))
    assert collator.collate is len
