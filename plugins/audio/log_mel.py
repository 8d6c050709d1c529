"""Waveforms -> what a Whisper encoder hears: log-mel features, and how many positions they become.

    waveform (N,) at 16 kHz -> chunks of 30 s -> features (A, M, T) and mask (A, T)

A chunks of all clips of a batch in order, M mel bins, T = 3000 mel frames of 10 ms. A prompt needs
the positions (25 per second) before any encoder runs. This file does not know the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

SAMPLE_RATE_HZ = 16_000  # of every Whisper
_CHUNK_SAMPLES = 30 * SAMPLE_RATE_HZ  # what its encoder takes at a time
_HOP_SAMPLES = 160  # 10 ms
_CHUNK_FRAMES = _CHUNK_SAMPLES // _HOP_SAMPLES


def num_positions(num_samples: int) -> list[int]:
    """Positions of each 30 s chunk of a clip of `num_samples` at 16 kHz. A rest of 20 ms or less
    has none."""
    counts = []
    for start in range(0, num_samples, _CHUNK_SAMPLES):
        num_in_chunk = min(_CHUNK_SAMPLES, num_samples - start)
        num_mel_frames = -(-num_in_chunk // _HOP_SAMPLES)  # rounded up
        counts.append(pooled(convolved(num_mel_frames)))
    return counts


def log_mel_features(waveforms: Sequence[np.ndarray], num_mel_bins: int) -> tuple[Tensor, Tensor]:
    """waveforms, each (N,) float32 at 16 kHz -> features (A, M, 3000) float32 and mask (A, 3000)
    bool.

    One entry per 30 s chunk, the chunks of a clip in order, the last one padded with silence.
    """
    assert all(map(len, waveforms)), "a clip without samples has no features"
    chunks = list(_chunks(waveforms))
    if not chunks:
        # The extractor takes no empty list; a batch without clips still goes through the encoder.
        features = torch.zeros(0, num_mel_bins, _CHUNK_FRAMES)
        return features, torch.zeros(0, _CHUNK_FRAMES, dtype=torch.bool)
    extracted = _extractor(num_mel_bins)(
        chunks, sampling_rate=SAMPLE_RATE_HZ, return_attention_mask=True, return_tensors="pt"
    )
    return extracted["input_features"], extracted["attention_mask"].bool()


def convolved(num_frames: Any) -> Any:
    """Positions after the encoder's convolution of stride 2; of an int or of each entry of a
    tensor."""
    return (num_frames + 1) // 2


def pooled(num_convolved: Any) -> Any:
    """Positions after averaging pairs: a last one without neighbour falls away."""
    return num_convolved // 2


def _chunks(waveforms: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for waveform in waveforms:
        for start in range(0, len(waveform), _CHUNK_SAMPLES):
            yield waveform[start : start + _CHUNK_SAMPLES]


@lru_cache  # its filter bank is made once
def _extractor(num_mel_bins: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=num_mel_bins)
