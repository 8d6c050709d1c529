"""Full fine-tuning in bf16 through MS-SWIFT, without DeepSpeed or FSDP: steps arrive, a resumed run
is the same, and the log says in what weights are kept."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.processes import TIMEOUT_S, ended, running, torchrun, training, written
from helpers.sft import LORA, coded, heard, optimizer_of, sft, warnings_with, weights_of
from helpers.sharding import DEEPSPEED_ON_CPU, FSDP_ON_CPU, SHARDING
from torch import Tensor

from plugins.errors import UserError

pytestmark = pytest.mark.slow
BF16: dict[str, Any] = {"torch_dtype": "bfloat16", "bf16": "true", "fp16": "false"}
NUM_STEPS = 8
OPTIONS: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "save_steps": NUM_STEPS // 2,
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "warmup_ratio": 0,
}


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    return write_jsonl(folder / "train.jsonl", coded(tiny, corpus_rows(4)))


@pytest.fixture(scope="module")
def half(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "out"
    sft(tiny, rows, folder, **OPTIONS, **BF16)
    return folder


def moved(checkpoint: Path, start: Path) -> Tensor:
    """How far every weight has come."""
    before, moves = weights_of(start), []
    for name, weight in weights_of(checkpoint).items():
        origin = before[name].to(weight.dtype)
        moves.append((weight.double() - origin.double()).flatten())
    return torch.cat(moves)


def test_it_goes_as_far_as_in_fp32(half: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    sft(tiny, rows, tmp_path / "out", **OPTIONS)
    exact = moved(tmp_path / "out" / f"checkpoint-{NUM_STEPS}", tiny)
    ours = moved(half / f"checkpoint-{NUM_STEPS}", tiny)
    assert float((ours * exact).sum() / (exact * exact).sum()) == pytest.approx(1, abs=0.1)
    assert {weight.dtype for weight in weights_of(half / "checkpoint-8").values()} == {
        torch.bfloat16
    }


def test_resumed_it_is_the_same_to_the_bit(
    half: Path, tiny: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    middle = half / f"checkpoint-{NUM_STEPS // 2}"
    with heard(caplog):
        sft(tiny, rows, tmp_path / "out", resume_from_checkpoint=middle, **OPTIONS, **BF16)
    last = f"checkpoint-{NUM_STEPS}"
    never, resumed = weights_of(half / last), weights_of(tmp_path / "out" / last)
    for name, weight in never.items():
        assert torch.equal(weight, resumed[name]), name
    for number, state in optimizer_of(half / last).items():
        again = optimizer_of(tmp_path / "out" / last)[number]
        assert state["step"] == again["step"] == NUM_STEPS
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[moment], again[moment])
    (said,) = warnings_with(caplog, "trained weights: ")
    assert said == "trained weights: bf16, each step computed in fp32 and rounded stochastically"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "fp32"),
        ({"lora_dtype": "bfloat16"}, "bf16, each step computed in fp32"),
        ({"modules_to_save": ["audio_lm_head"]}, "fp32, and those of the base bf16, each step"),
    ],
)
def test_lora_weights_on_bf16_are_fp32(
    options: dict[str, Any],
    kept: str,
    tiny: Path,
    rows: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Unless they are asked for in bf16; whole modules have the dtype of the base."""
    wanted = {**OPTIONS, **BF16, **LORA, "target_modules": "all-linear", "max_steps": 1, **options}
    with heard(caplog):
        sft(tiny, rows, tmp_path / "out", **wanted)
    (said,) = warnings_with(caplog, "trained weights: ")
    assert said.startswith(f"trained weights: {kept}")
    assert ("stochastically" in said) == (kept != "fp32")


def test_another_optimizer_would_lose_the_steps(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="optim: 'sgd' would round most of each step"):
        sft(tiny, rows, tmp_path / "out", optim="sgd", **OPTIONS, **BF16)


# Of each rank at the end: what the optimizer works on, and the weights.
WATCHED = """
import hashlib, json, os
from plugins.trainer import HiggsAudioTrainer
train = HiggsAudioTrainer.train
def watched(self, *args, **kwargs):
    result = train(self, *args, **kwargs)
    optimizer, dtypes = self.optimizer, set()
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
        # Of ZeRO-3, which fills the groups for a step only.
        shards = getattr(optimizer, "fp32_partitioned_groups_flat", [])
        dtypes |= {{str(shard.dtype) for shard in shards}}
    for group in optimizer.param_groups:
        dtypes |= {{str(parameter.dtype) for parameter in group["params"]}}
    digest = hashlib.sha256()
    for parameter in self.model.parameters():
        if not hasattr(parameter, "to_local"):
            digest.update(parameter.detach().float().numpy().tobytes())
    seen = [type(optimizer).__name__, sorted(dtypes), digest.hexdigest()]
    with open({folder!r} + "/rank" + os.environ["RANK"], "w") as file:
        json.dump(seen, file)
    return result
HiggsAudioTrainer.train = watched
"""
LAUNCHERS: dict[str, tuple[str, Any, str]] = {
    "ddp": ("", None, "bf16, each step"),
    "zero2": (DEEPSPEED_ON_CPU, {"stage": 2, "overlap_comm": False}, "fp32, DeepSpeed's"),
    "zero3": (DEEPSPEED_ON_CPU, {"stage": 3, "overlap_comm": False}, "fp32, DeepSpeed's"),
    "fsdp2": (FSDP_ON_CPU, None, "fp32, by FSDP"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks(launcher: str, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """What is said of each launcher is so; under DDP, where each rank rounds for itself, the ranks
    stay equal."""
    on_cpu, zero, kept = LAUNCHERS[launcher]
    if zero and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: DS_BUILD_OPS=0 pip install deepspeed")
    plugin = written(tmp_path / "watched.py", WATCHED.format(folder=str(tmp_path)) + on_cpu)
    options = {**OPTIONS, **BF16, "tuner_type": "full", "max_steps": 3, "save_strategy": "no"}
    if zero:
        config = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, **SHARDING}
        options["deepspeed"] = json.dumps(config)
    if launcher == "fsdp2":
        options["fsdp"] = "fsdp2"
    command = torchrun(*training(tiny, rows, tmp_path / "out", plugin, **options))
    env = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    with running(*command, **env) as process:
        output = ended(process, TIMEOUT_S)
    assert process.returncode == 0, output[-5000:]
    assert f"trained weights: {kept}" in output
    ranks = [json.loads((tmp_path / f"rank{number}").read_text()) for number in range(2)]
    optimizer, dtypes, _ = ranks[0]
    assert (optimizer == "StochasticAdamW") == (launcher == "ddp")
    assert dtypes == ["torch.bfloat16" if launcher == "ddp" else "torch.float32"]
    assert ranks[0] == ranks[1]
