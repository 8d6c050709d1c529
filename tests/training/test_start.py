"""What a training lacks is one line, before anything is loaded; and so is what MS-SWIFT says in
pages when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import corpus_rows, write_jsonl

from plugins.cli import main as command
from plugins.errors import UserError
from plugins.training.arguments import with_checkpoints
from plugins.training.start import check, explained_start

# What is typed after `higgs-audio sft`, and what is said.
LACKS = {
    "nothing": ("", "command line: --model is missing; give a folder"),
    "no model": ("--dataset rows.jsonl", "--model is missing"),
    "no data": ("--model model", "--dataset is missing; give the JSONL file that `higgs-audio pr"),
    "a flag without value": ("--model --dataset rows.jsonl", "--model is missing"),
    "a model that is gone": ("--model ./gone --dataset rows.jsonl", "model: './gone' not found"),
    "an absolute one": ("--model /gone/model --dataset rows.jsonl", "'/gone/model' not found"),
    "a deep one": ("--model a/b/c --dataset rows.jsonl", "'a/b/c' not found (looked in"),
    "a file": ("--model rows.jsonl --dataset rows.jsonl", "'rows.jsonl' is no folder"),
    "rows that are gone": ("--model model --dataset gone.jsonl", "dataset: 'gone.jsonl' not found"),
    "a part of them": ("--model model --dataset gone.jsonl#9", "dataset: 'gone.jsonl' not found"),
    "the second file": ("--model model --dataset rows.jsonl gone.jsonl", "'gone.jsonl' not found"),
    "validation": ("--model model --dataset rows.jsonl --val_dataset v.jsonl", "val_dataset: 'v.j"),
    "the old names": ("--model_id_or_path ./gone --dataset rows.jsonl", "'./gone' not found"),
    "with an equals sign": ("--model=./gone --dataset=rows.jsonl", "model: './gone' not found"),
    "a YAML that is gone": ("gone.yaml", "config: 'gone.yaml' not found (looked in"),
    "as --config": ("--config gone.yaml", "config: 'gone.yaml' not found (looked in"),
    "--config alone": ("--config", "command line: --config has no value; name a YAML file"),
    "two files": ("run.yaml --config gone.yaml", "'gone.yaml' is a second file beside run.yaml"),
    "a word": ("run", "config: 'run' is neither a flag nor a YAML file"),
    "an empty file": ("empty.yaml", "config: 'empty.yaml' holds no settings"),
    "a list": ("list.yaml", "config: 'list.yaml' holds no settings"),
    "no YAML": ("broken.yaml", "config: 'broken.yaml' cannot be read"),
    "a binary file": ("binary.yaml", "config: 'binary.yaml' cannot be read"),
    "a folder": ("folder.yaml", "config: 'folder.yaml' cannot be read"),
    "preferences of texts": (
        "--rlhf_type grpo --model model --dataset rows.jsonl",
        "rlhf_type: 'grpo' compares texts, and is not available for speech; use dpo",
    ),
    "a reference of LoRA": (
        "--rlhf_type dpo --ref_model base --model model --dataset rows.jsonl",
        "ref_model: 'base' is for tuner_type full: of an adapter the model without it is the ref",
    ),
    "a YAML without model": ("--config=run.yaml --lora_rank 8", "--model is missing"),
}


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", corpus_rows(1))
    for name in ("model", "folder.yaml"):
        (tmp_path / name).mkdir()
    contents = {"empty": b"", "list": b"- a\n", "broken": b"a: [\n", "binary": b"\x00\xff\xfe"}
    contents["run"] = b"dataset: rows.jsonl\n"
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_bytes(content)


@pytest.mark.usefixtures("_here")
def test_a_home_in_a_file_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--model", "~/model", "--dataset", "rows.jsonl"]
    check(words)
    assert with_checkpoints(words)[1] == str(tmp_path / "model")


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("case", LACKS)
def test_what_is_missing_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fifteen to 47 lines of traceback before."""
    words, expected = LACKS[case]
    assert command(["sft", *words.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert "None" not in line


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    "words",
    [
        "--model model --dataset rows.jsonl",
        "--model org/name --dataset rows.jsonl#500 --use_hf true",
        "--model model --dataset hf::org/name",
        "--model model --cached_dataset folder",
        "--resume_from_checkpoint auto --dataset rows.jsonl",
        "--adapters folder --dataset rows.jsonl",
        "--rlhf_type dpo --model model --dataset rows.jsonl",
        "--rlhf_type dpo --tuner_type full --ref_model base --model model --dataset rows.jsonl",
    ],
)
def test_what_is_enough_passes(words: str) -> None:
    check(words.split())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("no route"), "neither a folder here nor to be had from ModelScope"),
        (ValueError("Your setup doesn't support bf16/gpu."), "torch sees none here; check `nvidia"),
    ],
)
def test_no_hub_and_no_gpu_are_one_line(error: Exception, expected: str) -> None:
    with pytest.raises(UserError, match=expected), explained_start(["--model", "org/name"]):
        raise error


def test_what_is_no_fault_of_the_user_stays_as_it_is() -> None:
    with pytest.raises(OSError, match="odd"), explained_start(["--model", "."]):
        raise OSError("odd")
