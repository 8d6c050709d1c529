"""list[EncodedSample] -> batch tensors: delay pattern, labels, padding. L1.

Names, shapes and dtypes are those of transformers' `HiggsAudioV2ForConditionalGeneration.forward`:

    input_ids (B, S) long            attention_mask (B, S) long
    audio_input_ids (B, T, K) long   audio_input_ids_mask (B, T) bool
    labels (B, S) long               audio_labels (B, T, K) long          only in training
    audio_features (A, M, 3000)      audio_feature_attention_mask (A, 3000) bool     only with an audio tower

T is the widest sum of delayed frames of a row, 0 for a batch without audio. Labels are made here and in `prompt`, and
are not shifted (`plugins.loss` shifts).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugins.audio_tower import log_mel_features, num_positions
from plugins.delay_pattern import IGNORE_INDEX, apply_delay, delay_labels
from plugins.prompt import EncodedSample
from plugins.tokens import SpecialTokens, TowerInput


def collate(samples: Sequence[EncodedSample], tokens: SpecialTokens, *, training: bool) -> dict[str, Tensor]:
    """Right-padded with labels in training, left-padded without labels for generation."""
    delayed = [_delayed_frames(sample, tokens) for sample in samples]
    batch = {
        "input_ids": _pad([torch.tensor(s.input_ids) for s in samples], tokens.pad, left=not training),
        "attention_mask": _pad([torch.ones(len(s.input_ids), dtype=torch.long) for s in samples], 0, left=not training),
        # Frames are matched to placeholders in order, so they are padded on the right in both modes.
        "audio_input_ids": _pad([frames for frames, _ in delayed], tokens.stream_eos),
        "audio_input_ids_mask": _pad([torch.ones(len(frames), dtype=torch.bool) for frames, _ in delayed], False),
    }
    if tokens.tower is not None:
        batch |= _heard(samples, tokens.tower)
    if training:
        batch["labels"] = _pad([torch.tensor(s.labels) for s in samples], IGNORE_INDEX)
        batch["audio_labels"] = _pad([labels for _, labels in delayed], IGNORE_INDEX)
    return batch


def _heard(samples: Sequence[EncodedSample], tower: TowerInput) -> dict[str, Tensor]:
    """Log-mel features of what the audio tower hears, 30 s chunks of all rows in order (A may be 0)."""
    waveforms = [waveform for sample in samples for waveform in sample.heard]
    for sample in samples:
        positions = sum(sum(num_positions(len(waveform))) for waveform in sample.heard)
        placeholders = sample.input_ids.count(tower.placeholder)
        assert positions == placeholders, f"{sample.source}: {positions} positions of the audio tower, {placeholders}"
    features, mask = log_mel_features([waveform.numpy() for waveform in waveforms], tower.num_mel_bins)
    return {"audio_features": features, "audio_feature_attention_mask": mask}


def _delayed_frames(sample: EncodedSample, tokens: SpecialTokens) -> tuple[Tensor, Tensor]:
    """All clips of a row: delayed frames (T, K) and their labels (T, K)."""
    _check_placeholders(sample, tokens)
    empty = torch.zeros(0, tokens.num_codebooks, dtype=torch.long)
    frames, labels = [empty], [empty]
    for codes, trained in zip(sample.clips, sample.clips_trained, strict=True):
        frames.append(apply_delay(codes, bos_id=tokens.stream_bos, eos_id=tokens.stream_eos))
        clip_labels = delay_labels(codes, eos_id=tokens.stream_eos)
        labels.append(clip_labels if trained else torch.full_like(clip_labels, IGNORE_INDEX))
    return torch.cat(frames), torch.cat(labels)


def _check_placeholders(sample: EncodedSample, tokens: SpecialTokens) -> None:
    """Placeholders == frames, per clip: the model itself overlooks surplus frames and then trains shifted audio."""
    ids = torch.tensor(sample.input_ids)
    is_audio = (ids == tokens.audio) | (ids == tokens.audio_delay)
    edges = torch.diff(
        is_audio.long(), prepend=torch.zeros(1, dtype=torch.long), append=torch.zeros(1, dtype=torch.long)
    )
    placeholders = ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()
    frames = [codes.shape[1] + codes.shape[0] + 1 for codes in sample.clips]
    assert placeholders == frames, f"{sample.source}: clips take {frames} frames but the prompt has {placeholders}"


def _pad(rows: list[Tensor], value: int, *, left: bool = False) -> Tensor:
    side = "left" if left else "right"
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
