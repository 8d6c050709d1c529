"""Codes <-> delayed frames, and the labels of delayed frames. L0: pure tensors, imports torch only.

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
that EOS label a model never stops speaking. This file knows neither the text around a clip nor the
shift by one that a causal loss makes."""

from __future__ import annotations

from collections.abc import Sequence

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
    return apply_delays([codes], bos_id=bos_id, eos_id=eos_id)


def apply_delays(clips: Sequence[Tensor], *, bos_id: int, eos_id: int) -> Tensor:
    """The delayed frames of several clips, each (K, F), one after the other: (sum of F+K+1, K)."""
    num_codebooks = _num_codebooks(clips)
    # Between two clips codebook k has K - k stream EOS of the first and k + 1 stream BOS of the
    # second: K + 1 steps.
    gap = clips[0].new_full((num_codebooks, num_codebooks + 1), eos_id)
    gap.masked_fill_(torch.ones_like(gap, dtype=torch.bool).tril().flip(-1), bos_id)
    return _delayed([gap, *(piece for codes in clips for piece in (codes, gap))])


def undo_delay(frames: Tensor) -> Tensor:
    """(F+K+1, K) delayed frames -> (K, F) codes, the inverse of `apply_delay`.

    Raises ValueError if there are too few frames to hold one code of each codebook.
    """
    num_steps, num_codebooks = frames.shape
    num_frames = num_steps - num_codebooks - 1
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
    return delay_labels_of([codes], [True], eos_id=eos_id)


def delay_labels_of(clips: Sequence[Tensor], trained: Sequence[bool], *, eos_id: int) -> Tensor:
    """The labels of several clips, aligned with `apply_delays`; -100 throughout for those that are
    not trained."""
    num_codebooks = _num_codebooks(clips)
    untrained = clips[0].new_full((num_codebooks, num_codebooks + 1), IGNORE_INDEX)
    gap = untrained.clone()
    gap[:, 0] = eos_id
    pieces = [untrained]
    for codes, is_trained in zip(clips, trained, strict=True):
        pieces += (codes, gap) if is_trained else (torch.full_like(codes, IGNORE_INDEX), untrained)
    return _delayed(pieces)


def _delayed(pieces: Sequence[Tensor]) -> Tensor:
    """Codebooks side by side, each (K, any): a gap of K + 1 steps, then clips, each with its gap ->
    (T, K), row k moved down by k + 1 steps from where the first clip begins.

    In one strided copy instead of one per codebook: entry (k, j) of the pieces has index (j + k) K
    + k in the result."""
    aligned = torch.cat(list(pieces), dim=1)
    num_codebooks, num_steps = aligned.shape
    buffer = aligned.new_empty((num_steps + num_codebooks, num_codebooks))
    buffer.as_strided(aligned.shape, (num_codebooks + 1, num_codebooks)).copy_(aligned)
    return buffer[num_codebooks : num_steps - 1]


def _num_codebooks(clips: Sequence[Tensor]) -> int:
    for codes in clips:
        if codes.dim() != 2 or codes.shape[1] == 0:
            raise ValueError(
                f"codes must be (K, F) with at least one frame, got {tuple(codes.shape)}"
            )
    return clips[0].shape[0]
