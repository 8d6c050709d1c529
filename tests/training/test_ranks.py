"""Several ranks: one that dies, and sick steps of one. Real processes, on the CPU over gloo."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from faults.runs import steps_of
from helpers.processes import (
    SLOW,
    TIMEOUT_S,
    ended,
    from_first_traceback,
    rank,
    running,
    torchrun,
    training,
    until_logged,
    written,
)
from helpers.sft import IN_ORDER, weights_of
from helpers.sharding import DEEPSPEED_ON_CPU, FSDP_ON_CPU, SHARDING

from plugins.files.checkpoints import damage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slow_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plugin") / "slow_steps.py", SLOW)


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


# The first rank takes 3 s to write args.json anew, which is empty meanwhile: all look after one.
SLOW_WRITER = """
import time
from plugins import trainer
original_settle, original_train = trainer._settle_output_folder, trainer.HiggsAudioTrainer.train
def settle(folder, settings):
    path = folder / "args.json"
    text = path.read_text()
    path.write_text("")
    time.sleep(3)
    path.write_text(text)
    original_settle(folder, settings)
def train(self, *args, **kwargs):
    time.sleep(1)
    return original_train(self, *args, **kwargs)
if original_settle.__module__ == "plugins.trainer":
    trainer._settle_output_folder, trainer.HiggsAudioTrainer.train = settle, train
"""


def test_ranks_wait_for_the_settings_that_the_first_one_writes(
    tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    """Each of them compares its own with a checkpoint's. One that came early found half a file."""
    plugin = written(tmp_path / "slow_writer.py", SLOW_WRITER)
    options: dict[str, Any] = {"max_steps": 1, "model_kwargs": '{"preflight": false}'}
    with running(*torchrun(*training(tiny, dataset, tmp_path / "out", plugin, **options))) as run:
        output = ended(run, TIMEOUT_S)
    assert run.returncode == 0, from_first_traceback(output)


# On rank 1 only, in the second step; and what the weights of this rank are before each step.
INFECTED = """
import hashlib, os
from plugins.ms_swift.template import HiggsAudioTemplate
from plugins.trainer import HiggsAudioTrainer
original_loss = HiggsAudioTemplate.compute_sft_loss
original_step = HiggsAudioTrainer.training_step
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
    HiggsAudioTemplate.compute_sft_loss = compute_sft_loss
    HiggsAudioTrainer.training_step = training_step
"""
WRAPPERS = {
    "ddp": ("DistributedDataParallel", "", {}),
    "zero2": ("DeepSpeedEngine", DEEPSPEED_ON_CPU, {"stage": 2, "overlap_comm": False}),
    "zero3": ("DeepSpeedEngine", DEEPSPEED_ON_CPU, {"stage": 3, "overlap_comm": False}),
    "fsdp2": ("FSDPHiggsAudioV2ForConditionalGeneration", FSDP_ON_CPU, {}),
}


@pytest.mark.parametrize("sharding", WRAPPERS)
def test_a_sick_step_of_one_rank_is_skipped_by_all(
    sharding: str, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    wrapper, on_cpu, zero = WRAPPERS[sharding]
    if zero and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: DS_BUILD_OPS=0 pip install deepspeed")
    plugin = written(tmp_path / "infected.py", INFECTED.format(folder=str(tmp_path)) + on_cpu)
    options: dict[str, Any] = {"max_steps": 3, "tuner_type": "full", "fp16": "false"}
    options |= {"warmup_ratio": 0, "gradient_accumulation_steps": 1, **IN_ORDER}
    options |= {"save_strategy": "steps", "save_steps": 3}
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
    records = steps_of(tmp_path / "out" / "logging.jsonl")
    assert [record.get("skipped_steps") for record in records] == [0, 1, 1]
    # From transformers 5.23 on every rank is told to save: one of them writes.
    (checkpoint,) = (tmp_path / "out").glob("*checkpoint-*")
    assert damage(checkpoint) is None
    if sharding in {"ddp", "zero2"}:  # the others leave shards of what is in training
        saved, trained = weights_of(checkpoint), weights_of(tiny)
        assert {name: weight.shape for name, weight in saved.items()} == {
            name: weight.shape for name, weight in trained.items()
        }
