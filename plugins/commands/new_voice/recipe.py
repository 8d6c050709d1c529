"""How much speech -> how it is held out and trained: docs/recipe.md as numbers.

In: minutes. Out: shares, epochs, and the YAML file of the training, which is `configs/lora_3b.yaml`
but for what the amount of speech and the machine decide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

FEWEST_MINUTES = 10.0  # of speech: what the page's table begins with
ROWS_PER_STEP = 16
PLACES = ("model", "dataset", "val_dataset", "output_dir")  # settings that name files
NUM_SAVES = 10  # evaluations and checkpoints of a run
# Of --hours what steps may take; the rest is for evaluations, samples and checkpoints.
_SHARE_OF_STEPS = 0.75

_HEAD = """\
# LoRA for one voice, as docs/recipe.md has it for {minutes:.0f} minutes of speech.
# Made by `higgs-audio new-voice`, which writes it again.
# Launch:    higgs-audio sft {file}
"""


@dataclass(frozen=True)
class Amount:
    """What fits so much speech of one voice."""

    up_to_minutes: float
    epochs: int
    rank: int
    held_out: float  # share for validation, and the same for the test


# "one to three epochs for hours of speech, up to ten for minutes"; rank "32 for a voice"; "5 % and
# at least 30 clips", which of minutes would be half of all.
AMOUNTS = (
    Amount(30, epochs=10, rank=32, held_out=0.1),
    Amount(60, epochs=5, rank=32, held_out=0.1),
    Amount(math.inf, epochs=3, rank=32, held_out=0.05),
)


def amount_of(minutes: float) -> Amount:
    """The row of the table for so many minutes of speech."""
    return next(amount for amount in AMOUNTS if minutes <= amount.up_to_minutes)


def num_steps(num_rows: int, epochs: int) -> int:
    """Of a training of `num_rows`."""
    return epochs * math.ceil(num_rows / ROWS_PER_STEP)


def steps_in(hours: float, *, step_s: float, longest: int) -> int:
    """How many steps of `step_s` a training of at most `hours` has room for; `longest`: what it
    would have without that limit. 0 or more."""
    return min(longest, math.floor(_SHARE_OF_STEPS * hours * 3600 / step_s))


def training_file(
    *,
    file: str,
    minutes: float,
    model: str,
    dataset: str,
    val_dataset: str,
    output_dir: str,
    on_gpu: bool,
    codec: str | None = None,
    is_folder: bool = False,
) -> str:
    """The YAML file `file` of the training. model: a folder if `is_folder`, else a Hub id."""
    settings = settings_for(amount_of(minutes), on_gpu=on_gpu)
    settings |= dict(zip(PLACES, (model, dataset, val_dataset, output_dir), strict=True))
    settings["use_hf"] = not is_folder
    if codec is not None:
        settings["model_kwargs"] |= {"codec": codec}
    head = _HEAD.format(minutes=minutes, file=file)
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def settings_for(amount: Amount, *, on_gpu: bool) -> dict[str, Any]:
    """All but the paths."""
    settings: dict[str, Any] = {
        "model_type": "higgs-audio-v2-3b",
        "add_version": False,  # the same folder each time: it is resumed there
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "lora_rank": amount.rank,
        "lora_alpha": 2 * amount.rank,
        "lora_dropout": 0.05,
        "torch_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "max_length": 2048,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": ROWS_PER_STEP // 4,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "num_train_epochs": amount.epochs,
        "dataloader_num_workers": 2,
        "strict": True,
        "logging_steps": 1,  # few steps: each is seen
        # Shares of all steps. The best checkpoint is kept beside the newest.
        "eval_strategy": "steps",
        "eval_steps": 1 / NUM_SAVES,
        "save_steps": 1 / NUM_SAVES,
        "save_total_limit": 2,
        "metric_for_best_model": "loss_audio",
        "greater_is_better": False,
        "report_to": "tensorboard",
        "model_kwargs": {
            "audio_learning_rate": 1e-4,
            "text_loss_weight": 1.0,
            "audio_loss_weight": 1.0,
            "auxiliary_loss_weight": 0.001,
            "max_audio_length": 1024,
        },
    }
    if not on_gpu:
        settings |= {
            "use_cpu": True,
            "torch_dtype": "float32",
            "gradient_checkpointing": False,
            "dataloader_num_workers": 0,
        }
    return settings
