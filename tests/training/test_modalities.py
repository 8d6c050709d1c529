"""Ranks with different modalities: a step in which one rank has only text and the other only
speech.

Real processes over gloo, through MS-SWIFT's own launcher. Parameters that a rank does not touch are
where DDP waits for ever, ZeRO-3 and FSDP2 gather what nobody else asks for, and gradients get lost.
Clips are encoded while training, so that each rank builds its own codec under the sharding of the
run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, corpus_rows, write_jsonl
from helpers.sft import IN_ORDER, REGISTER, flags, log_of
from helpers.sharding import DEEPSPEED_ON_CPU, FSDP_ON_CPU, SHARDING

pytestmark = pytest.mark.slow
TIMEOUT_S = 240  # DeepSpeed compiles an operator on its first start
# Writes down, per micro-batch, whether it had speech and what the model was wrapped in.
WITNESS = """
import os
from plugins.trainer import HiggsAudioTrainer
original_loss = HiggsAudioTrainer.compute_loss
def compute_loss(self, model, inputs, *args, **kwargs):
    kind = "speech" if inputs["audio_input_ids"].shape[1] else "text"
    with open({folder!r} + "/rank" + os.environ.get("RANK", "0"), "a") as file:
        file.write(kind + " " + type(model).__name__ + "\\n")
    return original_loss(self, model, inputs, *args, **kwargs)
if original_loss.__module__ == "plugins.trainer":  # MS-SWIFT may import this file twice
    HiggsAudioTrainer.compute_loss = compute_loss
"""


def launch(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """`command` in a process group of its own, which ends with the test whatever it waits for."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **env}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, start_new_session=True, **pipes
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(
                f"hangs: still busy after {TIMEOUT_S} s\n{process.communicate()[0][-3000:]}"
            )
    return subprocess.CompletedProcess(command, process.returncode, output, "")


Train = Callable[..., tuple[list[dict[str, Any]], list[list[str]]]]


@pytest.fixture(scope="module")
def train(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Two steps of four rows: the log, and what each rank met. Two processes of two rows, or one of
    four."""
    clips = corpus_rows(4)

    def text(word: str) -> dict[str, Any]:
        question = {"role": "user", "content": f"Say {word}."}
        return {"messages": [question, {"role": "assistant", "content": f"{word} there."}]}

    # MS-SWIFT deals rows out one by one: rank 0 has speech, then text, and rank 1 text, then
    # speech.
    rows = [clips[0], text("hi"), clips[1], text("ho"), text("he"), clips[2], text("ha"), clips[3]]
    dataset = write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", rows)
    # DeepSpeed compiles here: in the user's folder it waits for whoever compiles there, for ever if
    # that was killed.
    built = str(tmp_path_factory.mktemp("built"))

    def run(
        processes: int, plugin: str = "", **options: Any
    ) -> tuple[list[dict[str, Any]], list[list[str]]]:
        folder = tmp_path_factory.mktemp("run")
        (folder / "witness.py").write_text(
            WITNESS.format(folder=str(folder)) + plugin, encoding="utf-8"
        )
        options = {"per_device_train_batch_size": 4 // processes, **IN_ORDER, **options}
        options |= {"gradient_accumulation_steps": 1, "gradient_checkpointing": "false"}
        options |= {"fp16": "false", "save_strategy": "no"}
        options["external_plugins"] = [REGISTER, folder / "witness.py"]
        env = {"TORCH_EXTENSIONS_DIR": built}
        if processes > 1:
            options["ddp_backend"] = "gloo"
            env["NPROC_PER_NODE"] = str(processes)
        arguments = flags(tiny, dataset, folder / "out", **options)
        done = launch([sys.executable, "-m", "swift.cli.main", "sft", *arguments], **env)
        assert done.returncode == 0, done.stdout[-5000:]
        met = []
        for rank in range(processes):
            met.append((folder / f"rank{rank}").read_text(encoding="utf-8").splitlines())
        return [record for record in log_of(folder / "out") if "grad_norm" in record], met

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> list[dict[str, Any]]:
    records, met = train(1)
    assert met == [["speech HiggsAudioV2ForConditionalGeneration"] * 2]
    return records


def check(
    train: Train, alone: list[dict[str, Any]], wrapper: str, plugin: str = "", **options: Any
) -> None:
    records, met = train(2, plugin, **options)
    assert met == [
        [f"speech {wrapper}", f"text {wrapper}"],
        [f"text {wrapper}", f"speech {wrapper}"],
    ]
    assert len(records) == len(alone) == 2
    for record, expected in zip(records, alone, strict=True):
        for name in ("loss", "loss_text", "loss_audio", "grad_norm"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize("find_unused", ["false", "true"])
def test_ddp(find_unused: str, train: Train, alone: list[dict[str, Any]]) -> None:
    check(train, alone, "DistributedDataParallel", ddp_find_unused_parameters=find_unused)


def test_ddp_with_lora(train: Train, alone: list[dict[str, Any]]) -> None:
    """Adapters change nothing before the first step, so that its loss is that of the whole
    model."""
    lora = {"tuner_type": "lora", "target_modules": "all-linear", "lora_dropout": 0}
    records, met = train(2, ddp_find_unused_parameters="false", **lora)
    kinds = [line.split()[0] for line in (*met[0], *met[1])]
    assert kinds == ["speech", "text", "text", "speech"]
    assert records[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
    assert records[1]["loss"] != records[0]["loss"]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage: int, train: Train, alone: list[dict[str, Any]]) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: DS_BUILD_OPS=0 pip install deepspeed")
    config = json.dumps({"zero_optimization": {"stage": stage, "overlap_comm": False}, **SHARDING})
    check(train, alone, "DeepSpeedEngine", DEEPSPEED_ON_CPU, deepspeed=config)


def test_fsdp2(train: Train, alone: list[dict[str, Any]]) -> None:
    """With the preset's `cpu_ram_efficient_loading` the codec of all ranks but the first was empty,
    in silence."""
    check(train, alone, "FSDPHiggsAudioV2ForConditionalGeneration", FSDP_ON_CPU, fsdp="fsdp2")
