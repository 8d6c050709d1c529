"""Checkpoints of boson-multimodal: loaded directly, converted, converted back; every fault is
named.

The original is the golden tiny model (tests/golden/README.md), so logits are also held against the
original itself."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import golden_batch, without_labels
from safetensors.torch import load_file, save_file

from plugins.cli import main
from plugins.errors import UserError
from plugins.model.convert import convert
from plugins.model.load import native_model


@pytest.fixture
def edited(original: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the original with other weights or another config."""

    def edit(weights: Callable[[dict[str, Any]], Any] | None = None, **config: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(original, folder)
        if weights is not None:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(values | config), encoding="utf-8")
        return folder

    return edit


def logits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and audio logits of the golden sample."""
    batch, _, _ = golden_batch("golden_clone")
    model = native_model(str(folder), attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model.hidden_states(**without_labels(batch))
        return model.text_lm_head(hidden), model.audio_lm_head(hidden)


def split(tensors: dict[str, Any], key: str, kind: str, at: int) -> None:
    # As the original writes a matrix of which only the last rows were trained.
    matrix = tensors.pop(f"{key}.weight")
    tensors[f"{key}.{kind}_frozen.weight"] = matrix[:at].clone()
    tensors[f"{key}.{kind}_trainable.weight"] = matrix[at:].clone()


# There and back.


def test_round_trip_is_exact_and_every_loader_gives_the_same_logits(
    original: Path, tmp_path: Path
) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    assert main(["convert", str(original), str(native)]) == 0
    assert main(["convert", str(native), str(back), "--to", "original"]) == 0
    before, after = load_file(original / "model.safetensors"), load_file(back / "model.safetensors")
    torch.testing.assert_close(after, before, rtol=0, atol=0)

    text, audio = logits(original)
    for folder in (native, back):
        torch.testing.assert_close(logits(folder), (text, audio), atol=0, rtol=0)
    batch, _, golden = golden_batch("golden_clone")
    real, there = batch["attention_mask"].bool(), golden["expanded_attention_mask"].astype(bool)
    np.testing.assert_allclose(text[real].numpy(), golden["text_logits"][there], atol=1e-5, rtol=0)


def test_the_original_config_comes_back(original: Path, tmp_path: Path) -> None:
    """Every entry that means something to the original's class."""
    convert(original, tmp_path / "native", to="native", show_progress=False)
    convert(tmp_path / "native", tmp_path / "back", to="original", show_progress=False)
    before = json.loads((original / "config.json").read_text(encoding="utf-8"))
    after = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    # Without a tower its shape means nothing; the others are defaults of transformers, or names.
    for name in set(after) - {
        "text_config",
        "audio_encoder_config",
        "architectures",
        "torch_dtype",
    }:
        assert after[name] == before[name], name
    for name in after["text_config"]:
        assert after["text_config"][name] == before["text_config"][name], name


def test_halves_of_a_matrix_are_joined(
    original: Path, edited: Callable[..., Path], tmp_path: Path
) -> None:
    """Original fine-tunes with `freeze_embed_until_idx` hold embedding and text head in two
    parts."""

    def split_both(tensors: dict[str, Any]) -> None:
        split(tensors, "embed_tokens", "embedding", 298)
        split(tensors, "audio_decoder_proj.text_lm_head", "linear", 7)

    folder = edited(split_both)
    convert(folder, tmp_path / "native", to="native", show_progress=False)
    for other in (folder, tmp_path / "native"):
        torch.testing.assert_close(logits(other), logits(original), rtol=0, atol=0)


def test_shards_stay_shards(original: Path, edited: Callable[..., Path], tmp_path: Path) -> None:
    folder = edited()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, key in enumerate(sorted(tensors)):
        weight_map[key] = f"model-0000{i % 2 + 1}-of-00002.safetensors"
    for name in set(weight_map.values()):
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map}), encoding="utf-8"
    )
    convert(folder, tmp_path / "native", to="native", show_progress=False)
    assert len(list((tmp_path / "native").glob("*.safetensors"))) == 2
    assert torch.equal(logits(tmp_path / "native")[1], logits(original)[1])


