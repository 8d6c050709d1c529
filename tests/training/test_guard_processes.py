"""Ranks and workers that die, and sick steps on several ranks: real processes, on the CPU over
gloo."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.runs import steps_of
from helpers.processes import (
    SLOW,
    TIMEOUT_S,
    TRAIN,
    ended,
    rank,
    running,
    torchrun,
    training,
    until_logged,
    written,
)
from helpers.sft import IN_ORDER, with_codes
from test_modalities import DEEPSPEED_ON_CPU, FSDP_ON_CPU, SHARDING


@pytest.fixture(scope="module")
def dataset(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_codes(tiny, tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture(scope="module")
def slow_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plugin") / "slow_steps.py", SLOW)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(
    tiny: Path, dataset: Path, slow_steps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with running(*torchrun(*training(tiny, dataset, out, slow_steps)), SLOW_S="0.5") as process:
        until_logged(out, 1, process)
        rank(1, process).kill()
        output = ended(process, 60)  # torchrun gives the others 30 s
    assert process.returncode not in {0, None}
    assert "SIGKILL" in output


DEADLY_WORKER = """
import os
from torch.utils.data import get_worker_info
from plugins.ms_swift.template import HiggsAudioTemplate
original_collator = HiggsAudioTemplate._data_collator
def collator(self, *args, **kwargs):
    self.batches = getattr(self, "batches", 0) + 1
    if get_worker_info() is not None and self.batches > 20:  # the preflight has counted some
        os._exit({code})
    return original_collator(self, *args, **kwargs)
if original_collator.__module__ != __name__:
    HiggsAudioTemplate._data_collator = collator
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "ranks"), [(1, 1), (0, 1), (1, 2)])
def test_a_worker_that_ends_ends_the_run(
    code: int, ranks: int, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    deadly = written(tmp_path / "deadly_worker.py", DEADLY_WORKER.format(code=code))
    arguments = training(tiny, dataset, tmp_path / "out", deadly, dataloader_num_workers=1)
    with running(
        *(torchrun(*arguments) if ranks > 1 else [sys.executable, TRAIN, *arguments])
    ) as process:
        output = ended(process, TIMEOUT_S)
    assert process.returncode not in {0, None}
    assert "DataLoader worker" in output
    assert "exited unexpectedly" in output


FAILING = """
from plugins.trainer import HiggsAudioTrainer
def training_step(self, *args, **kwargs):
    raise LookupError("planted")
HiggsAudioTrainer.training_step = training_step
"""


@pytest.mark.slow
def test_an_exception_does_not_wait_for_its_workers(
    tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    """Python keeps the traceback of the last exception, and with it the loader whose workers
    outlive signals."""
    plugin = written(tmp_path / "failing.py", FAILING)
    arguments = training(tiny, dataset, tmp_path / "out", plugin, dataloader_num_workers=2)
    with running(sys.executable, TRAIN, *arguments) as process:
        output = ended(process, 60)
    assert process.returncode == 1
    assert "LookupError: planted" in output


# On rank 1 only, in the second step; and what the weights of this rank are before each step.
INFECTED = """
import hashlib, os
from plugins.ms_swift.template import HiggsAudioTemplate
from plugins.trainer import HiggsAudioTrainer
original_loss, original_step = HiggsAudioTemplate.compute_sft_loss, HiggsAudioTrainer.training_step
def compute_sft_loss(self, *args, trainer, **kwargs):
    outputs = original_loss(self, *args, trainer=trainer, **kwargs)
    if os.environ["RANK"] == "1" and trainer.state.global_step == 1:
        outputs.loss = outputs.loss * float("nan")
    return outputs
def training_step(self, model, *args, **kwargs):
    digest = hashlib.sha256()
    for parameter in model.parameters():
        local = getattr(parameter, "ds_tensor", parameter)
        local = local.to_local() if hasattr(local, "to_local") else local
        digest.update(local.detach().cpu().contiguous().numpy().tobytes())
    with open({folder!r} + "/weights" + os.environ["RANK"], "a") as file:
        file.write(type(model).__name__ + " " + digest.hexdigest() + "\\n")
    return original_step(self, model, *args, **kwargs)
if original_loss.__module__ == "plugins.ms_swift.template":
    HiggsAudioTemplate.compute_sft_loss, HiggsAudioTrainer.training_step = compute_sft_loss, training_step
"""
WRAPPERS = {
    "ddp": ("DistributedDataParallel", "", {}),
    "zero2": ("DeepSpeedEngine", DEEPSPEED_ON_CPU, {"stage": 2, "overlap_comm": False}),
    "zero3": ("DeepSpeedEngine", DEEPSPEED_ON_CPU, {"stage": 3, "overlap_comm": False}),
    "fsdp2": ("FSDPHiggsAudioV2ForConditionalGeneration", FSDP_ON_CPU, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", WRAPPERS)
def test_a_sick_step_of_one_rank_is_skipped_by_all(
    sharding: str, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    wrapper, on_cpu, zero = WRAPPERS[sharding]
    if zero and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: DS_BUILD_OPS=0 pip install deepspeed")
    plugin = written(tmp_path / "infected.py", INFECTED.format(folder=str(tmp_path)) + on_cpu)
    options: dict[str, Any] = {
        "max_steps": 3,
        "tuner_type": "full",
        "fp16": "false",
        "warmup_ratio": 0,
    }
    options |= {"gradient_accumulation_steps": 1, **IN_ORDER}
    if zero:
        options["deepspeed"] = json.dumps({"zero_optimization": zero, **SHARDING})
    if sharding == "fsdp2":
        options["fsdp"] = "fsdp2"
    command = torchrun(*training(tiny, dataset, tmp_path / "out", plugin, **options))
    env = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    with running(*command, **env) as process:
        output = ended(process, TIMEOUT_S)
    assert process.returncode == 0, output[-5000:]
    for number in range(2):
        before = (tmp_path / f"weights{number}").read_text(encoding="utf-8").splitlines()
        assert [line.split()[0] for line in before] == [wrapper] * 3
        assert before[0] != before[1] == before[2]
    (warning,) = (line for line in output.splitlines() if "step 2 skipped" in line)
    assert "loss nan; rows: " in warning
    assert warning.rstrip().endswith("train.jsonl:4"), "rank 0 has row 3"
    assert [
        record.get("skipped_steps") for record in steps_of(tmp_path / "out" / "logging.jsonl")
    ] == [0, 1, 1]
