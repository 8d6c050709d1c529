"""list[EncodedSample] -> batch tensors: delay pattern, labels, padding or packing. L1.

Names, shapes and dtypes are those of transformers' `HiggsAudioV2ForConditionalGeneration.forward`:

    input_ids (B, S) long            attention_mask (B, S) long
    audio_input_ids (B, T, K) long   audio_input_ids_mask (B, T) bool
    labels (B, S) long               audio_labels (B, T, K) long          only in training
    audio_features (A, M, 3000)      audio_feature_attention_mask (A, 3000) bool     only with an audio tower

T is the widest sum of delayed frames of a row, 0 for a batch without audio. Labels are made here
and in `prompt`, and are not shifted (`plugins.model.loss` shifts).

Packed, the rows stand one after the other in a single one (B = 1, nothing is padding), and in the
place of `attention_mask`, whose absence lets transformers look for them, there is where each
begins:

    position_ids (1, S) long, from 0 in each row       for the rotary embedding, and for the mask of sdpa and eager
    cu_seq_lens_q, cu_seq_lens_k (rows + 1,) int32     for flash attention: where rows begin, and S; with them it
    max_length_q, max_length_k int                     does not have to ask the device in each layer
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens, TowerInput
from plugins.delay_pattern import IGNORE_INDEX, apply_delays, delay_labels_of, num_delayed_frames
from plugins.model.audio_tower import log_mel_features, num_positions


def collate(
    samples: Sequence[EncodedSample], tokens: SpecialTokens, *, training: bool, packed: bool = False
) -> dict[str, Any]:
    """Right-padded with labels in training, left-padded without labels for generation; packed only
    in training."""
    assert training or not packed, "generation has one prompt per row"
    lengths = [len(sample.input_ids) for sample in samples]
    num_frames = [sum(map(_num_frames, sample.clips)) for sample in samples]
    width = None if packed else max(lengths)

    def frames(flat: Tensor, value: int) -> Tensor:
        # Frames are matched to placeholders in order, so they are padded on the right in both
        # modes.
        return (
            flat[None]
            if packed
            else pad_sequence(flat.split(num_frames), batch_first=True, padding_value=value)
        )

    batch = {
        "input_ids": _table(
            [sample.input_ids for sample in samples], width, tokens.pad, left=not training
        ),
        "audio_input_ids": frames(_delayed_frames(samples, tokens), tokens.stream_eos),
        "audio_input_ids_mask": _is_real([sum(num_frames)] if packed else num_frames),
    }
    _check_placeholders(batch["input_ids"], samples, tokens)
    batch |= (
        _boundaries(lengths)
        if packed
        else {"attention_mask": _is_real(lengths, left=not training).long()}
    )
    if tokens.tower is not None:
        batch |= _heard(samples, tokens.tower)
    if training:
        for sample in samples:
            # Where packed rows meet, no position may learn to predict the beginning of the next
            # row.
            assert sample.labels[0] == IGNORE_INDEX, f"{sample.source}: its first token has a label"
        batch["labels"] = _table([sample.labels for sample in samples], width, IGNORE_INDEX)
        batch["audio_labels"] = frames(_frame_labels(samples, tokens), IGNORE_INDEX)
    return batch


def _table(rows: list[list[int]], width: int | None, value: int, *, left: bool = False) -> Tensor:
    """(B, width), padded; without a width (1, sum), one after the other. `torch.tensor` is ten
    times slower."""
    flat, padding = array("q"), array("q", [value])
    for row in rows:
        missing = padding * (0 if width is None else width - len(row))
        if left:
            flat += missing
        flat.fromlist(row)
        if not left:
            flat += missing
    return torch.frombuffer(flat, dtype=torch.long).view(-1, width or len(flat))


def _is_real(lengths: list[int], *, left: bool = False) -> Tensor:
    """(B, longest) bool: what is not padding."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return real.flip(-1) if left else real


def _boundaries(lengths: list[int]) -> dict[str, Any]:
    """Where each row of a packed one begins, in the terms of transformers
    (`FlashAttentionKwargs`)."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    longest, starts = max(lengths), ends.int()
    return {
        "position_ids": (
            torch.arange(sum(lengths)) - ends[:-1].repeat_interleave(torch.tensor(lengths))
        )[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _heard(samples: Sequence[EncodedSample], tower: TowerInput) -> dict[str, Tensor]:
    """Log-mel features of what the audio tower hears, 30 s chunks of all rows in order (A may be
    0)."""
    waveforms = [waveform for sample in samples for waveform in sample.heard]
    for sample in samples:
        positions = sum(sum(num_positions(len(waveform))) for waveform in sample.heard)
        placeholders = sample.input_ids.count(tower.placeholder)
        assert positions == placeholders, (
            f"{sample.source}: {positions} positions of the audio tower, {placeholders}"
        )
    features, mask = log_mel_features(
        [waveform.numpy() for waveform in waveforms], tower.num_mel_bins
    )
    return {"audio_features": features, "audio_feature_attention_mask": mask}


def _delayed_frames(samples: Sequence[EncodedSample], tokens: SpecialTokens) -> Tensor:
    """The delayed frames of all clips of all rows (sum, K)."""
    clips = [codes for sample in samples for codes in sample.clips]
    if not clips:
        return torch.zeros(0, tokens.num_codebooks, dtype=torch.long)
    return apply_delays(clips, bos_id=tokens.stream_bos, eos_id=tokens.stream_eos)


def _frame_labels(samples: Sequence[EncodedSample], tokens: SpecialTokens) -> Tensor:
    """Their labels (sum, K)."""
    clips = [codes for sample in samples for codes in sample.clips]
    if not clips:
        return torch.zeros(0, tokens.num_codebooks, dtype=torch.long)
    trained = [is_trained for sample in samples for is_trained in sample.clips_trained]
    return delay_labels_of(clips, trained, eos_id=tokens.stream_eos)


def _check_placeholders(
    ids: Tensor, samples: Sequence[EncodedSample], tokens: SpecialTokens
) -> None:
    """Placeholders == frames, per clip: the model itself overlooks surplus frames and then trains
    shifted audio.

    ids: of all samples, any shape; no row begins with audio, so that no two clips touch.
    """
    if _runs(ids, tokens) == [_num_frames(codes) for sample in samples for codes in sample.clips]:
        return
    for sample in samples:
        placeholders = _runs(torch.tensor(sample.input_ids), tokens)
        frames = [_num_frames(codes) for codes in sample.clips]
        assert placeholders == frames, (
            f"{sample.source}: clips take {frames} frames but the prompt has {placeholders}"
        )


def _runs(ids: Tensor, tokens: SpecialTokens) -> list[int]:
    """How many placeholders of audio stand side by side, for each run of them."""
    is_audio = torch.nn.functional.pad(
        ((ids == tokens.audio) | (ids == tokens.audio_delay)).flatten().char(), (1, 1)
    )
    edges = is_audio.diff().nonzero().view(-1, 2)  # first of a run, first after it
    return (edges[:, 1] - edges[:, 0]).tolist()


def _num_frames(codes: Tensor) -> int:
    return num_delayed_frames(codes.shape[1], codes.shape[0])
