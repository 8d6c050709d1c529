"""list[EncodedSample] -> batch tensors: delay pattern, labels, padding or packing.

Names, shapes and dtypes are those of transformers' `HiggsAudioV2ForConditionalGeneration.forward`:

    input_ids (B, S) long            attention_mask (B, S) long
    audio_input_ids (B, T, K) long   audio_input_ids_mask (B, T) bool
    labels (B, S) long               audio_labels (B, T, K) long          only in training
    audio_features (A, M, 3000)      audio_feature_attention_mask (A, 3000) bool     only with an
                                                                                     audio tower

T is the widest sum of delayed frames of a row, 0 for a batch without audio. Labels are made here
and in `prompt`, and are not shifted (`plugins.model.loss` shifts).

Packed, the rows stand one after the other in a single one (B = 1, nothing is padding), and in the
place of `attention_mask`, whose absence lets transformers look for them, there is where each
begins:

    position_ids (1, S) long           from 0 in each row: for the rotary embedding, and for the
                                       mask of sdpa and eager
    cu_seq_lens_q, cu_seq_lens_k       (rows + 1,) int32, where rows begin, and S: for flash
    max_length_q, max_length_k int     attention, which then does not ask the device in each layer

This file knows neither texts nor files, nor who made the codes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plugins.audio.log_mel import log_mel_features, num_positions
from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens, TowerInput
from plugins.delay_pattern import IGNORE_INDEX, num_delayed_frames


def collate(
    samples: Sequence[EncodedSample], tokens: SpecialTokens, *, training: bool, packed: bool = False
) -> dict[str, Any]:
    """Right-padded with labels in training, left-padded without labels for generation; packed only
    in training."""
    assert training or not packed, "generation has one prompt per row"
    lengths = [len(sample.input_ids) for sample in samples]
    num_frames = [sum(map(_num_frames, sample.clips)) for sample in samples]
    width = max(lengths)
    if packed:
        num_frames, width = [sum(num_frames)], sum(lengths)
    clips, clips_trained = _clips(samples)
    frames = _delayed_frames(clips, tokens)
    input_ids = [sample.input_ids for sample in samples]
    batch = {
        "input_ids": _table(input_ids, width, tokens.pad, packed=packed, left=not training),
        "audio_input_ids": _frame_table(frames, num_frames, tokens.stream_eos),
        "audio_input_ids_mask": _is_real(num_frames),
    }
    _check_placeholders(batch["input_ids"], samples, tokens)
    if packed:
        batch |= _boundaries(lengths)
    else:
        batch["attention_mask"] = _is_real(lengths, left=not training).long()
    if tokens.tower is not None:
        batch |= _tower_inputs(samples, tokens.tower)
    if training:
        for sample in samples:
            # Where packed rows meet, no position may learn to predict the beginning of the next
            # row.
            assert sample.labels[0] == IGNORE_INDEX, f"{sample.source}: its first token has a label"
        labels = [sample.labels for sample in samples]
        frame_labels = _frame_labels(clips, clips_trained, tokens)
        batch["labels"] = _table(labels, width, IGNORE_INDEX, packed=packed)
        batch["audio_labels"] = _frame_table(frame_labels, num_frames, IGNORE_INDEX)
    return batch


# Rows.


def _table(
    rows: list[list[int]], width: int, value: int, *, packed: bool = False, left: bool = False
) -> Tensor:
    """(B, width), padded; packed (1, width), one after the other. Through `array`, as
    `torch.tensor` is ten times slower."""
    flat, padding = array("q"), array("q", [value])
    for row in rows:
        missing = padding * (0 if packed else width - len(row))
        if left:
            flat += missing
        flat.fromlist(row)
        if not left:
            flat += missing
    return torch.frombuffer(flat, dtype=torch.long).view(-1, width)


def _is_real(lengths: list[int], *, left: bool = False) -> Tensor:
    """(B, longest) bool: what is not padding."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return real.flip(-1) if left else real


