"""The checkpoints of a finished training -> the one to speak with, in a folder with its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from plugins.errors import problem
from plugins.files.checkpoints import gap, newest
from plugins.files.disk import read_json
from plugins.files.hub import new_folder
from plugins.files.lines import text_lines
from plugins.files.untrusted import ADAPTER_CONFIG
from plugins.model.card import (
    CARD,
    METRICS,
    NO_METRICS,
    TRAINING,
    card,
    link_to,
    name_on_the_hub,
    section,
)
from plugins.settings import SETTINGS_FILE
from plugins.training.resume import LOG

WEIGHTS = "adapter_model.safetensors"
_STATE = "trainer_state.json"
_SPEAK = """\
```bash
higgs-audio speak --model FOLDER --text "Hello." --output hello.wav
```

Without reference and without scene, as it was trained. The base model is named in
`adapter_config.json`; another place of it: `--model BASE --adapters FOLDER`."""


def best_of(training: Path) -> dict[str, Any]:
    """Of a finished run: the checkpoint with the lowest validation loss, the newest where none was
    measured; its step, and that of the last. Raises UserError if none is whole."""
    last = newest(training, lambda warning: None)
    if last is None:
        raise problem(
            source=str(training),
            field="checkpoint",
            value=None,
            reason="is not there, or none is whole",
            remedy="start the same command again",
        )
    state = read_json(last / _STATE, "start the same command again")
    best = training / Path(state.get("best_model_checkpoint") or last).name
    chosen = last if gap(best) is not None else best
    step, steps = (int(path.name.partition("-")[2]) for path in (chosen, last))
    return {"checkpoint": chosen.name, "step": step, "steps": steps}


def publish(checkpoint: Path, adapter: Path, *, name: str, model: str) -> None:
    """Copy what speaking needs of `checkpoint` into the new folder `adapter`, with a card. model:
    the base, as it was given."""
    with new_folder(adapter, checkpoint) as folder:
        for file in (WEIGHTS, ADAPTER_CONFIG, SETTINGS_FILE):
            shutil.copyfile(checkpoint / file, folder / file)
        (folder / CARD).write_text(_card(checkpoint, name=name, model=model), encoding="utf-8")


def seconds_per_step(training: Path) -> float:
    """Of a run of a few steps, without its first, which also warms up."""
    elapsed_s: dict[int, float] = {}
    for _, line in text_lines(training / LOG):
        record = json.loads(line)
        if "loss" in record:
            step = int(record["global_step/max_steps"].partition("/")[0])
            elapsed_s[step] = step * float(record["train_speed(s/it)"])
    first, last = min(elapsed_s), max(elapsed_s)
    if first == last:
        return elapsed_s[first] / first
    return max(1e-3, (elapsed_s[last] - elapsed_s[first]) / (last - first))


def _card(checkpoint: Path, *, name: str, model: str) -> str:
    from plugins.model.load import load_config

    config = load_config(Path(model)) if Path(model).is_dir() else None
    base = name_on_the_hub(model, config)
    sections = {METRICS: NO_METRICS}
    of_training = checkpoint.parent / CARD
    if of_training.is_file():
        text = section(of_training.read_text(encoding="utf-8"), TRAINING)
        if text is not None:
            sections = {TRAINING: text, **sections}
    return card(
        name,
        base=base,
        summary=f"A voice for Higgs-Audio V2, learned with LoRA from {link_to(base)};"
        f" {checkpoint.name} of its training.",
        speak=_SPEAK,
        sections=sections,
        library="peft",
    )
