"""What a training is made of, and its model card: trainer -> data, settings, versions, README.md.

`--dry_run` shows the same facts before the first step (`plugins.training.preflight.dry_run`). The
card is written when the training is over. How a card looks is `plugins.model.card`'s to know.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from swift.utils import get_logger

from plugins import __version__
from plugins.audio.codec import FRAMES_PER_S
from plugins.corpora.canonical import ROW_SOURCE, SPEAKER
from plugins.corpora.pairs import answers_of
from plugins.data.clips import num_frames
from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.files.lines import text_lines
from plugins.model import card
from plugins.settings import HiggsAudioSettings
from plugins.training import resume, saves
from plugins.training.packs import table_of
from plugins.training.samples import LIST

logger = get_logger()

_PACKAGES = ("ms-swift", "transformers", "torch", "peft", "deepspeed")
_ROOT = Path(__file__).resolve().parents[2]
_CURVES = (
    "loss", "loss_text", "loss_audio", "loss_audio_cb0", "acc_audio_cb0",
    "eval_loss", "eval_loss_text", "eval_loss_audio", "eval_acc_audio_cb0",
    "rewards/accuracies", "rewards/margins", "eval_rewards/accuracies", "eval_rewards/margins",
    "sample_stop_rate", "sample_seconds",
)  # fmt: skip
_SPEAK = """\
```bash
higgs-audio speak --model {checkpoint} --text "Hello." --output hello.wav
# One folder to publish or to serve, with a card of its own:
higgs-audio export {option} {checkpoint} --output my-voice
```"""


@dataclass
class Statistics:
    """Of the rows of one set, of pairs both answers; frames are those of the codec, 25 per
    second."""

    num_rows: int = 0
    unit: str = "rows"
    speakers: set[str] = field(default_factory=set)  # as rows name them
    clips: list[int] = field(default_factory=list)  # frames of each trained clip
    references: list[int] = field(default_factory=list)  # frames of each reference
    positions: list[int] = field(default_factory=list)  # text tokens and delayed frames of each row

    def summary(self) -> str:
        who = f"{len(self.speakers)} speaker(s)" if self.speakers else "speakers not named"
        hours = sum(self.clips) / FRAMES_PER_S / 3600
        # A small set in minutes: three digits of hours would hide it.
        length = f"{hours:.2f} h" if hours >= 1 else f"{hours * 60:.2f} min"
        clips = f"{length} of speech in {len(self.clips):,} clips"
        return f"{self.num_rows:,} {self.unit}, {clips}, {who}"

    def table(self) -> str:
        """Mean, median, 95th percentile and maximum of what has a length."""
        lines = [f"{'':<24}{'mean':>10}{'median':>10}{'95 %':>10}{'longest':>10}"]
        lengths = {
            "clip, frames": np.array(self.clips),
            "clip, s": np.array(self.clips) / FRAMES_PER_S,
            "reference, frames": np.array(self.references),
            "row, tokens and frames": np.array(self.positions),
        }
        for name, values in lengths.items():
            if values.size:
                median, late = np.percentile(values, (50, 95))
                cells = (
                    f"{values.mean():>10,.1f}{median:>10,.1f}{late:>10,.1f}{values.max():>10,.1f}"
                )
                lines.append(f"{name:<24}{cells}")
        return "\n".join(lines)


def measure(
    dataset: Any, settings: HiggsAudioSettings, positions: Callable[[Dialogue], int] | None = None
) -> Statistics | None:
    """Every row of one of MS-SWIFT's data sets, by headers and codes; None for a stream.

    positions: how long a row is, if that is asked for. Raises UserError if a file cannot be read
    any more."""
    rows = table_of(dataset)
    is_ours = ROW_SOURCE in (getattr(rows, "column_names", None) or [])
    if not is_ours or not hasattr(rows, "__len__"):
        return None
    statistics = Statistics()
    for row in rows:
        answers = answers_of(row)
        statistics.num_rows += 1
        statistics.unit = "pairs" if len(answers) == 2 else "rows"
        if row.get(SPEAKER):
            statistics.speakers.add(row[SPEAKER])
        for answer in answers:
            dialogue = dialogue_from_row(answer, settings)
            for clip in dialogue.targets():
                statistics.clips.append(num_frames(clip, dialogue.source))
            for reference in dialogue.references:
                statistics.references.append(num_frames(reference.clip, dialogue.source))
            if positions is not None:
                statistics.positions.append(positions(dialogue))
    return statistics


def settings_of(trainer: Any) -> dict[str, str]:
    """What the weights depend on, and what MS-SWIFT and we made of what was left open, as people
    write it; nothing of the rows, and nothing that is empty."""
    settings = resume.fingerprint(trainer)
    # Data is told by `measure`; a hash says nothing to a reader.
    settings.pop("number of rows", None)
    settings.pop("content of the rows", None)
    # MS-SWIFT sets fp16 for float32 weights too; on a CPU nothing is computed in it.
    precisions = [name for name in ("bf16", "fp16") if settings.pop(name, False)]
    if precisions and (trainer.accelerator.native_amp or trainer.is_deepspeed_enabled):
        settings["mixed precision"] = precisions[0]
    settings["max_length"] = trainer.template.max_length
    settings["dtype"] = str(trainer.model.dtype)
    shown = {name: _shown(value) for name, value in settings.items()}
    return {name: text for name, text in shown.items() if text}


def versions() -> str:
    parts = [f"higgs-audio-swift {__version__}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)


def commit() -> str | None:
    """Of this kit, with `-dirty` if files of it were changed; None if it is no checkout of git."""
    # Not of a repository that this installation happens to lie in.
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    except OSError:
        return None  # no git
    return git.stdout.strip() or None


def write(trainer: Any) -> None:
    """The card of the training's output folder, on rank 0.

    A card that is there keeps what its reader wrote: only its sections are written again, and one
    that has none stays as it is. The training is saved by now, so whatever goes wrong here is only
    reported."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    path = folder / card.CARD
    try:
        training, samples = _training(trainer), _samples(folder)
        if not path.exists():
            # Of a new folder, where nobody has written yet.
            path.write_text(_new_card(trainer, folder, training, samples), encoding="utf-8")
        elif card.complete(folder, {card.TRAINING: training, card.SAMPLES: samples}) is None:
            logger.info(f"{path} is not one of ours: it stays as it is")
    # UserError is a ValueError, as is JSON of a list that was cut.
    except (OSError, ValueError, LookupError) as error:
        logger.warning(f"{path} is not written: {error}")


