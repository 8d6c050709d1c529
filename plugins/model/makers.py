"""A loaded model -> the names by which the marks of its files speak of it.

Names only: where a folder lies on this machine is nobody's business who gets a file."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from plugins.audio.marks import Maker

logger = logging.getLogger(__name__)

_ONLY = "default"  # as the only LoRA weights are called that nobody named


def maker_of(model: Any, adapter: str | None, *, marks: bool) -> Maker | None:
    """model: without its PEFT wrapper. adapter: of its LoRA weights, None if none speak. marks:
    False: None, and a line in the log, once."""
    if not marks:
        _warn()
        return None
    name = adapter
    folder = getattr(model, "higgs_audio_adapters", {}).get(adapter)
    if adapter == _ONLY and folder is not None:
        name = name_of(folder)
    return Maker(name_of(model.config.name_or_path), name)


@cache
def _warn() -> None:
    logger.warning("marks are off: files do not say that they are synthetic")


def name_of(folder: str) -> str:
    """Of a checkpoint with that of its training, of a snapshot of the Hub that of its
    repository."""
    if not folder:
        return "?"
    path = Path(folder).resolve()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    if path.name.startswith("checkpoint-"):
        return f"{path.parent.name}/{path.name}"
    return path.name