def test_computed_buffers_of_older_releases_are_dropped(edited: Callable[..., Path]) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["audio_codebook_weights"] = torch.ones(8) / 8
        tensors["rotary_emb.inv_freq"] = torch.ones(8)

    native_model(str(edited(add)))


# What is wrong is named.


def rename(tensors: dict[str, Any], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def keep_one_half(tensors: dict[str, Any]) -> None:
    tensors["embed_tokens.embedding_frozen.weight"] = tensors.pop("embed_tokens.weight")[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("layers.1.audio_mlp.up_proj.weight"),
            r"'layers\.1\.audio_mlp\.up_proj\.weight' is missing \(1 keys in all\)",
        ),
        (
            partial(rename, old="layers.1.mlp.up_proj.weight", new="layers.1.mlp.up.weight"),
            r"'layers\.1\.mlp\.up\.weight' is not a weight of this model",
        ),
        (
            lambda tensors: tensors.update({"extra.weight": torch.ones(1)}),
            "'extra.weight' is not a weight",
        ),
        (
            lambda tensors: tensors.update({"norm.weight": torch.ones(63)}),
            r"'norm.weight' has shape \[63\], .* \[64\]",
        ),
        (
            lambda tensors: tensors.pop("audio_decoder_proj.text_lm_head.weight"),
            "text_lm_head.weight' is missing: the",
        ),
        (
            keep_one_half,
            r"'embed_tokens.embedding_frozen.weight' has shape \[319, 64\]",
        ),
    ],
    ids=["truncated", "renamed", "extra", "shape", "text_head", "half"],
)
def test_a_wrong_key_is_named(
    edited: Callable[..., Path], tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    folder = edited(change)
    with pytest.raises(UserError, match=message):
        native_model(str(folder))
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "native", to="native", show_progress=False)
    assert not list(tmp_path.glob("native*"))


def test_a_file_that_breaks_off_is_named(edited: Callable[..., Path]) -> None:
    folder = edited()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        UserError, match=r"model\.safetensors: weights: .* is damaged .*; download it again"
    ):
        native_model(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"audio_adapter_type": "stack"},
            "audio_adapter_type: 'stack in layers .* is not an audio FFN in every layer",
        ),
        ({"audio_dual_ffn_layers": [0, 2]}, "is not an audio FFN in every layer"),
        ({"use_delay_pattern": False}, "use_delay_pattern: False is not True"),
        ({"audio_embed_avg": True}, "audio_embed_avg: True is not False"),
        ({"use_rq_transformer": True}, "use_rq_transformer: True is not False"),
        ({"encode_audio_in_tokens": False}, "leaves no way to hear a reference"),
    ],
)
def test_variants_that_the_native_class_cannot_express_are_refused(
    edited: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        native_model(str(edited(**change)))


def test_the_format_that_it_has_already_is_refused(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(original), str(tmp_path / "new"), "--to", "original"]) == 1
    assert "is what it is already" in capsys.readouterr().err


# In the hosts.


def test_swift_loads_an_original_checkpoint_and_none_of_its_code(
    edited: Callable[..., Path], tmp_path: Path
) -> None:
    """MS-SWIFT reads config.json by itself, before any loader of ours, with trust_remote_code=True,
    and knows no `higgs_audio`: an `auto_map` in it would run a stranger's file. (The native one:
    tests/security/test_stranger_configs.py.)"""
    from swift.model import get_model_processor

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    names = {"AutoConfig": "hostile.Config", "AutoTokenizer": "hostile.Tokenizer"}
    folder, witness = edited(auto_map=names), tmp_path / "witness"
    (folder / "hostile.py").write_text(f"open({str(witness)!r}, 'w')\nraise SystemExit\n")
    model, _ = get_model_processor(
        str(folder), model_type="higgs-audio-v2-3b", torch_dtype=torch.float32, attn_impl="eager"
    )
    key = "audio_decoder_proj.text_lm_head.weight"
    assert torch.equal(model.text_lm_head.weight, load_file(folder / "model.safetensors")[key])
    assert not witness.exists()


def test_lora_on_an_original_base_finds_it_again(original: Path, tmp_path: Path) -> None:
    """The adapter's config named its base "None": nobody could speak with it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(native_model(str(original)), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "lora")
    saved = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == str(original)
