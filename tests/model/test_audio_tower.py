"""The Whisper encoder against the original's (tests/golden/audio_tower/README.md): features,
positions, gradients."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import CLIP_POSITIONS, TOWER, TOWER_CASES, tower_waveform
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plugins.audio.log_mel import log_mel_features, num_positions
from plugins.errors import UserError
from plugins.model.audio_tower import AudioTower

ENCODER = json.loads((TOWER / "config.json").read_text(encoding="utf-8"))["audio_encoder_config"]
HIDDEN = 64


def weights() -> dict[str, Tensor]:
    return {
        key.removeprefix("audio_tower."): value
        for key, value in load_file(TOWER / "tower.safetensors").items()
    }


@pytest.fixture
def tower() -> AudioTower:
    tower = AudioTower(ENCODER, HIDDEN)
    tower.load_state_dict(weights(), strict=True)
    return tower.train()


def golden_case(name: str) -> tuple[list[np.ndarray], Any]:
    """The clips of a case in order, and what the original made of them."""
    clips = []
    for sample in TOWER_CASES[name]["samples"]:
        for clip in sample["references"]:
            clips.append(tower_waveform(clip["num_samples"], clip["seed"]))
    return clips, np.load(TOWER / f"{name}.npz")


def trained(tower: AudioTower) -> dict[str, Tensor]:
    """Parameters under the original's names."""
    parameters = {}
    for name, parameter in tower.named_parameters():
        is_projector = name.startswith("audio_encoder_proj.")
        parameters[name if is_projector else f"audio_tower.{name}"] = parameter
    return parameters


# Against the original.


