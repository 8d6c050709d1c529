"""The checks before training, in real runs: what they say, what they refuse, and that looking
changes nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.preflight import NUM_ROWS, no_eos, plant, voices_that_copy_targets
from helpers.sft import sft
from safetensors.torch import load_file

from plugins.audio.codec import CODEC_FOLDER
from plugins.errors import UserError


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", corpus_rows(NUM_ROWS))


@pytest.fixture
def swift_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """MS-SWIFT's logger does not propagate."""
    logger = logging.getLogger("swift")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_training_starts_with_the_preflight(
    learnt: Path, rows: Path, tmp_path: Path, swift_log: pytest.LogCaptureFixture
) -> None:
    sft(learnt, rows, tmp_path / "run", max_steps=1)
    assert "labels: 3 rows are as by definition" in swift_log.text
    assert "offset probe: what is trained fits best, on 3 rows" in swift_log.text


def test_training_refuses_planted_defects(
    learnt: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, labels=no_eos)
    with pytest.raises(
        UserError, match=r"preflight: .* labels: .*stream-EOS labels .* with --preflight false"
    ):
        sft(learnt, rows, tmp_path / "run", max_steps=1)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    monkeypatch.setenv("PREFLIGHT", "false")
    sft(learnt, rows, tmp_path / "other", max_steps=1)
    assert list((tmp_path / "other").glob("checkpoint-*"))


@pytest.mark.parametrize("lazy", ["true", "false"])
def test_training_refuses_validation_on_trained_clips(
    learnt: Path, rows: Path, tmp_path: Path, lazy: str
) -> None:
    with pytest.raises(UserError, match="validation: 3 clips are also trained on"):
        sft(learnt, rows, tmp_path / "run", val_dataset=rows, lazy_tokenize=lazy)


def test_dry_run_shows_a_row_and_trains_nothing(
    learnt: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swift_log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DRY_RUN", "true")
    with pytest.raises(SystemExit) as end:
        sft(learnt, rows, tmp_path / "run")
    assert end.value.code == 0
    said = swift_log.text
    assert "codebook 7" in said, "a row as the model sees it"
    assert re.search(
        r"ok      dataset: 3 rows, \d\.\d\d min of speech in 3 clips, speakers not named", said
    )
    assert re.search(r"row, tokens and frames +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+", said)
    assert "info    steps: 1 in an epoch, 2 in all (2.00 epochs)" in said
    assert re.search(r"info    memory: about \d\.\d GiB per device, estimated", said)
    assert re.search(r"learning_rate +1e-05", said)
    assert "info    command: nothing was trained; this trains" in said
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "samples").exists()


def test_clips_of_conditioning_turns_may_stand_on_both_sides(learnt: Path, tmp_path: Path) -> None:
    """One voice clip before every target: it is not trained, so it leaks nothing."""
    clips = [row["audios"][0] for row in corpus_rows(3)]

    def dialogue(target: str) -> dict[str, Any]:
        messages = [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "", "loss": False},
            {"role": "user", "content": "Ho."},
            {"role": "assistant", "content": ""},
        ]
        return {"messages": messages, "audios": [clips[0], target]}

    train = write_jsonl(tmp_path / "a.jsonl", [dialogue(clips[1])])
    validation = write_jsonl(tmp_path / "b.jsonl", [dialogue(clips[2])])
    sft(learnt, train, tmp_path / "run", val_dataset=validation, max_steps=1)


def test_training_refuses_a_copy_of_the_target_as_reference(learnt: Path, tmp_path: Path) -> None:
    rows = voices_that_copy_targets(tmp_path)
    with pytest.raises(UserError, match=r"references: .* has the same content as the target"):
        sft(learnt, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run", max_steps=1)


def test_the_preflight_changes_no_weight(
    learnt: Path, rows: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Looking must not draw random numbers that dropout would have drawn."""
    for preflight in ("true", "false"):
        monkeypatch.setenv("PREFLIGHT", preflight)
        options = {
            "tuner_type": "lora",
            "lora_dropout": 0.5,
            "target_modules": "all-linear",
            "learning_rate": 1e-3,
        }
        sft(learnt, rows, tmp_path / preflight, max_steps=2, **options)
    name = "checkpoint-2/adapter_model.safetensors"
    with_it, without = load_file(tmp_path / "true" / name), load_file(tmp_path / "false" / name)
    assert all(torch.equal(with_it[key], without[key]) for key in without)


def test_a_run_resumes_where_a_later_checkpoint_was_left_behind(
    learnt: Path, rows: Path, tmp_path: Path
) -> None:
    """MS-SWIFT copied the codec into the folder of a killed run's last checkpoint and stopped: it
    was there already."""
    sft(learnt, rows, tmp_path / "run", max_steps=2, save_steps=1)
    resumed = {"resume_from_checkpoint": tmp_path / "run" / "checkpoint-1"}
    sft(learnt, rows, tmp_path / "run", max_steps=2, save_steps=1, **resumed)
    assert (tmp_path / "run" / "checkpoint-2" / CODEC_FOLDER / "config.json").is_file()