def _new_card(trainer: Any, folder: Path, training: str, samples: str) -> str:
    how, library, option = "", "transformers", "--model"
    if hasattr(trainer.model, "peft_config"):
        how, library, option = " with LoRA", "peft", "--adapters"
    model = settings_of(trainer).get("model") or trainer.template.model_info.model_dir
    base = card.name_on_the_hub(model, trainer.model.config)
    # A folder may hold checkpoints of other runs as well.
    checkpoints = saves.owned(folder, trainer.owner)
    checkpoint = checkpoints[-1].name if checkpoints else "CHECKPOINT"
    origin = card.link_to(base)
    what = "trained on preferences (DPO)" if trainer.template.compares else "fine-tuned"
    return card.card(
        folder.resolve().name,
        base=base,
        summary=f"A Higgs-Audio V2 text-to-speech model, {what} from {origin}{how}.",
        speak=_SPEAK.format(checkpoint=checkpoint, option=option),
        sections={card.TRAINING: training, card.METRICS: card.NO_METRICS, card.SAMPLES: samples},
        library=library,
    )


def _training(trainer: Any) -> str:
    """Data, settings, versions and curves, as tables."""
    args, state, settings = trainer.args, trainer.state, trainer.template.settings
    train = measure(trainer.train_dataset, settings)
    validation = measure(trainer.eval_dataset, settings)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    unit = train.unit if train else "rows"
    facts = {
        "training data": train.summary() if train else "a stream",
        "validation data": validation.summary() if validation else "none",
        "steps": f"{state.global_step:,} of up to {batch} {unit}, {state.epoch or 0:.2f} epochs",
        "settings": "; ".join(_public_settings(trainer)),
        "made with": versions(),
        "commit": commit(),
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    return "\n".join(["| | |", "|---|---|", *rows, "", *_curves(state.log_history)])


def _public_settings(trainer: Any) -> Iterator[str]:
    """`name value` of each setting that names no folder of this machine."""
    for name, text in settings_of(trainer).items():
        if name not in {"model", "codec"} and not Path(text).is_absolute():
            yield f"{name} {text}"


def _curves(history: list[dict[str, Any]]) -> list[str]:
    """First and last value of what was logged."""
    lines = []
    for name in _CURVES:
        values = [record[name] for record in history if name in record]
        if values:
            lines.append(f"| {name} | {values[0]:.4g} | {values[-1]:.4g} |")
    return ["| curve | first | last |", "|---|---|---|", *lines] if lines else []


def _samples(folder: Path) -> str:
    """A row for each sample of the first and of the last step that has any."""
    steps: dict[int, Path] = {}
    for path in (folder / resume.SAMPLES).glob("step-*"):
        steps[int(path.name.partition("-")[2])] = path
    if not steps:
        return "None."
    lines = ["| step | text | speech |", "|---|---|---|"]
    for step in sorted({min(steps), max(steps)}):
        for _, line in text_lines(steps[step] / LIST):
            sample = json.loads(line)
            end = "" if sample["stopped"] else ", did not stop"
            file = f"{resume.SAMPLES}/{steps[step].name}/{sample['file']}"
            # A bar would end the cell, a line break the table.
            text = " ".join(sample["text"].replace("|", "\\|").split())
            lines.append(f"| {step} | {text} | [{sample['seconds']:.2f} s{end}]({file}) |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """A setting as people write it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_shown, value))
    return str(value)
