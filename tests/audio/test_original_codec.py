"""The codec's original format: same codes and sound as the original, and exact round trips.

tests/golden/codec/ was written by the original itself (tests/golden/make/codec.py).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.codecs import ORIGINAL_CODEC, SPLIT, Weights, original_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import HiggsAudioV2TokenizerModel

from plugins.audio.codec import Codec
from plugins.audio.original_codec import save_native, to_native, to_original
from plugins.audio.original_codec_keys import DROPPED
from plugins.cli import main
from plugins.errors import UserError

POSITIONS = "semantic_model.encoder.pos_conv_embed.conv"


# The same codec.


def test_it_is_used_without_conversion() -> None:
    expected = np.load(ORIGINAL_CODEC / "expected.npz")
    assert torch.equal(
        Codec(str(ORIGINAL_CODEC)).encode(expected["waveform"]), torch.from_numpy(expected["codes"])
    )


def test_the_convert_command(tmp_path: Path) -> None:
    native_codec, back = tmp_path / "native", tmp_path / "back"
    assert main(["convert", str(ORIGINAL_CODEC), str(native_codec)]) == 0
    assert main(["convert", str(native_codec), str(back), "--to", "original"]) == 0
    weights = torch.load(back / "model.pth", weights_only=True)
    torch.testing.assert_close(weights, original_weights(), rtol=0, atol=0)


def test_every_native_key_is_filled_and_every_original_key_used() -> None:
    config, weights = to_native(ORIGINAL_CODEC)
    with torch.device("meta"):
        expected = HiggsAudioV2TokenizerModel(config).state_dict()
    assert weights.keys() == expected.keys()
    for key, tensor in weights.items():
        assert tensor.shape == expected[key].shape, key
    # Of a merged weight two keys are used; each other key holds its own tensor (no two are alike,
    # `inited` aside).
    original = original_weights()
    num_merged = sum(key.endswith("weight_g") for key in original)
    assert num_merged == 74, "the convolutions of DAC for five ratios"
    assert len(weights) == len(original) - num_merged - len(DROPPED)
    for key, tensor in original.items():
        if not key.endswith(("_g", "_v")) and key not in DROPPED:
            assert any(torch.equal(tensor, other) for other in weights.values()), key


@pytest.mark.parametrize(
    ("native_key", "original_key"),
    [
        ("acoustic_decoder.block.4.res_unit3.conv2.bias", "decoder_2.model.5.block.4.block.3.bias"),
        ("acoustic_encoder.snake1.alpha", "encoder.block.6.alpha"),
        ("decoder_semantic.conv2.weight", "decoder_semantic.conv2.conv.weight"),
        (
            "decoder_semantic.conv_blocks.1.conv.bias",
            "decoder_semantic.conv_blocks.1.conv.conv.bias",
        ),
        (
            "decoder_semantic.conv_blocks.0.res_units.1.conv1.weight",
            "decoder_semantic.conv_blocks.0.res_units.1.conv1.conv.weight",
        ),
        (
            "decoder_semantic.conv_blocks.1.res_units.0.conv2.weight",
            "decoder_semantic.conv_blocks.1.res_units.0.conv2.weight",
        ),
        ("fc1.bias", "fc_post1.bias"),
        ("quantizer.quantizers.7.codebook.embed_avg", "quantizer.vq.layers.7._codebook.embed_avg"),
    ],
)
def test_a_key_has_the_originals_tensor(native_key: str, original_key: str) -> None:
    """Most of these are never read for codes or sound: the comparison below would not notice two of
    them exchanged."""
    assert torch.equal(to_native(ORIGINAL_CODEC)[1][native_key], original_weights()[original_key])


def test_codes_and_sound_are_the_originals(native_codec: Path) -> None:
    expected = np.load(ORIGINAL_CODEC / "expected.npz")
    codec = Codec(str(native_codec))
    assert np.array_equal(codec.encode(expected["waveform"]).numpy(), expected["codes"])
    decoded = codec.decode(torch.from_numpy(expected["codes"]))
    assert np.abs(expected["decoded"]).max() > 0.1, "not silence"
    np.testing.assert_allclose(decoded, expected["decoded"], rtol=0, atol=1e-5)


def test_as_many_codebooks_as_the_original_has() -> None:
    """The published config lists 4 kbit/s, for which a native codec would build 16 codebooks, eight
    of them random."""
    assert 4 in json.loads((ORIGINAL_CODEC / "config.json").read_text())["target_bandwidths"]
    config, _ = to_native(ORIGINAL_CODEC)
    assert config.target_bandwidths == [0.5, 1, 1.5, 2]
    assert config.num_quantizers == 8
    assert config.hop_length == 960


def test_the_native_folder_is_what_transformers_writes(native_codec: Path) -> None:
    preprocessor = json.loads((native_codec / "preprocessor_config.json").read_text())
    assert preprocessor["feature_extractor_type"] == "DacFeatureExtractor"
    assert (preprocessor["sampling_rate"], preprocessor["hop_length"]) == (24_000, 960)
    _, weights = to_native(ORIGINAL_CODEC)
    saved = load_file(native_codec / "model.safetensors")
    torch.testing.assert_close(saved, weights, rtol=0, atol=0)


def rename_pair(
    weights: Weights, stem: str, before: tuple[str, str], after: tuple[str, str]
) -> None:
    for old, new in zip(before, after, strict=True):
        weights[f"{stem}.{new}"] = weights.pop(f"{stem}.{old}")


OLD, NEW = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@pytest.mark.parametrize(("stem", "before", "after"), [(SPLIT, OLD, NEW), (POSITIONS, NEW, OLD)])
def test_weight_norm_in_either_spelling(
    edited_codec: Callable[..., Path], stem: str, before: tuple[str, str], after: tuple[str, str]
) -> None:
    folder = edited_codec(lambda weights: rename_pair(weights, stem, before, after))
    expected = to_native(ORIGINAL_CODEC)[1]
    torch.testing.assert_close(to_native(folder)[1], expected, rtol=0, atol=0)


def test_a_merged_weight_is_that_of_torch() -> None:
    weights = original_weights()
    convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(8, 8, 7))
    spelled = zip(OLD, NEW, strict=True)
    convolution.load_state_dict(
        {new: weights[f"{SPLIT}.{old}"] for old, new in spelled}, strict=False
    )
    merged = to_native(ORIGINAL_CODEC)[1]["acoustic_encoder.block.2.res_unit2.conv1.weight"]
    torch.testing.assert_close(merged, convolution.weight.detach(), rtol=1e-6, atol=0)


# There and back.


def test_round_trip_is_equal_to_the_bit(native_codec: Path, tmp_path: Path) -> None:
    to_original(native_codec, tmp_path / "back")
    config = (tmp_path / "back" / "config.json").read_bytes()
    assert config == (ORIGINAL_CODEC / "config.json").read_bytes()
    weights = torch.load(tmp_path / "back" / "model.pth", weights_only=True)
    assert list(weights) == list(original_weights()), "the same keys in the same order"
    torch.testing.assert_close(weights, original_weights(), rtol=0, atol=0)
    again = tmp_path / "again"
    save_native(tmp_path / "back", again)
    assert (again / "model.safetensors").read_bytes() == (
        native_codec / "model.safetensors"
    ).read_bytes()


def test_the_way_back_needs_what_the_native_codec_does_not_keep(
    native_codec: Path, tmp_path: Path
) -> None:
    with safe_open(native_codec / "original.safetensors", framework="pt") as sidecar:
        kept = set(sidecar.keys())
    split = {key for key in original_weights() if key.endswith(("_g", "_v"))}
    assert kept == split | DROPPED.keys()
    folder = tmp_path / "native"
    shutil.copytree(native_codec, folder)
    (folder / "original.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"original\.safetensors' not found: .* not converted .*; download revision"
    ):
        to_original(folder, tmp_path / "back")


def test_weights_that_changed_since_do_not_go_back(native_codec: Path, tmp_path: Path) -> None:
    """The old (g, v) would undo the change in silence."""
    folder, key = tmp_path / "native", "acoustic_decoder.conv1.weight"
    shutil.copytree(native_codec, folder)
    weights = load_file(folder / "model.safetensors")
    weights[key] *= 1.0001
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=rf"'{key}' has changed since .*; convert the original codec again"
    ):
        to_original(folder, tmp_path / "back")
    assert not list(tmp_path.glob("back*")), "nothing half written"


def test_a_damaged_native_folder_does_not_go_back(native_codec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    shutil.copytree(native_codec, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["fc.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"fc\.weight.* is missing or damaged; convert the original codec again"
    ):
        to_original(folder, tmp_path / "back")


def test_an_existing_folder_is_left_alone(native_codec: Path, tmp_path: Path) -> None:
    for convert, source in ((save_native, ORIGINAL_CODEC), (to_original, native_codec)):
        with pytest.raises(UserError, match="exists already; name a new folder"):
            convert(source, tmp_path)
    assert not list(tmp_path.iterdir())
