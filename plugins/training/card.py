"""The card of a training's output folder (`plugins.model.card`), written when the training is over.
L3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swift.utils import get_logger

from plugins.errors import UserError
from plugins.model.card import (
    CARD,
    METRICS,
    NO_METRICS,
    SAMPLES,
    TRAINING,
    card,
    complete,
    link_to,
    name_on_the_hub,
)
from plugins.training import facts as run_facts
from plugins.training import saves as checkpoints
from plugins.training.resume import SAMPLES as SAMPLES_FOLDER
from plugins.training.samples import LIST

logger = get_logger()

_CURVES = (
    "loss", "loss_text", "loss_audio", "loss_audio_cb0", "acc_audio_cb0", "eval_loss", "eval_loss_text",
    "eval_loss_audio", "eval_acc_audio_cb0", "sample_stop_rate", "sample_seconds",
)  # fmt: skip
_SPEAK = """\
```bash
higgs-audio speak --model {checkpoint} --text "Hello." --output hello.wav
higgs-audio export {option} {checkpoint} --output my-voice   # one folder to publish or to serve, with a card of its own
```"""


def write(trainer: Any) -> None:
    """On rank 0. A card that is there keeps what its reader wrote: only its sections are written
    again, and one that has none stays as it is. The training is saved by now, so whatever goes
    wrong here is only told."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    try:
        sections = {TRAINING: _training(trainer), SAMPLES: _samples(folder)}
        if not (folder / CARD).exists():
            (folder / CARD).write_text(_card(trainer, folder, sections), encoding="utf-8")
        elif complete(folder, sections) is None:
            logger.info(f"{folder / CARD} is not one of ours: it stays as it is")
    except (OSError, UserError) as error:
        logger.warning(f"{folder / CARD} is not written: {error}")


def _card(trainer: Any, folder: Path, sections: dict[str, str]) -> str:
    is_adapter = hasattr(trainer.model, "peft_config")
    base = _base(trainer)
    summary = f"A Higgs-Audio V2 text-to-speech model, fine-tuned from {link_to(base)}{' with LoRA' * is_adapter}."
    saved = checkpoints.owned(folder, trainer.owner)
    checkpoint = saved[-1].name if saved else "CHECKPOINT"
    return card(
        folder.resolve().name,
        base=base,
        summary=summary,
        speak=_SPEAK.format(
            checkpoint=checkpoint, option="--adapters" if is_adapter else "--model"
        ),
        sections={TRAINING: sections[TRAINING], METRICS: NO_METRICS, SAMPLES: sections[SAMPLES]},
        library="peft" if is_adapter else "transformers",
    )


def _base(trainer: Any) -> str | None:
    settings = run_facts.settings_of(trainer)
    return name_on_the_hub(
        settings.get("model") or trainer.template.model_info.model_dir, trainer.model.config
    )


def _training(trainer: Any) -> str:
    """Data, settings, versions and curves, as tables."""
    args, state, settings = trainer.args, trainer.state, trainer.template.settings
    train, validation = (
        run_facts.measure(dataset, settings)
        for dataset in (trainer.train_dataset, trainer.eval_dataset)
    )
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    facts = {
        "training data": train.summary() if train else "a stream",
        "validation data": validation.summary() if validation else "none",
        "steps": f"{state.global_step:,} of up to {batch} rows, {state.epoch or 0:.2f} epochs",
        "settings": "; ".join(
            f"{name} {run_facts.shown(value)}"
            for name, value in run_facts.settings_of(trainer).items()
            if run_facts.shown(value) and name not in {"model", "codec"} and not _is_path(value)
        ),
        "made with": run_facts.versions(),
        "commit": run_facts.commit(),
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    return "\n".join(["| | |", "|---|---|", *rows, "", *_curves(state.log_history)])


def _curves(history: list[dict[str, Any]]) -> list[str]:
    """First and last value of what was logged more than once."""
    lines = ["| curve | first | last |", "|---|---|---|"]
    for name in _CURVES:
        values = [record[name] for record in history if name in record]
        if values:
            lines.append(f"| {name} | {values[0]:.4g} | {values[-1]:.4g} |")
    return lines if len(lines) > 2 else []


def _samples(folder: Path) -> str:
    """A row for each sample of the first and of the last step that has any."""
    steps = {
        int(path.name.partition("-")[2]): path for path in (folder / SAMPLES_FOLDER).glob("step-*")
    }
    if not steps:
        return "None."
    lines = ["| step | text | speech |", "|---|---|---|"]
    for step in sorted({min(steps), max(steps)}):
        for line in (steps[step] / LIST).read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            end = "" if sample["stopped"] else ", did not stop"
            link = f"[{sample['seconds']:.2f} s{end}]({SAMPLES_FOLDER}/{steps[step].name}/{sample['file']})"
            text = " ".join(sample["text"].replace("|", "\\|").split())
            lines.append(f"| {step} | {text} | {link} |")
    return "\n".join(lines)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()
