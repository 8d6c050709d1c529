"""What would be trained, how, and in how much memory: the rest of `dry_run: true`, after the
checks. Trainer in, findings and the command without the dry run out."""

from __future__ import annotations

import sys
from typing import Any

from plugins.data.clips import stand_ins
from plugins.data.dialogue import Dialogue
from plugins.data.prompt import encode
from plugins.model.load import bare
from plugins.training import card
from plugins.training.arguments import real_command
from plugins.training.preflight.before_training import check_memory
from plugins.training.preflight.plan_lines import num_steps, options
from plugins.training.preflight.report import Report


def show(trainer: Any, report: Report) -> None:
    """Findings on data, steps, memory and settings of `trainer`, and the command without the dry
    run; on rank 0."""
    if not trainer.is_world_process_zero():
        return
    num_rows = _show_set(report, trainer, "dataset", trainer.train_dataset)
    if num_rows is not None:
        _show_steps(report, trainer.args, num_rows)
    _show_set(report, trainer, "validation set", trainer.eval_dataset)
    # What a device holds depends on how many there are: as many as run this.
    env = {"NPROC_PER_NODE": str(trainer.args.world_size)}
    check_memory(report, bare(trainer.model).config, options(trainer), env)
    settings = [f"{name:<30}{text}" for name, text in card.settings_of(trainer).items()]
    text = "resolved, all others in args.json of the output folder"
    report.add("settings", "info", text, "\n".join(settings))
    report.add("command", "info", "nothing was trained; this trains", real_command(sys.argv))


def _show_set(report: Report, trainer: Any, name: str, dataset: Any) -> int | None:
    """Length of a set and of its rows. Returns the number of rows, None for a stream or no set."""
    if dataset is None:
        return None
    template = trainer.template

    def positions(dialogue: Dialogue) -> int:
        # Lengths need no codes: clips of zeros are as long.
        silent = stand_ins(dialogue, template.tokens)
        return len(encode(silent, template.tokenizer, template.tokens).input_ids)

    statistics = card.measure(dataset, template.settings, positions)
    if statistics is None:
        report.add(name, "info", "is a stream: its rows are checked when they come")
        return None
    text = f"{statistics.summary()}; every row and audio header read"
    report.add(name, "ok", text, statistics.table())
    return statistics.num_rows


def _show_steps(report: Report, args: Any, num_rows: int) -> None:
    per_epoch, total = num_steps(args, num_rows)
    text = f"{per_epoch} in an epoch, {total} in all ({total / per_epoch:.2f} epochs)"
    report.add("steps", "info", text)
