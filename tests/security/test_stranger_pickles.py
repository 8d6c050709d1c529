"""Weights and states that are pickles: refused, or read as tensors only, and nothing is called."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.security import Payload, adapter_folder, plant, rewrite
from helpers.sft import sft

from plugins.audio.codec import Codec
from plugins.errors import UserError
from plugins.model.load import native_model, with_adapters


def test_a_pickled_adapter_is_refused(tiny: Path, tmp_path: Path, marker: Path) -> None:
    """By us for its name, and by peft, which MS-SWIFT calls when it resumes."""
    from swift.tuners import Swift

    folder = adapter_folder(tmp_path / "adapter")
    plant(folder / "adapter_model.bin", marker)
    model = native_model(str(tiny))
    with pytest.raises(UserError, match=r"adapters: 'adapter_model.safetensors' not found"):
        with_adapters(model, {"default": str(folder)})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        Swift.from_pretrained(native_model(str(tiny)), str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside safetensors"])
def test_pickled_weights_of_a_model_are_not_read(
    beside: bool, tiny: Path, tmp_path: Path, marker: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    plant(folder / "pytorch_model.bin", marker)
    if beside:
        native_model(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"weights: '\*.safetensors' not found"):
            native_model(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_weights_of_an_original_codec_run_nothing(
    legacy: bool, tmp_path: Path, marker: Path
) -> None:
    """The original codec has no safetensors: `model.pth` is read with `weights_only`."""
    folder = plant(tmp_path / "codec" / "model.pth", marker).parent
    rewrite(folder / "config.json", semantic_techer="hubert_base_general")
    if legacy:
        # Another reader of torch's: pickles one after the other, without an archive.
        torch.save(
            {"state": Payload(marker)}, folder / "model.pth", _use_new_zipfile_serialization=False
        )
    with pytest.raises(UserError, match="refused, no code of this file was run"):
        _ = Codec(str(folder)).model
    assert not marker.exists()


# --- resuming ---


@pytest.fixture(scope="module")
def resumable(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two steps with its first checkpoint, and its rows."""
    folder = tmp_path_factory.mktemp("resumable")
    dataset = write_jsonl(folder / "train.jsonl", corpus_rows(2))
    sft(tiny, dataset, folder / "out", max_steps=2, save_steps=1)
    return folder / "out" / "checkpoint-1", dataset


@pytest.fixture
def resume(
    resumable: tuple[Path, Path], tiny: Path, tmp_path: Path
) -> tuple[Path, Callable[[], None]]:
    """A copy of that checkpoint, and a function that goes on from it: the stranger knows how to
    seal it."""
    from plugins.files.checkpoints import MARKER
    from plugins.training.saves import seal

    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.copytree(resumable[0], checkpoint)

    def go_on() -> None:
        # A hash finds damage, not intent.
        (checkpoint / MARKER).unlink()
        seal(checkpoint, resumable=True)
        options = {"max_steps": 2, "save_steps": 1, "resume_from_checkpoint": checkpoint}
        sft(tiny, resumable[1], tmp_path / "out", **options)

    return checkpoint, go_on


def test_every_pickle_of_a_resumed_checkpoint_is_read_with_weights_only(
    resume: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, Any] = {}
    original = torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        read[os.path.basename(str(file))] = kwargs.get("weights_only")
        return original(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    resume[1]()
    assert read == {"optimizer.pt": True, "scheduler.pt": True, "rng_state.pth": True}


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"]
)
def test_pickles_of_a_resumed_checkpoint_are_refused(name: str, resume: Any, marker: Path) -> None:
    checkpoint, go_on = resume
    plant(checkpoint / name, marker)
    if name == "pytorch_model.bin":  # which is read only where there are no safetensors
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        go_on()
    assert not marker.exists()


def test_pickles_that_nobody_needs_are_not_read(resume: Any, marker: Path) -> None:
    """`training_args.bin`, which transformers writes, can only be read as a pickle."""
    checkpoint, go_on = resume
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.bin"):
        plant(checkpoint / name, marker)
    go_on()  # to the end, as if the files were not there
    assert not marker.exists()
