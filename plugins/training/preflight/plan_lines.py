"""What a training is about to do, in five lines before its checks, and at its end how to speak.

Trainer in, lines out. A dry run says more of the same (`plugins.training.preflight.dry_run`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plugins.model.load import bare
from plugins.training import saves
from plugins.training.arguments import speak_command
from plugins.training.preflight.before_training import check_memory
from plugins.training.preflight.report import Report


def show(trainer: Any, say: Callable[[str], None]) -> None:
    """On rank 0."""
    if trainer.is_world_process_zero():
        for name, text in _lines(trainer):
            say(f"{'plan':<8}{name}: {text}")


def show_end(trainer: Any, say: Callable[[str], None]) -> None:
    """Where the training is saved, and the line that speaks with it; on rank 0."""
    if not trainer.is_world_process_zero():
        return
    checkpoints = saves.owned(Path(trainer.args.output_dir), trainer.owner)
    if checkpoints:
        say(f"speak with: {speak_command(checkpoints[-1])}")
    else:
        say(f"nothing is saved (save_strategy {trainer.args.save_strategy.value})")


def num_steps(args: Any, num_rows: int) -> tuple[int, int]:
    """In an epoch, and in all."""
    # As transformers counts: an incomplete accumulation is a step too, and so is an incomplete
    # batch, unless it is dropped.
    batches = num_rows / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    steps = math.ceil(batches / args.gradient_accumulation_steps)
    total = args.max_steps
    if total <= 0:
        total = math.ceil(steps * args.num_train_epochs)
    return steps, total


def options(trainer: Any) -> dict[str, Any]:
    """Flags as MS-SWIFT resolved them, which it writes before a trainer exists."""
    path = Path(trainer.args.output_dir) / "args.json"
    options = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {**options, "max_length": trainer.template.max_length}


def _lines(trainer: Any) -> Iterator[tuple[str, str]]:
    args = trainer.args
    parameters = list(trainer.model.parameters())
    num_all = sum(map(_num_elements, parameters))
    num_trained = sum(_num_elements(p) for p in parameters if p.requires_grad)
    tuner = options(trainer).get("tuner_type", "full")
    model = trainer.template.model_info.model_dir
    yield "model", f"{model}, {tuner}: {num_trained:,} of {num_all:,} parameters are trained"
    num_rows = _length(trainer.train_dataset)
    validation = _length(trainer.eval_dataset) if trainer.eval_dataset is not None else 0
    unit = "pairs" if trainer.template.compares else "rows"
    yield unit, f"{_shown(num_rows)} to train on, {_shown(validation)} for validation"
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    rows = f"{batch * accumulated * args.world_size} {unit} each"
    split = f"{batch} at a time x {accumulated} accumulated x {args.world_size} process(es)"
    if num_rows is None:
        yield "steps", f"{args.max_steps} of {rows} ({split})"
    else:
        per_epoch, total = num_steps(args, num_rows)
        yield "steps", f"{total} of {rows} ({split}), {total / max(per_epoch, 1):.2f} epochs"
    yield "memory", _memory(trainer)


def _memory(trainer: Any) -> str:
    report = Report(lambda line: None)
    # What a device holds depends on how many there are: as many as run this.
    env = {"NPROC_PER_NODE": str(trainer.args.world_size)}
    check_memory(report, bare(trainer.model).config, options(trainer), env)
    return report.findings[-1].text


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None


def _shown(num_rows: int | None) -> str:
    return "a stream" if num_rows is None else f"{num_rows:,}"


def _num_elements(parameter: Any) -> int:
    # ZeRO-3 leaves an empty tensor in its place.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
