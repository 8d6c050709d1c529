"""What would be trained, how, and in how much memory: the rest of `dry_run: true`, after the
checks. L3."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from plugins.data.clips import stand_ins
from plugins.data.dialogue import Dialogue
from plugins.data.prompt import encode
from plugins.model.load import bare
from plugins.training import facts as run_facts
from plugins.training.arguments import real_command
from plugins.training.preflight.before_training import check_memory
from plugins.training.preflight.report import Report


def show(trainer: Any, report: Report) -> None:
    """Findings on data, steps, memory and settings of `trainer`, and the command without the dry
    run; on rank 0."""
    if not trainer.is_world_process_zero():
        return
    _show_data(report, trainer)
    options = _options(trainer)
    env = {"NPROC_PER_NODE": str(trainer.args.world_size)}
    check_memory(report, bare(trainer.model).config, options, env)
    settings = {
        name: run_facts.shown(value) for name, value in run_facts.settings_of(trainer).items()
    }
    lines = [f"{name:<30}{value}" for name, value in settings.items() if value]
    report.add(
        "settings",
        "info",
        "resolved, all others in args.json of the output folder",
        "\n".join(lines),
    )
    report.add("command", "info", "nothing was trained; this trains", real_command(sys.argv))


def _show_data(report: Report, trainer: Any) -> None:
    args, template = trainer.args, trainer.template

    def positions(dialogue: Dialogue) -> int:
        return len(
            encode(
                stand_ins(dialogue, template.tokens), template.tokenizer, template.tokens
            ).input_ids
        )

    for name, dataset in (
        ("dataset", trainer.train_dataset),
        ("validation set", trainer.eval_dataset),
    ):
        found = (
            run_facts.measure(dataset, template.settings, positions)
            if dataset is not None
            else None
        )
        if found is not None:
            report.add(
                name, "ok", f"{found.summary()}; every row and audio header read", found.table()
            )
        elif dataset is not None:
            report.add(name, "info", "is a stream: its rows are checked when they come")
        if found is not None and name == "dataset":
            batches = math.ceil(
                found.num_rows / (args.per_device_train_batch_size * args.world_size)
            )
            steps = math.ceil(batches / args.gradient_accumulation_steps)
            total = (
                args.max_steps if args.max_steps > 0 else math.ceil(steps * args.num_train_epochs)
            )
            report.add(
                "steps", "info", f"{steps} in an epoch, {total} in all ({total / steps:.2f} epochs)"
            )


def _options(trainer: Any) -> dict[str, Any]:
    """Flags as MS-SWIFT resolved them, which it writes before a trainer exists."""
    path = Path(trainer.args.output_dir) / "args.json"
    typed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {**typed, "max_length": trainer.template.max_length}
