"""The codec's original format: same codes and sound as the original, exact round trips, and every
wrong folder named.

tests/golden/codec/ was written by the original itself (tests/golden/make/codec.py).
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import HiggsAudioV2TokenizerModel, HubertConfig

from plugins.audio.codec import Codec
from plugins.audio.original_codec import (
    is_original,
    other_model,
    save_native,
    to_native,
    to_original,
)
from plugins.audio.original_codec_keys import DROPPED
from plugins.cli import main
from plugins.errors import UserError

ORIGINAL = GOLDEN / "codec"
SPLIT = "encoder.block.3.block.1.block.1"  # a convolution in DAC's encoder
POSITIONS = "semantic_model.encoder.pos_conv_embed.conv"
Weights = dict[str, Tensor]


def original_weights() -> Weights:
    return torch.load(ORIGINAL / "model.pth", weights_only=True)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the original codec, its weights and config after `edit_weights` and with the fields
    `config`."""

    def edit(edit_weights: Callable[[Weights], Any] = lambda weights: None, **config: Any) -> Path:
        folder = tmp_path / "original"
        folder.mkdir()
        weights = original_weights()
        edit_weights(weights)
        torch.save(weights, folder / "model.pth")
        fields = json.loads((ORIGINAL / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(fields))
        return folder

    return edit


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "codec"
    save_native(ORIGINAL, folder)
    return folder


# The same codec.


def test_it_is_used_without_conversion() -> None:
    expected = np.load(ORIGINAL / "expected.npz")
    assert torch.equal(
        Codec(str(ORIGINAL)).encode(expected["waveform"]), torch.from_numpy(expected["codes"])
    )


def test_the_convert_command(tmp_path: Path) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    assert main(["convert", str(ORIGINAL), str(native)]) == 0
    assert main(["convert", str(native), str(back), "--to", "original"]) == 0
    weights = torch.load(back / "model.pth", weights_only=True)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in original_weights().items())


def test_every_native_key_is_filled_and_every_original_key_used() -> None:
    config, weights = to_native(ORIGINAL)
    with torch.device("meta"):
        expected = HiggsAudioV2TokenizerModel(config).state_dict()
    assert {key: tensor.shape for key, tensor in weights.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    # Of a merged weight two keys are used; each other key holds its own tensor (no two are alike,
    # `inited` aside).
    original = original_weights()
    num_merged = sum(key.endswith("weight_g") for key in original)
    assert num_merged == 74, "the convolutions of DAC for five ratios"
    assert len(weights) == len(original) - num_merged - len(DROPPED)
    whole = [
        tensor
        for key, tensor in original.items()
        if not key.endswith(("_g", "_v")) and key not in DROPPED
    ]
    for tensor in whole:
        assert any(
            tensor.shape == found.shape and torch.equal(tensor, found) for found in weights.values()
        )


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
    assert torch.equal(to_native(ORIGINAL)[1][native_key], original_weights()[original_key])


def test_codes_and_sound_are_the_originals(native: Path) -> None:
    expected = np.load(ORIGINAL / "expected.npz")
    codec = Codec(str(native))
    assert np.array_equal(codec.encode(expected["waveform"]).numpy(), expected["codes"])
    decoded = codec.decode(torch.from_numpy(expected["codes"]))
    assert np.abs(expected["decoded"]).max() > 0.1, "not silence"
    np.testing.assert_allclose(decoded, expected["decoded"], rtol=0, atol=1e-5)


def test_as_many_codebooks_as_the_original_has() -> None:
    """The published config lists 4 kbit/s, for which a native codec would build 16 codebooks, eight
    of them random."""
    assert 4 in json.loads((ORIGINAL / "config.json").read_text())["target_bandwidths"]
    config, _ = to_native(ORIGINAL)
    assert config.target_bandwidths == [0.5, 1, 1.5, 2]
    assert config.num_quantizers == 8
    assert config.hop_length == 960


def test_the_native_folder_is_what_transformers_writes(native: Path) -> None:
    preprocessor = json.loads((native / "preprocessor_config.json").read_text())
    assert preprocessor["feature_extractor_type"] == "DacFeatureExtractor"
    assert (preprocessor["sampling_rate"], preprocessor["hop_length"]) == (24_000, 960)
    _, weights = to_native(ORIGINAL)
    saved = load_file(native / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[key], weights[key]) for key in saved)


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
    edited: Callable[..., Path], stem: str, before: tuple[str, str], after: tuple[str, str]
) -> None:
    folder = edited(lambda weights: rename_pair(weights, stem, before, after))
    expected = to_native(ORIGINAL)[1]
    found = to_native(folder)[1]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_merged_weight_is_that_of_torch() -> None:
    weights = original_weights()
    convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(8, 8, 7))
    spelled = zip(OLD, NEW, strict=True)
    convolution.load_state_dict(
        {new: weights[f"{SPLIT}.{old}"] for old, new in spelled}, strict=False
    )
    merged = to_native(ORIGINAL)[1]["acoustic_encoder.block.2.res_unit2.conv1.weight"]
    torch.testing.assert_close(merged, convolution.weight.detach(), rtol=1e-6, atol=0)