@pytest.mark.parametrize("name", ["one", "long", "mixed"])
def test_features_and_embeddings_equal_the_original(tower: AudioTower, name: str) -> None:
    clips, golden = golden_case(name)
    features, mask = log_mel_features(clips, 128)
    assert features.shape == (len(golden["num_positions"]), 128, 3000)
    assert mask.sum(-1).tolist() == golden["num_mel_frames"].tolist()
    np.testing.assert_allclose(features[:, ::16, ::100], golden["mel_values"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(features.double().sum((1, 2)), golden["mel_sums"], rtol=1e-6)

    embeddings = tower(features, mask).detach().numpy()
    positions = []
    for clip in clips:
        positions += num_positions(len(clip))
    assert positions == golden["num_positions"].tolist()
    assert embeddings.shape == (sum(positions), HIDDEN)
    # The golden file holds every n-th embedding only, to stay small.
    stride = -(-len(embeddings) // len(golden["embeddings"]))
    np.testing.assert_allclose(embeddings[::stride], golden["embeddings"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("num_samples", "positions"), CLIP_POSITIONS.items())
def test_positions_follow_from_the_length(num_samples: str, positions: list[int]) -> None:
    assert num_positions(int(num_samples)) == positions


@pytest.mark.parametrize("name", ["one", "one_with_codes", "mixed", "mixed_with_codes"])
def test_gradients_equal_the_original(tower: AudioTower, name: str) -> None:
    """From the gradient of the original's losses at the embeddings back to every parameter."""
    clips, golden = golden_case(name)
    tower(*log_mel_features(clips, 128)).backward(torch.from_numpy(golden["embedding_gradients"]))
    norms = {key: float(parameter.grad.norm()) for key, parameter in trained(tower).items()}
    assert norms == pytest.approx(TOWER_CASES[name]["grad_norms"], rel=1e-4)
    assert {"audio_tower.conv1.weight", "audio_encoder_proj.linear.weight"} <= norms.keys()
    assert "audio_tower.embed_positions.weight" not in norms, (
        "the original trains everything but the sinusoids"
    )


# Batches at the edge.


def test_a_rest_too_short_for_a_position_leaves_no_trace(tower: AudioTower) -> None:
    """A second chunk of 100 samples has one mel frame: neither an embedding nor a NaN in the
    gradients."""
    clip = tower_waveform(480_100, seed=5)
    embeddings = tower(*log_mel_features([clip], 128))
    assert len(embeddings) == sum(num_positions(len(clip))) == 750
    alone = tower(*log_mel_features([clip[:480_000]], 128))
    torch.testing.assert_close(embeddings, alone, atol=1e-5, rtol=0)
    embeddings.sum().backward()
    for key, parameter in trained(tower).items():
        assert parameter.grad.isfinite().all(), key


def test_a_batch_without_clips_touches_every_parameter(tower: AudioTower) -> None:
    """Or DDP waits for ever for the rank that has such a batch."""
    features, mask = log_mel_features([], 128)
    assert features.shape == (0, 128, 3000)
    embeddings = tower(features, mask)
    assert embeddings.shape == (0, HIDDEN)
    text = torch.ones(2, 5, HIDDEN, requires_grad=True)
    merged = text.masked_scatter(torch.zeros(2, 5, 1, dtype=torch.bool), embeddings)
    assert torch.equal(merged, text)
    merged.square().sum().backward()
    for key, parameter in trained(tower).items():
        assert parameter.grad is not None, key
        assert parameter.grad.eq(0).all(), key


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["one", "none"])
def test_gradient_checkpointing_changes_nothing(
    tower: AudioTower, name: str, use_reentrant: bool
) -> None:
    features, mask = log_mel_features(golden_case(name)[0] if name != "none" else [], 128)

    def gradients() -> dict[str, Tensor]:
        tower.zero_grad()
        tower(features, mask).square().sum().backward()
        return {key: parameter.grad for key, parameter in trained(tower).items()}

    plain = gradients()
    calls = []

    def counted(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        calls.append(1)
        return checkpoint(function, *args, use_reentrant=use_reentrant)

    for layer in tower.layers:  # as `gradient_checkpointing_enable` of the model around it does
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, counted
    torch.testing.assert_close(gradients(), plain)
    assert len(calls) == len(tower.layers)


def test_bfloat16_is_near_float32(tower: AudioTower) -> None:
    clips, golden = golden_case("mixed")
    embeddings = tower.to(torch.bfloat16)(*log_mel_features(clips, 128))
    assert embeddings.dtype == torch.bfloat16
    error = embeddings.detach().float().numpy() - golden["embeddings"]
    assert np.sqrt(np.square(error).mean() / np.square(golden["embeddings"]).mean()) < 0.03
    embeddings.float().sum().backward()
    assert tower.conv1.weight.grad.isfinite().all()


# Shapes and weights.


def test_another_number_of_mel_bins_fails(tower: AudioTower) -> None:
    with pytest.raises(AssertionError, match=r"\(80, 3000\), not \(128, 3000\)"):
        tower(*log_mel_features([tower_waveform(16_000, seed=1)], 80))
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):
        AudioTower({**ENCODER, "num_mel_bins": 80}, HIDDEN).load_state_dict(weights())


@pytest.mark.parametrize("key", ["layers.1.self_attn.k_proj.weight", "embed_positions.weight"])
def test_missing_weights_fail(key: str) -> None:
    incomplete = weights()
    del incomplete[key]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{key}"'):
        AudioTower(ENCODER, HIDDEN).load_state_dict(incomplete)


def test_a_clip_without_samples_fails() -> None:
    with pytest.raises(AssertionError, match="without samples"):
        log_mel_features([np.zeros(0, dtype=np.float32)], 128)


def test_keys_left_out_mean_whisper_large_v3() -> None:
    """The original's defaults; those of transformers' WhisperConfig are the tiny model's."""
    with torch.device("meta"):
        tower = AudioTower({"model_type": "higgs_audio_encoder"}, 3072)
    size = sum(value.numel() for value in tower.state_dict().values())
    projector = sum(value.numel() for value in tower.audio_encoder_proj.state_dict().values())
    assert size - projector == 636_968_960  # as transformers' WhisperEncoder of large v3
    assert len(tower.layers) == 32
    assert tower.layers[0].self_attn.num_heads == 20
    assert type(tower.layers[0].activation_fn).__name__ == "GELUActivation"


def test_layer_drop_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"config\.json: audio_encoder_config\.encoder_layerdrop: 0\.1 skips layers"
    ):
        AudioTower({**ENCODER, "encoder_layerdrop": 0.1}, HIDDEN)
