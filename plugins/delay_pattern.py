"""Codes <-> delayed frames, and the labels of delayed frames. Pure tensors: imports torch only.

The delay pattern (MusicGen, arXiv 2306.05284, section 2.2) shifts codebook k by k steps, so that
one autoregressive step predicts codebook k of frame t - k and may look at all coarser codebooks of
that frame. Higgs-Audio V2 puts one stream BOS before and one stream EOS after each clip and fills
the triangles with them. K = 4, F = 3, B = BOS, E = EOS:

    step        0    1    2    3    4    5    6    7        labels
    codebook 0  B   c0,1 c0,2 c0,3  E    E    E    E        -  c  c  c  E  -  -  -
    codebook 1  B    B   c1,1 c1,2 c1,3  E    E    E        -  -  c  c  c  E  -  -
    codebook 2  B    B    B   c2,1 c2,2 c2,3  E    E        -  -  -  c  c  c  E  -
    codebook 3  B    B    B    B   c3,1 c3,2 c3,3  E        -  -  -  -  c  c  c  E

Every codebook is trained on its F codes and on exactly one EOS, the step that stops it: without
that EOS label a model never stops speaking. This file knows neither the text around a clip, nor the
shift by one that a causal loss makes, nor how a batch is laid out fast (`plugins.collator`)."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100  # torch's and transformers' convention for positions without a label


def num_delayed_frames(num_frames: int, num_codebooks: int) -> int:
    """F -> F + K + 1: stream BOS, stream EOS and K - 1 steps of delay."""
    return num_frames + num_codebooks + 1


def apply_delay(codes: Tensor, *, bos_id: int, eos_id: int) -> Tensor:
    """(K, F) codes -> (F+K+1, K) delayed frames with stream BOS and EOS.

    Raises ValueError if `codes` is not two-dimensional or has no frame.
    """
    num_codebooks, num_frames = _shape(codes)
    num_steps = num_delayed_frames(num_frames, num_codebooks)
    # What is not written below is the triangle behind the clip.
    frames = codes.new_full((num_steps, num_codebooks), eos_id)
    for k in range(num_codebooks):
        start = k + 1  # the step of the codebook's first code
        frames[:start, k] = bos_id
        frames[start : start + num_frames, k] = codes[k]
    return frames


def undo_delay(frames: Tensor) -> Tensor:
    """(F+K+1, K) delayed frames -> (K, F) codes, the inverse of `apply_delay`.

    Raises ValueError if there are too few frames to hold one code of each codebook.
    """
    num_steps, num_codebooks = frames.shape
    num_frames = num_steps - num_codebooks - 1
    # Generation that stops at once gives fewer steps than the delay is wide.
    if num_frames < 1:
        raise ValueError(
            f"{num_steps} delayed frames hold no complete frame of {num_codebooks} codebooks"
        )
    return torch.stack([frames[k + 1 : k + 1 + num_frames, k] for k in range(num_codebooks)])


def delay_labels(codes: Tensor, *, eos_id: int) -> Tensor:
    """(K, F) codes -> (F+K+1, K) labels, aligned with `apply_delay`: F codes and one EOS per
    codebook, else -100.

    Not shifted: row t is the label *of* delayed frame t. `plugins.model.loss` shifts.
    """
    num_codebooks, num_frames = _shape(codes)
    num_steps = num_delayed_frames(num_frames, num_codebooks)
    labels = codes.new_full((num_steps, num_codebooks), IGNORE_INDEX)
    for k in range(num_codebooks):
        start = k + 1
        labels[start : start + num_frames, k] = codes[k]
        labels[start + num_frames, k] = eos_id  # the only one of its codebook that is trained
    return labels


def _shape(codes: Tensor) -> tuple[int, int]:
    """K and F."""
    if codes.dim() != 2 or codes.shape[1] == 0:
        raise ValueError(f"codes must be (K, F) with at least one frame, got {tuple(codes.shape)}")
    num_codebooks, num_frames = codes.shape
    return num_codebooks, num_frames