# There and back.


def test_round_trip_is_equal_to_the_bit(native: Path, tmp_path: Path) -> None:
    to_original(native, tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (
        ORIGINAL / "config.json"
    ).read_bytes()
    expected, found = (
        original_weights(),
        torch.load(tmp_path / "back" / "model.pth", weights_only=True),
    )
    assert list(found) == list(expected), "the same keys in the same order"
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key
    again = tmp_path / "again"
    save_native(tmp_path / "back", again)
    assert (again / "model.safetensors").read_bytes() == (native / "model.safetensors").read_bytes()


def test_the_way_back_needs_what_the_native_codec_does_not_keep(
    native: Path, tmp_path: Path
) -> None:
    with safe_open(native / "original.safetensors", framework="pt") as sidecar:
        kept = set(sidecar.keys())
    assert (
        kept == {key for key in original_weights() if key.endswith(("_g", "_v"))} | DROPPED.keys()
    )
    folder = tmp_path / "native"
    shutil.copytree(native, folder)
    (folder / "original.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"original\.safetensors' not found: .* not converted .*; download revision"
    ):
        to_original(folder, tmp_path / "back")


def test_weights_that_changed_since_do_not_go_back(native: Path, tmp_path: Path) -> None:
    """The old (g, v) would undo the change in silence."""
    folder, key = tmp_path / "native", "acoustic_decoder.conv1.weight"
    shutil.copytree(native, folder)
    weights = load_file(folder / "model.safetensors")
    weights[key] *= 1.0001
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=rf"'{key}' has changed since .*; convert the original codec again"
    ):
        to_original(folder, tmp_path / "back")
    assert not list(tmp_path.glob("back*")), "nothing half written"


