"""The promised launches as a user types them, in real processes over gloo: each has the losses of
one process."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import corpus_rows, write_jsonl
from helpers.processes import ended, from_first_traceback, running
from helpers.sft import log_of, run

pytestmark = pytest.mark.slow

SCRIPT = "train_higgs_audio.sh"
TIMEOUT_S = 300  # DeepSpeed compiles an operator on its first start
# What this machine needs and a user's does not, and two steps without chance.
HERE = {
    "use_cpu": "true",
    "torch_dtype": "float32",
    "fp16": "false",
    "check_model": "false",
    "max_steps": 2,
    "logging_steps": 1,
    "warmup_ratio": 0,
    "lora_dropout": 0,
    "save_strategy": "no",
    "report_to": "none",
    "add_version": "false",
    "preflight": "false",
}
# On GPUs accelerate starts DeepSpeed's process group before the model loads; told to use the CPU,
# it does not.
DEEPSPEED_ON_CPU = "import deepspeed; deepspeed.init_distributed(dist_backend='gloo')\n"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


Launch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launch(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """The log of two steps of four rows; with `nodes`, the command is started once for each of
    them."""
    dataset = write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", corpus_rows(4))
    common = {
        "PYTHON": sys.executable,
        "MODEL": str(tiny),
        "USE_HF": "false",
        "DATASET": str(dataset),
        "GRADIENT_ACCUMULATION": "1",
        "DS_ACCELERATOR": "cpu",
        # In the user's folder it waits for whoever compiles there, for ever if that was killed.
        "TORCH_EXTENSIONS_DIR": str(tmp_path_factory.mktemp("built")),
    }

    def launch(*command: str, ranks: int = 2, nodes: int = 1, **env: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("run") / "out"
        options = dict(HERE)
        if ranks > 1:
            options["ddp_backend"] = "gloo"
        # Options of ours follow the script, those of a launcher come before it.
        at = command.index(SCRIPT if SCRIPT in command else f"./{SCRIPT}") + 1
        words = list(command[:at])
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        words += command[at:]
        env = {**common, "OUTPUT_DIR": str(folder), "BATCH_SIZE": str(4 // ranks), **env}
        with ExitStack() as stack:
            started = []
            for i in range(nodes):
                if nodes > 1:
                    env["NODE_RANK"] = str(i)
                started.append(stack.enter_context(running(*words, **env)))
            for process in reversed(started):  # the first one only tells that it has lost the other
                output = ended(process, TIMEOUT_S)
                assert process.returncode == 0, from_first_traceback(output)
        return [record for record in log_of(folder) if "grad_norm" in record]

    return launch


@pytest.fixture(scope="module")
def alone(launch: Launch) -> list[dict[str, Any]]:
    return launch(f"./{SCRIPT}", ranks=1)


def check(records: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    assert len(records) == len(alone) == 2
    assert alone[1]["loss"] < alone[0]["loss"]
    for record, expected in zip(records, alone, strict=True):
        for name in ("loss", "loss_text", "loss_audio", "grad_norm"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5), name


def test_torchrun(launch: Launch, alone: list[dict[str, Any]]) -> None:
    check(launch("torchrun", "--nproc_per_node", "2", SCRIPT, PET_MASTER_PORT=free_port()), alone)


def test_two_processes_through_bash(launch: Launch, alone: list[dict[str, Any]]) -> None:
    check(launch(f"./{SCRIPT}", NPROC_PER_NODE="2", MASTER_PORT=free_port()), alone)


def test_two_nodes_through_bash(launch: Launch, alone: list[dict[str, Any]]) -> None:
    nodes = {"NNODES": "2", "NPROC_PER_NODE": "1"}
    nodes |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    check(launch(f"./{SCRIPT}", nodes=2, **nodes), alone)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage: int, launch: Launch, alone: list[dict[str, Any]], tmp_path: Path) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install deepspeed")
    (tmp_path / "cpu.py").write_text(DEEPSPEED_ON_CPU, encoding="utf-8")
    command = ["deepspeed", "--num_gpus", "2", "--master_port", free_port(), SCRIPT]
    options = ["--deepspeed", f"zero{stage}", "--external_plugins", str(tmp_path / "cpu.py")]
    check(launch(*command, *options), alone)


def test_a_usage_error_ends_every_rank_with_one_line(tmp_path: Path) -> None:
    """Through the whole chain: the launcher's Python, bash, our Python."""
    command = (sys.executable, SCRIPT, "--learnign_rate", "1")
    # By LOCAL_RANK, which launchers set, the script knows that it is one of their processes.
    done = run(*command, LOCAL_RANK="0", OUTPUT_DIR=str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "did you mean 'learning_rate'" in done.stderr
    assert not (tmp_path / "out").exists()
