"""DPO through MS-SWIFT's own pipeline, on the tiny model: that unseen pairs are preferred rightly,
that a step is exact, that a resumed run is the same, and that faults are one line."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import corpus_rows, write_jsonl
from helpers.processes import TIMEOUT_S, ended, running, torchrun
from helpers.sft import BIN, IN_ORDER, REGISTER, coded, flags, heard, log_of, run, weights_of
from helpers.sharding import DEEPSPEED_ON_CPU, FSDP_ON_CPU, SHARDING

from plugins.errors import UserError
from plugins.training.preflight import before_training

pytestmark = pytest.mark.slow
NUM_PAIRS = 12
HELD_OUT = 4
HUM = 7
LORA = {"tuner_type": "lora", "lora_rank": 16, "lora_alpha": 32, "target_modules": "all-linear"}
FULL = {"tuner_type": "full"}


def pairs(tiny: Path) -> list[dict[str, Any]]:
    """Each clip of the corpus, and the same that ends in a hum, one code in all codebooks."""
    rows = coded(tiny, corpus_rows(NUM_PAIRS + HELD_OUT))
    for row in rows:
        (codes,) = row["audio_codes"]
        codes = codes[:40]
        del row["audios"]
        row["audio_codes"] = [codes]
        row["rejected_audio_codes"] = [codes[:-10] + [[HUM] * 8] * 15]
    return rows


@pytest.fixture(scope="module")
def files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rows = tmp_path_factory.mktemp("pairs"), pairs(tiny)
    return {
        "dataset": write_jsonl(folder / "train.jsonl", rows[:NUM_PAIRS]),
        "val_dataset": write_jsonl(folder / "validation.jsonl", rows[NUM_PAIRS:]),
    }


def rlhf(model: Path, files: dict[str, Path], out: Path, **options: Any) -> list[dict[str, Any]]:
    """`higgs-audio rlhf` in this process; returns the logged records."""
    from plugins.train import main

    main(words(model, files, out, **options))
    return log_of(out)


def words(model: Path, files: dict[str, Path], out: Path, **options: Any) -> list[str]:
    values: dict[str, Any] = {"rlhf_type": "dpo", "gradient_checkpointing": "false", **options}
    if "val_dataset" not in values:
        values["val_dataset"] = files["val_dataset"]
    return flags(model, files["dataset"], out, **values)


def test_unseen_pairs_are_preferred_rightly(
    tiny: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """From 0.5, of a model that is its own reference, to all of them."""
    options: dict[str, Any] = {"max_steps": 9, "learning_rate": 3e-4, "eval_steps": 3}
    options |= {"eval_on_start": "true", "gradient_accumulation_steps": 1, **LORA}
    records = rlhf(tiny, files, tmp_path / "out", eval_strategy="steps", **options)
    evaluated = [record for record in records if "eval_rewards/accuracies" in record]
    assert evaluated[0]["eval_rewards/accuracies"] == 0.5
    assert evaluated[0]["eval_rewards/margins"] == 0
    assert evaluated[0]["eval_loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert evaluated[-1]["eval_rewards/accuracies"] == 1
    margins = [record["eval_rewards/margins"] for record in evaluated]
    losses = [record["eval_loss"] for record in evaluated]
    assert margins == sorted(margins)
    assert losses == sorted(losses, reverse=True)
    assert margins[-1] > 0.5
    trained = [record for record in records if "rewards/margins" in record]
    names = {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "loss_audio"}
    for record in trained:
        assert names <= record.keys()
    assert trained[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert trained[-1]["rewards/chosen"] > trained[-1]["rewards/rejected"]


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_step_is_the_same_for_every_split_of_its_pairs(
    tuner: str, tiny: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """4 x 1, 1 x 4 and, by plain `swift rlhf`, two processes x 1 x 2; two steps, as in the first
    all margins are 0."""
    options: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-3, "rpo_alpha": 0.5, **IN_ORDER}
    options |= {"val_dataset": None, "warmup_ratio": 0, "max_grad_norm": 1e6}
    options |= LORA if tuner == "lora" else FULL

    def steps(name: str, batch: int, accumulation: int) -> list[dict[str, Any]]:
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        return rlhf(tiny, files, tmp_path / name, **split, **options)

    whole = steps("4x1", 4, 1)
    two = {**options, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    two |= {"gradient_checkpointing": "true", "ddp_backend": "gloo"}
    arguments = words(tiny, files, tmp_path / "2x1x2", **two)
    done = run(str(BIN / "swift"), "rlhf", *arguments, NPROC_PER_NODE="2")
    assert done.returncode == 0, done.stderr[-3000:]
    of_splits = [steps("1x4", 1, 4), log_of(tmp_path / "2x1x2")]
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected", "loss_audio")
    for records in of_splits:
        for record, expected in zip(records[:2], whole[:2], strict=True):
            for name in names:
                assert record[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


SHARDED: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-3, "warmup_ratio": 0, **IN_ORDER}
SHARDED |= {"gradient_accumulation_steps": 1, "fp16": "false", "save_strategy": "no"}


@pytest.fixture(scope="module")
def alone(
    tiny: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """What one process logs, by the tuner: trained once each."""
    logs: dict[str, list[dict[str, Any]]] = {}

    def trained(tuner: dict[str, Any]) -> list[dict[str, Any]]:
        name = tuner["tuner_type"]
        if name not in logs:
            logs[name] = rlhf(tiny, files, tmp_path_factory.mktemp(name), **SHARDED, **tuner)
        return logs[name]

    return trained


@pytest.mark.parametrize(
    ("tuner", "sharding"),
    [
        (LORA, "fsdp2"),
        (FULL, "fsdp2"),
        (LORA, "zero3"),
        (FULL, "zero2"),
        (FULL, "zero3"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["tuner_type"],
)
def test_sharded_weights_are_trained_the_same(
    tuner: dict[str, Any],
    sharding: str,
    alone: Callable[[dict[str, Any]], list[dict[str, Any]]],
    tiny: Path,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Two processes: the reference, adapter off or a second model, is sharded too."""
    plugin = tmp_path / "on_cpu.py"
    sharded: dict[str, Any] = {"external_plugins": [REGISTER, plugin]}
    sharded["per_device_train_batch_size"] = 2
    if sharding == "fsdp2":
        plugin.write_text(FSDP_ON_CPU, encoding="utf-8")
        sharded["fsdp"] = "fsdp2"
    else:
        if importlib.util.find_spec("deepspeed") is None:
            pytest.skip("needs deepspeed: DS_BUILD_OPS=0 pip install deepspeed")
        plugin.write_text(DEEPSPEED_ON_CPU, encoding="utf-8")
        zero = {"stage": int(sharding[-1]), "overlap_comm": False}
        sharded["deepspeed"] = json.dumps({"zero_optimization": zero, **SHARDING})
    whole = alone(tuner)
    arguments = words(tiny, files, tmp_path / "sharded", **{**SHARDED, **tuner, **sharded})
    env = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    with running(*torchrun(*arguments), **env) as process:
        output = ended(process, TIMEOUT_S)
    assert process.returncode == 0, output[-3000:]
    names = {"loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_loss"}
    for record, expected in zip(log_of(tmp_path / "sharded")[:3], whole[:3], strict=True):
        for name in names & expected.keys():
            assert record[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_resumed_run_equals_one_that_is_not(
    tuner: str, tiny: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """The reference of a full fine-tuning stays the model that it began with."""
    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
    options |= {"val_dataset": None, "save_total_limit": 4}
    options |= LORA if tuner == "lora" else FULL
    once = rlhf(tiny, files, tmp_path / "once", **options)
    checkpoint = tmp_path / "once" / "checkpoint-2"
    again = tmp_path / "again"
    resumed = rlhf(tiny, files, again, resume_from_checkpoint=checkpoint, **options)
    for name in ("loss", "rewards/margins", "rewards/chosen", "logps/rejected"):
        assert resumed[0][name] == once[2][name], name
    first, second = (weights_of(folder / "checkpoint-4") for folder in (tmp_path / "once", again))
    for name, weight in first.items():
        assert weight.equal(second[name]), name


def test_another_beta_is_another_run(tiny: Path, files: dict[str, Path], tmp_path: Path) -> None:
    options = {"max_steps": 2, "save_steps": 1, "val_dataset": None, **LORA}
    rlhf(tiny, files, tmp_path / "out", **options)
    resumed = {"resume_from_checkpoint": tmp_path / "out" / "checkpoint-1", "beta": 0.5}
    with pytest.raises(UserError, match=r"is of another run(?s:.*)beta: 0.1 in the checkpoint"):
        rlhf(tiny, files, tmp_path / "again", **options, **resumed)


def test_faults_are_one_line(tiny: Path, files: dict[str, Path], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", coded(tiny, corpus_rows(2)))
    with pytest.raises(UserError, match=r"rows.jsonl:1 \(rejected\): rejected_audios is missing"):
        rlhf(tiny, {"dataset": rows}, tmp_path / "out", val_dataset=None)
    with pytest.raises(UserError, match="packing: True does not keep the answers of a pair apart"):
        rlhf(tiny, files, tmp_path / "out", packing="true")
    with pytest.raises(UserError, match="'--betta' is unknown; did you mean 'beta'"):
        rlhf(tiny, files, tmp_path / "out", betta=1)


def test_a_dry_run_shows_what_would_be_trained(
    tiny: Path,
    files: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels of both answers are looked at; the model is asked of the chosen ones only."""
    asked: list[str] = []

    def check_offsets(report: Any, model: Any, rows: list[Any], tokens: Any, chance: str) -> None:
        asked.extend(sample.source.rpartition(":")[2] for sample, _ in rows)

    monkeypatch.setattr(before_training, "check_offsets", check_offsets)
    with heard(caplog), pytest.raises(SystemExit) as end:
        rlhf(tiny, files, tmp_path / "out", dry_run="true", **LORA)
    assert end.value.code == 0
    assert "labels: 8 rows are as by definition" in caplog.text
    assert "higgs-audio rlhf --model_type" in caplog.text
    assert f"{NUM_PAIRS} pairs, " in caplog.text
    assert f"in {2 * NUM_PAIRS} clips" in caplog.text
    assert len(asked) == 4
    assert all(map(str.isdigit, asked)), "no place ends in (rejected)"


def test_the_doctor_looks_at_both_answers(
    tiny: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plugins.cli import main

    def doctor(rows: Path) -> tuple[int, str]:
        code = main(["doctor", "--model", str(tiny), "--dataset", str(rows), "--rlhf_type", "dpo"])
        return code, capsys.readouterr().out

    code, out = doctor(files["dataset"])
    assert code == 0, out
    assert f"{NUM_PAIRS} pairs, every audio header read" in out
    first, *others = pairs(tiny)[:2]
    first["rejected_audio_codes"] = [[[1024] * 8]]
    code, out = doctor(write_jsonl(tmp_path / "faulty.jsonl", [first, *others]))
    assert code == 1
    assert "faulty.jsonl:1 (rejected): audio_codes[0]: 1024 is outside 0..1023" in out
