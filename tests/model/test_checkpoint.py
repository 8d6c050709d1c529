"""Strict loading: what transformers passes over in silence is an error that names the key."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.errors import UserError
from plugins.model.load import native_model


@pytest.fixture
def edited(tiny: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of the tiny checkpoint without the keys `drop` and with the keys `add`."""

    def edit(drop: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> str:
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder)
        weights = load_file(folder / "model.safetensors")
        kept = {key: value for key, value in weights.items() if key not in drop}
        kept |= {key: torch.zeros(1) for key in add}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return edit


def test_loads_with_the_text_head(tiny: Path) -> None:
    model = native_model(str(tiny))
    assert model.text_lm_head is not None
    assert torch.equal(
        model.text_lm_head.weight, load_file(tiny / "model.safetensors")["text_lm_head.weight"]
    )
    assert type(model).__name__ == "HiggsAudioV2ForConditionalGeneration", (
        "saved checkpoints must stay native"
    )


def test_speaking_needs_no_text_head(edited: Callable[..., str]) -> None:
    assert native_model(edited(drop=("text_lm_head.weight",)), text_head=False).text_lm_head is None


def test_checkpoint_without_text_head_is_refused(edited: Callable[..., str]) -> None:
    with pytest.raises(
        UserError,
        match=r"'text_lm_head\.weight' is missing: .* without its text head; start from|which",
    ):
        native_model(edited(drop=("text_lm_head.weight",)))


def test_missing_key_is_named(edited: Callable[..., str]) -> None:
    key = "model.layers.1.audio_mlp.up_proj.weight"
    with pytest.raises(
        UserError, match=rf"weights: '{key}' is missing \(1 keys in all\); download it again"
    ):
        native_model(edited(drop=(key,)))


def test_surplus_key_is_named(edited: Callable[..., str]) -> None:
    with pytest.raises(
        UserError, match=r"'model\.layers\.9\.x' is not a weight of this model; check"
    ):
        native_model(edited(add=("model.layers.9.x",)))


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        UserError, match=r"config\.json: model_type: 'llama' is no Higgs-Audio V2; give the folder"
    ):
        native_model(str(tmp_path))


def test_folder_without_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path / "config.json")
    with pytest.raises(
        UserError, match=r"weights: '\*\.safetensors' not found; download the whole checkpoint"
    ):
        native_model(str(tmp_path))
