"""How often the CPU waits for the device in a training step, counted without one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sft import LORA, sft
from helpers.waits import Waits
from torch._subclasses.fake_tensor import FakeTensorMode

from plugins.model.loss import LossSums, LossWeights, combine
from plugins.trainer import HiggsAudioTrainer

NUM_BATCHES = 2  # micro-batches of a step
# Of a micro-batch, before its first layer: rows and frames that have labels, rows of text and of
# audio. The body itself places frames among texts.
MICRO_BATCH = {"tolist": 2, "masked_scatter": 2}
# Of a step, at its end: MS-SWIFT's look at the norm of the gradients, and ours, with a stop that
# was asked for.
STEP = {"_local_scalar_dense": 1, "tolist": 1}


def waits_of_a_step(tiny: Path, dataset: Path, folder: Path, **options: Any) -> Counter[str]:
    """Of the second one. Nothing is logged in it, and no epoch begins."""
    at_step: list[Counter[str]] = []
    with Waits() as counting, pytest.MonkeyPatch.context() as patch:
        fetch = HiggsAudioTrainer.get_batch_samples

        def noting(trainer: Any, *args: Any) -> Any:
            at_step.append(counting.counts.copy())
            return fetch(trainer, *args)

        patch.setattr(HiggsAudioTrainer, "get_batch_samples", noting)
        options |= {"max_steps": 3, "logging_steps": 100, "save_strategy": "no"}
        options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": NUM_BATCHES}
        # Batches are made in another process: what it does keeps no device waiting.
        sft(tiny, dataset, folder / "out", dataloader_num_workers=1, **options)
    return at_step[2] - at_step[1]


@pytest.mark.slow
@pytest.mark.parametrize("tuner", [{"tuner_type": "full"}, LORA], ids=["full", "lora"])
def test_waits_of_a_step_are_few(
    tiny: Path, dataset: Path, tmp_path: Path, tuner: dict[str, Any]
) -> None:
    expected = Counter(STEP)
    for _ in range(NUM_BATCHES):
        expected.update(MICRO_BATCH)
        if tuner["tuner_type"] == "full":
            expected.update({"masked_scatter_backward": 1})
    assert waits_of_a_step(tiny, dataset, tmp_path, **tuner) == expected


def test_no_copy_of_the_loss_waits() -> None:
    """Weights of codebooks are numbers of the CPU: copied as a matter of course, each micro-batch
    would wait until the device has done everything before."""
    with FakeTensorMode(), Waits() as counting:
        sums = torch.zeros(8, device="cuda")
        audio = LossSums(sums, sums[0], sums, sums)
        text = LossSums(*sums[:4].unbind())
        weights = LossWeights(1.0, 1.0, 0.0, (1.0,) * 8)
        loss = combine(text, audio, num_text=sums[0], num_frames=sums[0], weights=weights)
    assert loss.device.type == "cuda"
    assert counting.copies == {"to cuda": 1}
    assert not counting.counts
