"""Wrong folders of a codec in the original format: each is refused with a line that names what is
wrong, and no code of it is run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from helpers.codecs import ORIGINAL_CODEC, SPLIT, Weights, original_weights
from safetensors.torch import load_file
from transformers import HubertConfig

from plugins.audio.original_codec import is_original, other_model, save_native, to_native
from plugins.errors import UserError

# Keys.


def rename(weights: Weights, old: str, new: str) -> None:
    weights[new] = weights.pop(old)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda weights: weights.pop("fc_post2.bias"),
            r"'fc_post2\.bias' is missing \(1 in all\); download",
        ),
        # Two that the config is read from.
        (
            lambda weights: weights.pop("encoder.block.0.weight_v"),
            r"'encoder\.block\.0\.weight_v' is missing",
        ),
        (
            lambda weights: weights.pop("encoder.block.0.weight_g"),
            r"'encoder\.block\.0\.weight_g' is missing",
        ),
        (
            lambda weights: rename(weights, "fc_prior.weight", "fc_before.weight"),
            r"'fc_prior\.weight' is missing \(1 in all\), and 'fc_before\.weight' is not a key",
        ),
        (
            lambda weights: weights.update(
                {"quantizer.vq.layers.8._codebook.embed": torch.zeros(1024, 4)}
            ),
            r"layers\.8\._codebook\.embed' is not a key of the codec \(1 such keys\)",
        ),
        (
            lambda weights: weights.update({"fc_post1.bias": torch.zeros(63)}),
            r"'fc_post1\.bias' has shape \[63\], config\.json asks for \[64\]",
        ),
        (
            lambda weights: weights.update({f"{SPLIT}.weight_g": torch.ones(1, 1, 1)}),
            rf"'{SPLIT}\.weight_g' has shape \[1, 1, 1\], config\.json asks for \[8, 1, 1\]",
        ),
        (
            lambda weights: weights.update({"fc_post1.bias": 0.5}),
            r"'fc_post1\.bias' is a float, not a tensor",
        ),
    ],
    ids=["dropped", "width", "half a pair", "renamed", "extra", "shape", "shape of g", "no tensor"],
)
def test_a_wrong_key_is_named(
    edited_codec: Callable[..., Path], edit: Callable[[Weights], Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        to_native(edited_codec(edit))
    assert "\n" not in str(raised.value)


def test_the_mask_vector_may_be_absent(edited_codec: Callable[..., Path]) -> None:
    """Nobody reads it, and whether a file has it depends on the HuBERT that it was trained with."""
    to_native(edited_codec(lambda weights: weights.pop("semantic_model.masked_spec_embed")))


def test_a_truncated_checkpoint_leaves_nothing_behind(
    edited_codec: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is missing"):
        save_native(edited_codec(lambda weights: weights.pop("fc_post2.bias")), tmp_path / "native")
    assert not list(tmp_path.glob("native*"))


# Files.


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_checkpoint_is_run(
    edited_codec: Callable[..., Path], tmp_path: Path, zipped: bool
) -> None:
    folder, marker = edited_codec(), tmp_path / "marker"
    weights = {**original_weights(), "fc_prior.weight": Malicious(marker)}
    torch.save(weights, folder / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UserError, match=r"'(posix|nt|os)\.mkdir' is no part of a state dict: refused, no code"
    ) as raised:
        to_native(folder)
    assert "\n" not in str(raised.value)
    assert not marker.exists()
    torch.load(folder / "model.pth", weights_only=False)
    assert marker.exists(), "the pickle would have done something"


def test_torchs_older_file_format_is_read(edited_codec: Callable[..., Path]) -> None:
    folder = edited_codec()
    torch.save(original_weights(), folder / "model.pth", _use_new_zipfile_serialization=False)
    _, weights = to_native(folder)
    torch.testing.assert_close(weights, to_native(ORIGINAL_CODEC)[1], rtol=0, atol=0)


@pytest.mark.parametrize("content", ["half", "nothing", "git-lfs pointer"])
def test_a_damaged_file_is_named(edited_codec: Callable[..., Path], content: str) -> None:
    file = edited_codec() / "model.pth"
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 805896395\n"
    file.write_bytes(
        {"half": whole[: len(whole) // 2], "nothing": b"", "git-lfs pointer": pointer}[content]
    )
    with pytest.raises(
        UserError,
        match=r"model\.pth: weights: 'model\.pth' is damaged or is no file of torch\.save",
    ):
        to_native(file.parent)


def test_a_damaged_config_is_named(edited_codec: Callable[..., Path]) -> None:
    folder = edited_codec()
    (folder / "config.json").write_text('{"D": 16,')
    with pytest.raises(UserError, match=r"config\.json: line: .* is no JSON; download"):
        to_native(folder)


# Other models' folders.


def test_a_config_without_weights_is_named(edited_codec: Callable[..., Path]) -> None:
    folder = edited_codec()
    (folder / "model.pth").unlink()
    assert is_original(folder)
    with pytest.raises(
        UserError,
        match=r"weights: 'model\.pth' not found; download .* is native, 9d4988f\w* is original",
    ):
        to_native(folder)


def test_a_native_config_beside_original_weights_is_named(
    edited_codec: Callable[..., Path], native_codec: Path
) -> None:
    """As reported when `main` of the Hub repository became native (diodiogod/TTS-Audio-Suite, issue
    287)."""
    folder = edited_codec()
    shutil.copy(native_codec / "config.json", folder)
    assert is_original(folder)
    with pytest.raises(
        UserError,
        match=r"'higgs_audio_v2_tokenizer' is the config of the native codec, not of a codec in",
    ):
        to_native(folder)


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("higgs_audio", "the generation model in its original format"),
        ("higgs_audio_v2", "the generation model"),
        ("xcodec", "X-Codec"),
        ("dac", "a plain DAC"),
        ("hubert", "a plain HuBERT"),
        ("mimi", "a model of type 'mimi'"),
    ],
)
def test_another_models_config_is_named(tmp_path: Path, model_type: str, named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(
        UserError,
        match=f"'{model_type}' is the config of {named}, not of a codec in the original format",
    ):
        to_native(tmp_path)


def hubert() -> Weights:
    weights = {}
    for key, tensor in original_weights().items():
        if key.startswith("semantic_model."):
            weights[key.removeprefix("semantic_model.")] = tensor
    return weights


def plain_dac() -> Weights:
    weights = {}
    for key, tensor in original_weights().items():
        if key.startswith(("encoder.", "decoder_2.")):
            weights[key.replace("decoder_2.", "decoder.")] = tensor
    return weights


def test_another_models_weights_are_named(
    edited_codec: Callable[..., Path], tiny: Path, native_codec: Path
) -> None:
    folder = edited_codec()
    generation = load_file(tiny / "model.safetensors")
    original_generation = load_file(GOLDEN / "tiny_original.safetensors")
    for weights, named in (
        (generation, "the generation model"),
        (original_generation, "the generation model in its original format"),
        (load_file(native_codec / "model.safetensors"), "the native codec"),
        (hubert(), "a plain HuBERT"),
        (plain_dac(), "a plain DAC"),
    ):
        torch.save(weights, folder / "model.pth")
        with pytest.raises(
            UserError, match=rf"'model\.pth' holds the weights of {named}, not of a codec"
        ):
            to_native(folder)


def test_whose_weights_these_are(tiny: Path) -> None:
    assert other_model(None, original_weights()) is None
    assert other_model(None, load_file(tiny / "model.safetensors")) == "the generation model"
    assert other_model(HubertConfig.model_type, ()) == "a plain HuBERT"


def test_which_folders_are_original(tiny: Path, native_codec: Path, tmp_path: Path) -> None:
    assert is_original(ORIGINAL_CODEC)
    for folder in (native_codec, tiny, tiny / "audio_tokenizer", tmp_path, tmp_path / "absent"):
        assert not is_original(folder)
    both = tmp_path / "both"
    shutil.copytree(native_codec, both)
    shutil.copy(ORIGINAL_CODEC / "model.pth", both)
    assert not is_original(both), (
        "a native folder that also has the original's weights is loaded as it is"
    )


# Variants.


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"semantic_techer": "wavlm_base_plus"},
            "semantic_techer: 'wavlm_base_plus' is none of hubert_base_general",
        ),
        (
            {"downsample_mode": "avg"},
            "downsample_mode: 'avg' is not 'step_down'; the native codec has no such variant",
        ),
        ({"vq_scale": 2}, "vq_scale: 2 is not 1"),
        (
            {"target_bandwidths": [0.5, 1]},
            r"target_bandwidths: \[0.5, 1\] has none for n_q 8; add 2.0 \(kbit/s\)",
        ),
        (
            {"n_q": 6},
            r"layers\.6\.project_in\.weight' is not a key of the codec \(16 such keys\)",
        ),
        (
            {"D": 8},
            r"'encoder\.block\.7\.weight_g' has shape \[16, 1, 1\], .* asks for \[8, 1, 1\]",
        ),
    ],
    ids=["teacher", "pooling", "scale", "bandwidths", "fewer codebooks", "width"],
)
def test_a_variant_that_native_codecs_lack_is_named(
    edited_codec: Callable[..., Path], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        to_native(edited_codec(**config))


def test_a_missing_field_is_named(edited_codec: Callable[..., Path]) -> None:
    folder = edited_codec()
    fields = json.loads((folder / "config.json").read_text())
    del fields["ratios"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"config\.json: ratios is missing"):
        to_native(folder)
