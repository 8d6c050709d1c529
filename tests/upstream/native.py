"""Batches in the layout of transformers' Higgs-Audio V2 class, made by hand: only the special ids
mean something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plugins.delay_pattern import IGNORE_INDEX, apply_delay, delay_labels

# Four tokens each in Llama-3: <|start_header_id|> ROLE <|end_header_id|> \n\n. Which ones does not
# matter here.
USER_HEADER, ASSISTANT_HEADER = [20, 21, 23, 24], [20, 22, 23, 24]
TEXT = [30, 31, 32]
AUDIO_END = 25  # <|audio_eos|>, which the class does not know


def given(condition: Any) -> None:
    """A premise of a reproduction. If it fails, the test must fail, whereas a failing `assert` is
    what it expects."""
    if not condition:
        raise LookupError("the reproduction does not fit the installed version any more")


def audio_turn(config: Any, num_frames: int) -> list[int]:
    """<|audio_out_bos|> AUDIO <|audio_eos|><|eot_id|>"""
    num_delays = config.num_codebooks - 1
    # BOS, codes and EOS of the first codebook; the others end later, the last by K - 1 steps.
    audio = [config.audio_token_id] * (num_frames + 2)
    delays = [config.audio_delay_token_id] * num_delays
    return [config.audio_bos_token_id, *audio, *delays, AUDIO_END, config.eos_token_id]


def codes(config: Any, num_frames: int) -> Tensor:
    """Random codes (K, F)."""
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(
        config.audio_stream_bos_id, (config.num_codebooks, num_frames), generator=generator
    )


def delayed(config: Any, num_frames: int) -> Tensor:
    """Delayed frames (T, K) of random codes."""
    specials = {"bos_id": config.audio_stream_bos_id, "eos_id": config.audio_stream_eos_id}
    return apply_delay(codes(config, num_frames), **specials)


def training_batch(config: Any, *num_frames: int) -> dict[str, Tensor]:
    """One text-to-speech row per clip length, with labels of the original: three text tokens, F + 1
    per codebook."""
    ids, labels, audio_labels = [], [], []
    for n in num_frames:
        user = [config.bos_token_id, *USER_HEADER, *TEXT, config.eos_token_id]
        row = torch.tensor([*user, *ASSISTANT_HEADER, *audio_turn(config, n)])
        # <|audio_out_bos|>, <|audio_eos|> and <|eot_id|>.
        trained = (row == config.audio_bos_token_id) | (torch.arange(len(row)) >= len(row) - 2)
        ids.append(row)
        labels.append(torch.where(trained, row, IGNORE_INDEX))
        audio_labels.append(delay_labels(codes(config, n), eos_id=config.audio_stream_eos_id))
    frames = [delayed(config, n) for n in num_frames]
    masks = [torch.ones(len(clip), dtype=torch.bool) for clip in frames]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=config.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "audio_input_ids": pad_sequence(
            frames, batch_first=True, padding_value=config.audio_stream_eos_id
        ),
        "audio_input_ids_mask": pad_sequence(masks, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "audio_labels": pad_sequence(audio_labels, batch_first=True, padding_value=IGNORE_INDEX),
    }
