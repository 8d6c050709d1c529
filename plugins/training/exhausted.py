"""A training whose disk or GPU memory is exhausted.

checkpoint larger than the free space --saving-->     refused before a byte is written
log line that cannot be written       --log_line-->   said, the run goes on
torch.OutOfMemoryError                --gpu_memory--> one line with what can be lowered
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors import SafetensorError
from swift.utils import get_logger

from plugins.audio.codec import CODEC_FOLDER
from plugins.errors import UserError, problem
from plugins.training.resume import LOG
from plugins.training.saves import discard, is_own
from plugins.training.sick_steps import shown_rows

logger = get_logger()

# Tokenizer (17 MB with Llama-3's), states of schedule and generators, JSON.
_SMALL_FILES_BYTES = 32 * 2**20
_GIB = 2**30


def checkpoint_bytes(trainer: Any) -> int:
    """About the size of the next checkpoint on disk, all ranks together, with Adam's two moments at
    the most."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    is_adapter = isinstance(model, PeftModel)
    weights = _num_bytes(trained if is_adapter else parameters)
    needed = weights + _SMALL_FILES_BYTES
    codec = Path(trainer.template.model_info.model_dir) / CODEC_FOLDER
    if not is_adapter and codec.is_dir():
        needed += sum(path.stat().st_size for path in codec.rglob("*") if path.is_file())
    if trainer.args.save_only_model:
        return needed
    if trainer.is_deepspeed_enabled:
        # Its own file of the weights, then fp32 weights and both moments in fp32.
        return needed + weights + 12 * sum(map(_num_elements, trained))
    return needed + 2 * _num_bytes(trained)


def _num_elements(parameter: Any) -> int:
    # ZeRO-3 leaves an empty tensor in its place.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _num_bytes(parameters: list[Any]) -> int:
    return sum(_num_elements(parameter) * parameter.element_size() for parameter in parameters)


def check_space(trainer: Any) -> None:
    """Raise UserError, on all ranks, if the next checkpoint does not fit on the disk of the output
    folder."""
    refusal: list[str | None] = [None]
    if trainer.is_world_process_zero():
        folder, needed = Path(trainer.args.output_dir), checkpoint_bytes(trainer)
        free = shutil.disk_usage(folder).free
        if free < needed:
            error = problem(
                source="disk",
                field="output_dir",
                value=str(folder),
                reason=f"has {free / _GIB:.2f} GiB free,"
                f" and a checkpoint takes about {needed / _GIB:.2f} GiB",
                remedy="free space, lower save_total_limit, or name another folder;"
                " nothing was written or removed",
            )
            refusal = [str(error)]
    # All ranks end, or the others would wait for the first one.
    if dist.is_initialized():
        dist.broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])


@contextmanager
def saving(trainer: Any) -> Iterator[None]:
    """Around the writing of a checkpoint. Raises UserError if it does not fit, or if a file of it
    cannot be written."""
    check_space(trainer)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # torch.save has no class of its own for a file that it cannot write
        checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        file = getattr(error, "filename", None) or checkpoint  # torch and safetensors do not say
        if trainer.args.should_save and is_own(checkpoint, trainer.owner):
            discard(checkpoint)  # of no use, and in the way of those who free space
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        remedy = "earlier checkpoints are as they were: mend it and use --resume_from_checkpoint"
        raise UserError(f"{file}: cannot be written ({reason}); {remedy}") from error


@contextmanager
def log_line(trainer: Any) -> Iterator[None]:
    """Around the writing of a log line: a line that fails is said and left out, and does not end
    the run."""
    log = Path(trainer.args.output_dir) / LOG
    num_bytes = log.stat().st_size if log.is_file() else 0
    try:
        yield
    except OSError as error:
        if trainer.is_world_process_zero() and log.is_file():
            os.truncate(log, num_bytes)  # half a line would spoil the next one
        logger.error(
            f"{error.filename or log}: cannot be written ({error.strerror}); training goes on, this"
            " line will be in the next checkpoint's trainer_state.json only"
        )


@contextmanager
def gpu_memory(trainer: Any) -> Iterator[None]:
    """Around the training: torch.OutOfMemoryError becomes a UserError that names the rows and what
    can be lowered."""
    args, template = trainer.args, trainer.template
    levers = [
        f"per_device_train_batch_size {args.per_device_train_batch_size}"
        " with more gradient_accumulation_steps",
        f"max_length {template.max_length}",
        f"max_audio_length {template.settings.max_audio_length}",
    ]
    # Looked at here: MS-SWIFT sets it to False while it trains.
    if not args.gradient_checkpointing:
        levers.append("gradient_checkpointing false (set it to true)")
    try:
        yield
    except torch.OutOfMemoryError as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(
            f"training: out of GPU memory (rows of the batch: {shown_rows(trainer.rows)};"
            f" {first_line}); lower {', '.join(levers)}; or take a smaller configs/*.yaml (LoRA,"
            " QLoRA, ZeRO or FSDP2 instead of full): `higgs-audio doctor --config FILE.yaml`"
            " computes what each needs"
        ) from error