def _boundaries(lengths: list[int]) -> dict[str, Any]:
    """Where each row of a packed one begins, in the terms of transformers
    (`FlashAttentionKwargs`)."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    first_of_row = ends[:-1].repeat_interleave(torch.tensor(lengths))
    starts, longest = ends.int(), max(lengths)
    return {
        "position_ids": (torch.arange(sum(lengths)) - first_of_row)[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


# Frames.


def _frame_table(flat: Tensor, num_frames: list[int], value: int) -> Tensor:
    """Frames of all rows (sum, K) -> (B, T, K). Padded on the right in both modes, since frames are
    matched to placeholders in order."""
    if len(num_frames) == 1:  # nothing to pad, nothing to copy
        return flat[None]
    return pad_sequence(flat.split(num_frames), batch_first=True, padding_value=value)


def _clips(samples: Sequence[EncodedSample]) -> tuple[list[Tensor], list[bool]]:
    """The clips (K, F) of all rows in order, and whether each is trained."""
    clips, clips_trained = [], []
    for sample in samples:
        clips += sample.clips
        clips_trained += sample.clips_trained
    return clips, clips_trained


def _delayed_frames(clips: list[Tensor], tokens: SpecialTokens) -> Tensor:
    """Their delayed frames (sum, K)."""
    if not clips:
        return torch.zeros(0, tokens.num_codebooks, dtype=torch.long)
    return apply_delays(clips, bos_id=tokens.stream_bos, eos_id=tokens.stream_eos)


def _frame_labels(clips: list[Tensor], trained: list[bool], tokens: SpecialTokens) -> Tensor:
    """Their labels (sum, K). A clip that is not trained, such as a reference, has none."""
    if not clips:
        return torch.zeros(0, tokens.num_codebooks, dtype=torch.long)
    return delay_labels_of(clips, trained, eos_id=tokens.stream_eos)


# The functions of `plugins.delay_pattern` for all clips of a batch at once: one strided copy in the
# place of loops over clips and codebooks (benchmarks, P1). A test holds them equal.


def apply_delays(clips: Sequence[Tensor], *, bos_id: int, eos_id: int) -> Tensor:
    """`apply_delay` of several clips, each (K, F), one after the other: (sum of F+K+1, K)."""
    num_codebooks = len(clips[0])
    # Between two clips codebook k has K - k stream EOS of the first and k + 1 stream BOS of the
    # second: K + 1 steps.
    gap = clips[0].new_full((num_codebooks, num_codebooks + 1), eos_id)
    gap.masked_fill_(torch.ones_like(gap, dtype=torch.bool).tril().flip(-1), bos_id)
    pieces = [gap]
    for codes in clips:
        pieces += (codes, gap)
    return _delayed(pieces)


def delay_labels_of(clips: Sequence[Tensor], trained: Sequence[bool], *, eos_id: int) -> Tensor:
    """`delay_labels` of several clips, aligned with `apply_delays`; -100 throughout for those that
    are not trained."""
    num_codebooks = len(clips[0])
    untrained = clips[0].new_full((num_codebooks, num_codebooks + 1), IGNORE_INDEX)
    gap = untrained.clone()
    gap[:, 0] = eos_id
    pieces = [untrained]
    for codes, is_trained in zip(clips, trained, strict=True):
        if is_trained:
            pieces += (codes, gap)
        else:
            pieces += (torch.full_like(codes, IGNORE_INDEX), untrained)
    return _delayed(pieces)


def _delayed(pieces: Sequence[Tensor]) -> Tensor:
    """Codebooks side by side, each (K, any): a gap of K + 1 steps, then clips, each with its gap ->
    (T, K), row k moved down by k + 1 steps from where the first clip begins.

    In one strided copy for all clips and codebooks: entry (k, j) of the pieces has index
    (j + k) K + k in the result."""
    aligned = torch.cat(list(pieces), dim=1)
    num_codebooks, num_steps = aligned.shape
    buffer = aligned.new_empty((num_steps + num_codebooks, num_codebooks))
    buffer.as_strided(aligned.shape, (num_codebooks + 1, num_codebooks)).copy_(aligned)
    return buffer[num_codebooks : num_steps - 1]


def _num_frames(codes: Tensor) -> int:
    """Delayed frames of a clip (K, F)."""
    num_codebooks, num_frames = codes.shape
    assert num_frames, "a clip has no frame"
    return num_delayed_frames(num_frames, num_codebooks)


# Placeholders.


def _tower_inputs(samples: Sequence[EncodedSample], tower: TowerInput) -> dict[str, Tensor]:
    """Log-mel features of what the audio tower hears, 30 s chunks of all rows in order (A may be
    0)."""
    waveforms = []
    for sample in samples:
        positions = sum(sum(num_positions(len(waveform))) for waveform in sample.heard)
        placeholders = sample.input_ids.count(tower.placeholder)
        assert positions == placeholders, (
            f"{sample.source}: {positions} positions of the audio tower, {placeholders}"
        )
        waveforms += [waveform.numpy() for waveform in sample.heard]
    features, mask = log_mel_features(waveforms, tower.num_mel_bins)
    return {"audio_features": features, "audio_feature_attention_mask": mask}


def _check_placeholders(
    ids: Tensor, samples: Sequence[EncodedSample], tokens: SpecialTokens
) -> None:
    """Placeholders == frames, per clip: the model itself overlooks surplus frames and then trains
    shifted audio.

    ids: of all samples, any shape; no row begins with audio, so that no two clips touch.
    """
    if _runs(ids, tokens) == [_num_frames(codes) for sample in samples for codes in sample.clips]:
        return
    # Only a batch with a fault pays for finding out whose it is.
    for sample in samples:
        placeholders = _runs(torch.tensor(sample.input_ids), tokens)
        frames = list(map(_num_frames, sample.clips))
        assert placeholders == frames, (
            f"{sample.source}: clips take {frames} frames but the prompt has {placeholders}"
        )


def _runs(ids: Tensor, tokens: SpecialTokens) -> list[int]:
    """How many placeholders of audio stand side by side, for each run of them."""
    is_audio = (ids == tokens.audio) | (ids == tokens.audio_delay)
    # Zeros around it give a run at either end an edge, too.
    steps = torch.nn.functional.pad(is_audio.flatten().char(), (1, 1)).diff()
    edges = steps.nonzero().view(-1, 2)  # first of a run, first after it
    return (edges[:, 1] - edges[:, 0]).tolist()
