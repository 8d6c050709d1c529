"""Signals, ranks and workers that die, and sick steps on several ranks: real processes, on the CPU over gloo."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from faults.runs import steps_of
from sft import BIN, REGISTER, flags, sft
from test_guards import IN_ORDER, LORA, check_untouched, with_codes
from test_modalities import DEEPSPEED_ON_CPU, FSDP_ON_CPU, SHARDING

TIMEOUT_S = 240
SLOW = """
import os, time
from plugins.trainer import HiggsAudioTrainer
original_step = HiggsAudioTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step >= int(os.environ.get("SLOW_FROM", "0")):
        time.sleep(float(os.environ.get("SLOW_S", "0")))
    return original_step(self, *args, **kwargs)
if original_step.__module__ != __name__:  # MS-SWIFT may import this file twice
    HiggsAudioTrainer.training_step = training_step
"""
OPTIONS = {**LORA, "max_steps": 12, "per_device_train_batch_size": 1, "save_strategy": "no", "learning_rate": 1e-3}
TRAIN = str(ROOT / "plugins" / "train.py")


@pytest.fixture(scope="module")
def dataset(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_codes(tiny, tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture(scope="module")
def slow_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plugin") / "slow_steps.py", SLOW)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def running(*command: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process group of its own, of which nothing is left afterwards."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", **env}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until_logged(out: Path, num_lines: int, process: subprocess.Popen[str]) -> None:
    log, end = out / "logging.jsonl", time.monotonic() + TIMEOUT_S
    while not log.is_file() or log.read_text(encoding="utf-8").count("\n") < num_lines:
        if process.poll() is not None or time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"no {num_lines} steps were logged\n{process.communicate()[0][-3000:]}")
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The output of a process, and of its descendants, that end in time."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still there after {timeout_s} s\n{process.communicate()[0][-3000:]}")
    return output


def training(model: Path, rows: Path, out: Path, *plugins: Path, **options: Any) -> list[str]:
    return flags(model, rows, out, **{**OPTIONS, "external_plugins": [REGISTER, *plugins], **options})


def torchrun(*arguments: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    return [*launcher, TRAIN, *arguments, "--ddp_backend", "gloo"]


def rank(number: int, launcher: subprocess.Popen[str]) -> psutil.Process:
    (found,) = (
        child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == str(number)
    )
    return found


def resumed(output: str) -> str:
    """The printed line, after a shell has run it."""
    command = output.split("resume with\n", 1)[1].splitlines()[0]
    with running("bash", "-c", command) as process:
        text = ended(process, TIMEOUT_S)
    assert process.returncode == 0, text[-3000:]
    return command


def stopped_at(out: Path) -> int:
    from plugins.checkpoints import damage

    (checkpoint,) = out.glob("checkpoint-*")
    assert damage(checkpoint) is None
    return int(checkpoint.name.partition("-")[2])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number: int,
    tiny: Path,
    dataset: Path,
    slow_steps: Path,
    tmp_path: Path,
) -> None:
    """To the bit: the resumed run ends where one ends that nobody has disturbed."""
    out, saved = tmp_path / "out", {"save_strategy": "steps", "save_steps": 12}
    with running(sys.executable, TRAIN, *training(tiny, dataset, out, slow_steps, **saved), SLOW_S="0.3") as process:
        until_logged(out, 2, process)
        process.send_signal(number)
        output = ended(process, 60)
    assert process.returncode == 75, output[-3000:]
    assert "Traceback" not in output
    assert 2 <= stopped_at(out) < 12
    assert resumed(output).startswith("higgs-audio sft ")
    sft(tiny, dataset, tmp_path / "whole", **{**OPTIONS, **saved})
    check_untouched(tmp_path / "whole" / "checkpoint-12", out / "checkpoint-12")
    assert steps_of(out / "logging.jsonl") == steps_of(tmp_path / "whole" / "logging.jsonl")


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tiny: Path, dataset: Path, slow_steps: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = {"SLOW_FROM": "1", "SLOW_S": "15"}
    with running(sys.executable, TRAIN, *training(tiny, dataset, out, slow_steps), **slow) as process:
        until_logged(out, 1, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(3)
        assert process.poll() is None, "one step of 15 s"
        process.send_signal(signal.SIGTERM)
        ended(process, 8)
    assert process.returncode == -signal.SIGTERM
    assert not list(out.glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "rank"])
def test_a_signal_to_the_launcher_or_to_one_rank_stops_all_of_them_alike(
    who: str,
    tiny: Path,
    dataset: Path,
    slow_steps: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    command = torchrun(*training(tiny, dataset, out, slow_steps, dataloader_num_workers=1))
    with running(*command, SLOW_S="0.5") as process:
        until_logged(out, 2, process)
        if who == "launcher":
            process.send_signal(signal.SIGTERM)
        else:
            rank(1, process).send_signal(signal.SIGTERM)
        output = ended(process, 60)
    assert process.returncode not in {0, None}
    step = stopped_at(out)
    assert 2 <= step < 12
    assert output.count("resume with") == 1
    if who == "rank":
        assert "exitcode  : 75" in output, "what the launcher reports of its first rank that ended"
    assert resumed(output).startswith("NPROC_PER_NODE=2 higgs-audio sft ")
    assert [record["global_step/max_steps"] for record in steps_of(out / "logging.jsonl")] == [
        f"{n}/12" for n in range(1, 13)
    ]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(tiny: Path, dataset: Path, slow_steps: Path, tmp_path: Path) -> None:
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
from plugins.template import HiggsAudioTemplate
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
def test_a_worker_that_ends_ends_the_run(code: int, ranks: int, tiny: Path, dataset: Path, tmp_path: Path) -> None:
    deadly = written(tmp_path / "deadly_worker.py", DEADLY_WORKER.format(code=code))
    arguments = training(tiny, dataset, tmp_path / "out", deadly, dataloader_num_workers=1)
    with running(*(torchrun(*arguments) if ranks > 1 else [sys.executable, TRAIN, *arguments])) as process:
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
def test_an_exception_does_not_wait_for_its_workers(tiny: Path, dataset: Path, tmp_path: Path) -> None:
    """Python keeps the traceback of the last exception, and with it the loader whose workers outlive signals."""
    plugin = written(tmp_path / "failing.py", FAILING)
    arguments = training(tiny, dataset, tmp_path / "out", plugin, dataloader_num_workers=2)
    with running(sys.executable, TRAIN, *arguments) as process:
        output = ended(process, 60)
    assert process.returncode == 1
    assert "LookupError: planted" in output


# On rank 1 only, in the second step; and what the weights of this rank are before each step.
INFECTED = """
import hashlib, os
from plugins.template import HiggsAudioTemplate
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
if original_loss.__module__ == "plugins.template":
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
def test_a_sick_step_of_one_rank_is_skipped_by_all(sharding: str, tiny: Path, dataset: Path, tmp_path: Path) -> None:
    wrapper, on_cpu, zero = WRAPPERS[sharding]
    if zero and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: DS_BUILD_OPS=0 pip install deepspeed")
    plugin = written(tmp_path / "infected.py", INFECTED.format(folder=str(tmp_path)) + on_cpu)
    options: dict[str, Any] = {"max_steps": 3, "tuner_type": "full", "fp16": "false", "warmup_ratio": 0}
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
    assert [record.get("skipped_steps") for record in steps_of(tmp_path / "out" / "logging.jsonl")] == [0, 1, 1]