def test_a_damaged_native_folder_does_not_go_back(native: Path, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    shutil.copytree(native, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["fc.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"fc\.weight.* is missing or damaged; convert the original codec again"
    ):
        to_original(folder, tmp_path / "back")


def test_an_existing_folder_is_left_alone(native: Path, tmp_path: Path) -> None:
    for convert, source in ((save_native, ORIGINAL), (to_original, native)):
        with pytest.raises(UserError, match="exists already; name a new folder"):
            convert(source, tmp_path)
    assert not list(tmp_path.iterdir())


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
            r"'fc_prior\.weight' is missing \(1 in all\), and 'fc_before\.weight' is not a key of the codec",
        ),
        (
            lambda weights: weights.update(
                {"quantizer.vq.layers.8._codebook.embed": torch.zeros(1024, 4)}
            ),
            r"'quantizer\.vq\.layers\.8\._codebook\.embed' is not a key of the codec \(1 such keys\)",
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
    edited: Callable[..., Path], edit: Callable[[Weights], Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        to_native(edited(edit))
    assert "\n" not in str(raised.value)


def test_the_mask_vector_may_be_absent(edited: Callable[..., Path]) -> None:
    """Nobody reads it, and whether a file has it depends on the HuBERT that it was trained with."""
    to_native(edited(lambda weights: weights.pop("semantic_model.masked_spec_embed")))


def test_a_truncated_checkpoint_leaves_nothing_behind(
    edited: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is missing"):
        save_native(edited(lambda weights: weights.pop("fc_post2.bias")), tmp_path / "native")
    assert not list(tmp_path.glob("native*"))


# Files.


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_checkpoint_is_run(
    edited: Callable[..., Path], tmp_path: Path, zipped: bool
) -> None:
    folder, marker = edited(), tmp_path / "marker"
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


def test_torchs_older_file_format_is_read(edited: Callable[..., Path]) -> None:
    folder = edited()
    torch.save(original_weights(), folder / "model.pth", _use_new_zipfile_serialization=False)
    found, expected = to_native(folder)[1], to_native(ORIGINAL)[1]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("content", ["half", "nothing", "git-lfs pointer"])
def test_a_damaged_file_is_named(edited: Callable[..., Path], content: str) -> None:
    file = edited() / "model.pth"
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


def test_a_damaged_config_is_named(edited: Callable[..., Path]) -> None:
    folder = edited()
    (folder / "config.json").write_text('{"D": 16,')
    with pytest.raises(UserError, match=r"config\.json: line: .* is no JSON; download"):
        to_native(folder)


# Other models' folders.


def test_a_config_without_weights_is_named(edited: Callable[..., Path]) -> None:
    folder = edited()
    (folder / "model.pth").unlink()
    assert is_original(folder)
    with pytest.raises(
        UserError,
        match=r"weights: 'model\.pth' not found; download .* is native, 9d4988f\w* is original",
    ):
        to_native(folder)


def test_a_native_config_beside_original_weights_is_named(
    edited: Callable[..., Path], native: Path
) -> None:
    """As reported when `main` of the Hub repository became native (diodiogod/TTS-Audio-Suite, issue
    287)."""
    folder = edited()
    shutil.copy(native / "config.json", folder)
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
    weights = original_weights()
    return {
        key.removeprefix("semantic_model."): weights[key]
        for key in weights
        if key.startswith("semantic_model.")
    }


def plain_dac() -> Weights:
    weights = original_weights()
    ours = {
        key: tensor for key, tensor in weights.items() if key.startswith(("encoder.", "decoder_2."))
    }
    return {key.replace("decoder_2.", "decoder."): tensor for key, tensor in ours.items()}


def test_another_models_weights_are_named(
    edited: Callable[..., Path], tiny: Path, native: Path
) -> None:
    folder = edited()
    generation = load_file(tiny / "model.safetensors")
    original_generation = load_file(GOLDEN / "tiny_original.safetensors")
    for weights, named in (
        (generation, "the generation model"),
        (original_generation, "the generation model in its original format"),
        (load_file(native / "model.safetensors"), "the native codec"),
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


def test_which_folders_are_original(tiny: Path, native: Path, tmp_path: Path) -> None:
    assert is_original(ORIGINAL)
    for folder in (native, tiny, tiny / "audio_tokenizer", tmp_path, tmp_path / "absent"):
        assert not is_original(folder)
    both = tmp_path / "both"
    shutil.copytree(native, both)
    shutil.copy(ORIGINAL / "model.pth", both)
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
            r"'quantizer\.vq\.layers\.6\.project_in\.weight' is not a key of the codec \(16 such keys\)",
        ),
        (
            {"D": 8},
            r"'encoder\.block\.7\.weight_g' has shape \[16, 1, 1\], config\.json asks for \[8, 1, 1\]",
        ),
    ],
    ids=["teacher", "pooling", "scale", "bandwidths", "fewer codebooks", "width"],
)
def test_a_variant_that_native_codecs_lack_is_named(
    edited: Callable[..., Path], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        to_native(edited(**config))


def test_a_missing_field_is_named(edited: Callable[..., Path]) -> None:
    folder = edited()
    fields = json.loads((folder / "config.json").read_text())
    del fields["ratios"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"config\.json: ratios: None is missing"):
        to_native(folder)
