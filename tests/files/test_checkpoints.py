"""The folder of a training, given where a model is meant: its newest whole checkpoint is taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.checkpoints import checkpoint

from plugins.errors import UserError
from plugins.files import checkpoints
from plugins.files.checkpoints import MARKER, checkpoint_in
from plugins.model.load import base_and_adapters
from plugins.training.arguments import resolve_resume, with_checkpoints


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(10)


RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "two": (lambda run: None, "checkpoint-10"),
    "the newest has no marker": (
        lambda run: (run / "checkpoint-10" / MARKER).unlink(),
        "checkpoint-9",
    ),
    "the newest is cut short": (
        lambda run: cut(run / "checkpoint-10" / "model-1.safetensors"),
        "checkpoint-9",
    ),
    "the newest has lost a file": (
        lambda run: (run / "checkpoint-10" / "trainer_state.json").unlink(),
        "checkpoint-9",
    ),
    "a file beside": (lambda run: (run / "checkpoint-11").write_text(""), "checkpoint-10"),
    "other names": (lambda run: (run / "checkpoint-11-old").mkdir(), "checkpoint-10"),
    "hidden": (lambda run: (run / ".checkpoint-12.tmp").mkdir(), "checkpoint-10"),
    "another link": (lambda run: (run / "last").symlink_to("checkpoint-9"), "checkpoint-10"),
    "a version": (
        lambda run: checkpoint(run / "v0-20260101-000000" / "checkpoint-1"),
        "v0-20260101-000000/checkpoint-1",
    ),
    "ten versions": (
        lambda run: [checkpoint(run / f"v{i}-2026" / "checkpoint-1") for i in (2, 10)],
        "v10-2026/checkpoint-1",
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps of one and of two digits: by name 9 would be the newer."""
    folder = tmp_path / "a run with blanks"
    checkpoint(folder / "checkpoint-9")
    checkpoint(folder / "checkpoint-10", resumable=False)  # enough to speak with
    return folder


@pytest.mark.parametrize("case", RUNS)
def test_the_newest_whole_one_is_taken_and_said(
    case: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, expected = RUNS[case]
    change(run)
    checkpoints._say.cache_clear()
    for _ in range(2):
        assert checkpoint_in(str(run), option="model") == str(run / expected)
    line = f"{run} is the folder of a training: its newest whole checkpoint, {run / expected}, is"
    assert caplog.messages == [f"{line} taken"]


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_folder_that_is_a_model_itself_is_left_alone(name: str, run: Path) -> None:
    (run / name).write_text("{}")
    assert checkpoint_in(str(run), option="model") == str(run)


@pytest.mark.parametrize("path", ["org/name", "/nowhere", "", ".", "a\0b"])
def test_what_is_no_run_is_left_alone(path: str, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    assert checkpoint_in(path, option="model") == path


def test_checkpoints_that_are_not_known_to_be_whole_are_named(run: Path) -> None:
    """Of another program, or of a save that was cut short: the user may know better."""
    for i in (9, 10):
        (run / f"checkpoint-{i}" / MARKER).unlink()
    for i in range(1, 7):
        shutil.copytree(run / "checkpoint-9", run / f"checkpoint-{i}")
    with pytest.raises(UserError) as error:
        checkpoint_in(str(run), option="adapters")
    assert str(error.value).startswith(f"options: adapters: '{run}' is the folder of a training")
    assert f"give one of them: {run / 'checkpoint-10'}, {run / 'checkpoint-9'}, " in str(
        error.value
    )
    assert str(error.value).endswith(f"{run / 'checkpoint-4'} and 3 older ones")


def test_as_model_and_as_adapters_of_every_command(run: Path, tmp_path: Path) -> None:
    """speak, evaluate, export, doctor, the page and `load_model` go through one function."""
    newest = str(run / "checkpoint-10")
    assert base_and_adapters(str(run)) == (newest, None)
    assert base_and_adapters(str(tmp_path), str(run)) == (str(tmp_path), newest)
    words = ["--model", str(run), "--adapters", str(run), str(tmp_path), "--lora_rank", "8"]
    expected = ["--model", newest, "--adapters", newest, str(tmp_path), "--lora_rank", "8"]
    assert with_checkpoints(words) == expected


def test_as_what_a_training_goes_on_from(run: Path) -> None:
    """In its own folder, unless another one is given."""
    resume = ["--resume_from_checkpoint", str(run)]
    newest = ["--resume_from_checkpoint", str(run / "checkpoint-9")]
    own = [*newest, "--output_dir", str(run), "--add_version", "false"]
    assert resolve_resume(resume) == own
    assert resolve_resume([*resume, "--output_dir", f"{run}/"]) == own
    other = ["--output_dir", "other"]
    assert resolve_resume([*resume, *other]) == [*other, *newest]
    (run / "checkpoint-9" / MARKER).unlink()
    with pytest.raises(UserError, match=r"none of its checkpoints is whole; leave it out"):
        resolve_resume(resume)
