"""Rows, a model that has learnt them, and defects to plant: shared by the tests of the preflight
and of the doctor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows
from torch import Tensor
from transformers import AutoTokenizer

import plugins.collator
from plugins.audio.codec import CODEC_FOLDER, Codec
from plugins.collator import collate
from plugins.corpora.canonical import canonical_row
from plugins.data.clips import with_clips
from plugins.data.dialogue import EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import delay_labels
from plugins.model.load import load_config, native_model
from plugins.model.loss import LossWeights, combine
from plugins.settings import HiggsAudioSettings

NUM_ROWS = 3
ToFrames = Callable[..., Tensor]  # codes (K, F) of one clip -> (F + K + 1, K)


@dataclass(frozen=True)
class Encoded:
    """The rows as training encodes them."""

    samples: list[EncodedSample]
    tokens: SpecialTokens
    tokenizer: Any

    def batches(self) -> list[tuple[EncodedSample, dict[str, Tensor]]]:
        """Each sample with its batch of one."""
        pairs = []
        for sample in self.samples:
            pairs.append((sample, plugins.collator.collate([sample], self.tokens, training=True)))
        return pairs


def encode_rows(model: Path) -> Encoded:
    tokenizer = AutoTokenizer.from_pretrained(model)
    codec, settings = Codec(str(model / CODEC_FOLDER)), HiggsAudioSettings()
    tokens = SpecialTokens.from_config(load_config(model), tokenizer)
    samples = []
    for row in corpus_rows(NUM_ROWS):
        dialogue = dialogue_from_row(canonical_row(row, "row", settings), settings)
        samples.append(encode(with_clips(dialogue, codec, tokens), tokenizer, tokens))
    return Encoded(samples, tokens, tokenizer)


def learn(tiny: Path, folder: Path) -> Path:
    """The tiny model after 100 steps on the rows, in `folder`."""
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    rows = encode_rows(tiny)
    model = native_model(str(tiny)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = collate(rows.samples, rows.tokens, training=True)
    weights = LossWeights(1.0, 1.0, 0.0, (1.0,) * 8)
    for _ in range(100):
        outputs = model(**batch)
        counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
        combine(outputs.text, outputs.audio, weights=weights, **counts).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def plant(
    monkeypatch: pytest.MonkeyPatch, *, labels: ToFrames, frames: ToFrames | None = None
) -> None:
    """Defects of one clip's frames or labels, in the collator of all of them."""

    def defective_labels(clips: Sequence[Tensor], trained: Sequence[bool], **ids: int) -> Tensor:
        assert all(trained)
        return torch.cat([labels(codes, **ids) for codes in clips])

    monkeypatch.setattr(plugins.collator, "delay_labels_of", defective_labels)
    if frames is None:
        return

    def defective_frames(clips: Sequence[Tensor], **ids: int) -> Tensor:
        return torch.cat([frames(codes, **ids) for codes in clips])

    monkeypatch.setattr(plugins.collator, "apply_delays", defective_frames)


def no_eos(codes: Tensor, *, eos_id: int) -> Tensor:
    labels = delay_labels(codes, eos_id=eos_id)
    return labels.masked_fill(labels == eos_id, -100)


def undelayed_frames(codes: Tensor, *, bos_id: int, eos_id: int) -> Tensor:
    frames = torch.full((codes.shape[1] + 9, 8), eos_id)
    frames[0], frames[1 : codes.shape[1] + 1] = bos_id, codes.T
    return frames


def undelayed_labels(codes: Tensor, *, eos_id: int) -> Tensor:
    labels = torch.full((codes.shape[1] + 9, 8), -100)
    labels[1 : codes.shape[1] + 1], labels[codes.shape[1] + 1] = codes.T, eos_id
    return labels


def one_step_early(codes: Tensor, *, eos_id: int) -> Tensor:
    return torch.roll(delay_labels(codes, eos_id=eos_id), -1, dims=0)


def voices_that_copy_targets(folder: Path) -> list[dict[str, Any]]:
    """Rows whose reference is their own target, in a file of another name."""
    rows = corpus_rows(NUM_ROWS)
    for number, row in enumerate(rows):
        copy = folder / f"voice{number}.flac"
        shutil.copy(row["audios"][0], copy)
        row["reference_audio"] = str(copy)
    return rows
