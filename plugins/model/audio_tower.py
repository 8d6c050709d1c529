"""Log-mel features -> embeddings of a Whisper encoder in the language model's space, for
checkpoints that have one.

    features (A, M, T), mask (A, T)              of `plugins.audio.log_mel`
    -> convolutions, Whisper layers              (A, T / 2, D)
    -> neighbours averaged, last norm            (A, T / 4, D)
    -> padding left out, projected               (P, H)

A chunks of all clips of a batch in order, M mel bins, T mel frames, D width of the encoder, P
positions of all chunks in order, H hidden size of the language model. The encoder differs from
Whisper's own in two ways: padding is masked, and neighbouring positions are averaged before the
last norm.

This file knows neither where the positions stand in a prompt nor what is beside them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from plugins.audio.log_mel import convolved, pooled
from plugins.errors import problem

# What the original assumes for a key that its `audio_encoder_config` leaves out: the encoder of
# Whisper large v3.
_ENCODER_DEFAULTS = {
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}


class AudioTower(nn.Module):
    """The original's `audio_tower` with its `audio_encoder_proj` inside, every parameter under its
    original name."""

    def __init__(self, audio_encoder_config: Mapping[str, Any], hidden_size: int) -> None:
        """audio_encoder_config: that entry of the original's config.json. hidden_size: H of the
        language model."""
        super().__init__()
        config = _whisper_config(audio_encoder_config)
        width = config.d_model
        self.features_shape = (config.num_mel_bins, 2 * config.max_source_positions)
        self.dropout = config.dropout
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = _Sinusoids(config.max_source_positions, width)
        self.layers = nn.ModuleList(
            WhisperEncoderLayer(config) for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        self.audio_encoder_proj = nn.Sequential(OrderedDict(linear=nn.Linear(width, hidden_size)))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (A, M, T) and mask (A, T) of `log_mel_features` -> embeddings (P, H), in the
        weights' dtype.

        For A = 0 the result (0, H) still hangs on every parameter: scattering it into the input
        embeddings gives each of them a zero gradient, without which DDP and ZeRO wait for ever for
        a rank whose batch has no clip."""
        shape = tuple(features.shape[1:])
        assert shape == self.features_shape, f"{shape}, not {self.features_shape}"
        num_chunks = len(features)
        if num_chunks == 0:
            # One position of silence, dropped below: attention takes no empty batch.
            features = features.new_zeros(1, self.features_shape[0], 4)
            mask = mask.new_ones(1, 4)

        num_convolved = convolved(mask.sum(dim=-1))  # (A,)
        states = nn.functional.gelu(self.conv1(features.to(self.conv1.weight.dtype)))
        states = nn.functional.gelu(self.conv2(states)).transpose(1, 2)  # (A, T / 2, D)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = nn.functional.dropout(states, self.dropout, training=self.training)
        may_be_attended = _first(num_convolved, states.shape[1])[:, None, None, :]
        for layer in self.layers:
            states = layer(states, may_be_attended)
        states = self.layer_norm(states.unflatten(1, (-1, 2)).mean(dim=2))  # (A, T / 4, D)

        is_position = _first(pooled(num_convolved), states.shape[1])
        return self.audio_encoder_proj(states[:num_chunks][is_position[:num_chunks]])


class _Sinusoids(nn.Module):
    """`weight` (T / 2, D) is never trained: a buffer, because transformers makes every loaded
    parameter trainable."""

    weight: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_positions, width))


def _whisper_config(given: Mapping[str, Any]) -> WhisperConfig:
    if given.get("encoder_layerdrop"):
        raise problem(
            source="config.json",
            field="audio_encoder_config.encoder_layerdrop",
            value=given["encoder_layerdrop"],
            reason="skips layers at random, which then have no gradient: parallel training would"
            " wait for it for ever",
            remedy="set it to 0",
        )
    values: dict[str, Any] = {}
    for key, default in _ENCODER_DEFAULTS.items():
        values[key] = given.get(key, default)
    # sdpa takes the boolean mask as it is; eager attention would add it to the scores as 0 and 1.
    values["attn_implementation"] = "sdpa"
    return WhisperConfig(**values)


def _first(counts: Tensor, size: int) -> Tensor:
    """(A,) -> (A, size) bool: the first `counts` entries of each row."""
    return torch.arange(size, device=counts.device) < counts[:, None]
