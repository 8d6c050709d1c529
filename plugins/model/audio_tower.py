"""Waveforms -> embeddings of a Whisper encoder in the language model's space, for checkpoints that
have one. L1.

    waveform (N,) at 16 kHz -> chunks of 30 s -> log-mel features (A, M, T) and mask (A, T)          `log_mel_features`
    -> convolutions and Whisper layers (A, T / 2, D) -> neighbours averaged, projected, padding left
    out: (P, H)

A chunks of all clips of a batch in order, M mel bins, T = 3000 mel frames of 10 ms, D width of the
encoder, P positions of all chunks in order (25 per second), H hidden size of the language model.
The encoder differs from Whisper's own in two ways: padding is masked, and neighbouring positions
are averaged before the last norm.

This file knows neither where the positions stand in a prompt nor what is beside them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from plugins.errors import problem

SAMPLE_RATE_HZ = 16_000  # of every Whisper
_CHUNK_SAMPLES = 30 * SAMPLE_RATE_HZ
_HOP_SAMPLES = 160
_CHUNK_FRAMES = _CHUNK_SAMPLES // _HOP_SAMPLES
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


def num_positions(num_samples: int) -> list[int]:
    """Positions of each 30 s chunk of a clip of `num_samples` at 16 kHz. A rest of 20 ms or less
    has none."""
    chunks = [
        min(_CHUNK_SAMPLES, num_samples - start) for start in range(0, num_samples, _CHUNK_SAMPLES)
    ]
    return [_pooled(_convolved(-(-chunk // _HOP_SAMPLES))) for chunk in chunks]


def log_mel_features(waveforms: Sequence[np.ndarray], num_mel_bins: int) -> tuple[Tensor, Tensor]:
    """waveforms, each (N,) float32 at 16 kHz -> features (A, M, 3000) float32 and mask (A, 3000)
    bool.

    One entry per 30 s chunk, the chunks of a clip in order, the last one padded with silence.
    """
    assert all(len(waveform) for waveform in waveforms), "a clip without samples has no features"
    chunks = [
        waveform[start : start + _CHUNK_SAMPLES]
        for waveform in waveforms
        for start in range(0, len(waveform), _CHUNK_SAMPLES)
    ]
    if not chunks:
        return torch.zeros(0, num_mel_bins, _CHUNK_FRAMES), torch.zeros(
            0, _CHUNK_FRAMES, dtype=torch.bool
        )
    extracted = _extractor(num_mel_bins)(
        chunks, sampling_rate=SAMPLE_RATE_HZ, return_attention_mask=True, return_tensors="pt"
    )
    return extracted["input_features"], extracted["attention_mask"].bool()


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
        assert features.shape[1:] == self.features_shape, (
            f"{tuple(features.shape[1:])}, not {self.features_shape}"
        )
        num_chunks = len(features)
        if (
            num_chunks == 0
        ):  # one position of silence, dropped below; attention takes no empty batch
            features, mask = features.new_zeros(1, self.features_shape[0], 4), mask.new_ones(1, 4)
        num_frames = mask.sum(dim=-1)
        states = nn.functional.gelu(self.conv1(features.to(self.conv1.weight.dtype)))
        states = nn.functional.gelu(self.conv2(states)).transpose(1, 2)  # (A, T / 2, D)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = nn.functional.dropout(states, self.dropout, training=self.training)
        heard = _first(_convolved(num_frames), states.shape[1])[
            :, None, None, :
        ]  # True: may be attended to
        for layer in self.layers:
            states = layer(states, heard)
        states = self.layer_norm(states.unflatten(1, (-1, 2)).mean(dim=2))  # (A, T / 4, D)
        kept = _first(_pooled(_convolved(num_frames)), states.shape[1])
        return self.audio_encoder_proj(states[:num_chunks][kept[:num_chunks]])


class _Sinusoids(nn.Module):
    """`weight` (T / 2, D) is never trained: a buffer, because transformers makes every loaded
    parameter trainable."""

    weight: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_positions, width))


def _whisper_config(given: Mapping[str, Any]) -> WhisperConfig:
    if given.get("encoder_layerdrop"):
        reason = "skips layers at random, which then have no gradient: parallel training would wait for it for ever"
        raise problem(
            source="config.json",
            field="audio_encoder_config.encoder_layerdrop",
            value=given["encoder_layerdrop"],
            reason=reason,
            remedy="set it to 0",
        )
    values: dict[str, Any] = {
        key: given.get(key, default) for key, default in _ENCODER_DEFAULTS.items()
    }
    # sdpa takes the boolean mask as it is; eager attention would add it to the scores as 0 and 1.
    values["attn_implementation"] = "sdpa"
    return WhisperConfig(**values)


@lru_cache
def _extractor(num_mel_bins: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=num_mel_bins)


def _convolved(num_frames: Any) -> Any:
    """Positions after the convolution of stride 2; of an int or of each entry of a tensor."""
    return (num_frames + 1) // 2


def _pooled(num_convolved: Any) -> Any:
    """Positions after averaging pairs: a last one without neighbour falls away."""
    return num_convolved // 2


def _first(counts: Tensor, size: int) -> Tensor:
    """(A,) -> (A, size) bool: the first `counts` entries of each row."""
    return torch.arange(size, device=counts.device) < counts[:, None]
