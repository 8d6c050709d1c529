"""One short training that speaks, shared by the tests of samples, curves and the card."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.sft import coded, sft

MAX_AUDIO_S = 0.4
OPTIONS = {
    "tuner_type": "lora", "lora_rank": 4, "lora_dropout": 0.1, "learning_rate": 1e-3,
    "max_steps": 4, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1, "report_to": "tensorboard",
}  # fmt: skip


@dataclass(frozen=True)
class SampledRun:
    folder: Path
    model: Path
    train: Path
    validation: Path
    trainer: Any
    records: list[dict[str, Any]]


@contextmanager
def own_environment() -> Iterator[None]:
    """MS-SWIFT leaves its settings and its folder of events in the environment, for all runs that
    follow."""
    before = dict(os.environ)
    os.environ.pop("TENSORBOARD_LOGGING_DIR", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def train(model: Path, train: Path, validation: Path, folder: Path, **options: Any) -> SampledRun:
    """A run whose samples are short, and which draws random numbers wherever it speaks."""
    from plugins.inference import HiggsAudioGenerator
    from plugins.register import register_higgs_audio_all
    from plugins.training import card as training_card
    from plugins.training import samples

    register_higgs_audio_all()
    trainers: list[Any] = []
    write, speak = training_card.write, HiggsAudioGenerator.speak

    def drawing(*args: Any, **kwargs: Any) -> Any:
        random.random()
        np.random.rand()
        torch.rand(1)
        return speak(*args, **kwargs)

    with own_environment(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "MAX_AUDIO_S", MAX_AUDIO_S)
        patch.setattr(HiggsAudioGenerator, "speak", drawing)
        patch.setattr(training_card, "write", lambda each: trainers.append(each) or write(each))
        records = sft(model, train, folder, val_dataset=validation, **{**OPTIONS, **options})
    return SampledRun(folder, model, train, validation, trainers[0], records)


def run(model: Path, folder: Path) -> SampledRun:
    rows = coded(model, corpus_rows(12))
    for row, speaker in zip(rows, ("ann", "bob") * 6, strict=True):
        row["speaker"] = speaker
    # A voice that is trained, so that the samples have something to clone.
    voice = {
        "reference_audio": rows[0]["audios"][0],
        "reference_text": "Glue the sheet.",
        "speaker": "ann",
    }
    validation = [{**row, **voice} for row in rows[8:]]
    return train(
        model,
        write_jsonl(folder.parent / "train.jsonl", rows[:8]),
        write_jsonl(folder.parent / "validation.jsonl", validation),
        folder,
    )
