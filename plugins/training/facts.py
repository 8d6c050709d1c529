"""What a run is made of, for those who read about it: data, settings, versions. L3.

trainer --measure, settings_of, versions, commit--> `--dry_run` (plugins.training.preflight.dry_run)
and the model card"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plugins import __version__
from plugins.audio.codec import FRAMES_PER_S
from plugins.corpora.canonical import ROW_SOURCE, SPEAKER
from plugins.data.clips import num_frames
from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.settings import HiggsAudioSettings
from plugins.training import resume
from plugins.training.packs import table_of

_PACKAGES = ("ms-swift", "transformers", "torch", "peft", "deepspeed")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Statistics:
    """Of the rows of one set; frames are those of the codec, 25 per second."""

    num_rows: int = 0
    speakers: set[str] = field(default_factory=set)  # as rows name them
    clips: list[int] = field(default_factory=list)  # frames of each trained clip
    references: list[int] = field(default_factory=list)  # frames of each reference
    positions: list[int] = field(default_factory=list)  # text tokens and delayed frames of each row

    @property
    def hours(self) -> float:
        return sum(self.clips) / FRAMES_PER_S / 3600

    def summary(self) -> str:
        who = f"{len(self.speakers)} speaker(s)" if self.speakers else "speakers not named"
        # A small set in minutes: three digits of hours would hide it.
        length = f"{self.hours:.2f} h" if self.hours >= 1 else f"{self.hours * 60:.2f} min"
        return f"{self.num_rows:,} rows, {length} of speech in {len(self.clips):,} clips, {who}"

    def table(self) -> str:
        """Mean, median, 95th percentile and maximum of what has a length."""
        lines = [f"{'':<24}{'mean':>10}{'median':>10}{'95 %':>10}{'longest':>10}"]
        seconds = [frames / FRAMES_PER_S for frames in self.clips]
        for name, values in (
            ("clip, frames", self.clips),
            ("clip, s", seconds),
            ("reference, frames", self.references),
            ("row, tokens and frames", self.positions),
        ):
            if values:
                shown = (np.mean(values), *np.percentile(values, (50, 95)), max(values))
                lines.append(f"{name:<24}" + "".join(f"{value:>10,.1f}" for value in shown))
        return "\n".join(lines)


def measure(
    dataset: Any, settings: HiggsAudioSettings, positions: Callable[[Dialogue], int] | None = None
) -> Statistics | None:
    """Every row of one of MS-SWIFT's data sets, by headers and codes; None for a stream.

    positions: how long a row is, if that is asked for. Raises UserError if a file cannot be read
    any more."""
    rows = table_of(dataset)
    if ROW_SOURCE not in (getattr(rows, "column_names", None) or []) or not hasattr(
        rows, "__len__"
    ):
        return None
    found = Statistics()
    for row in rows:
        dialogue = dialogue_from_row(row, settings)
        found.num_rows += 1
        found.clips += [num_frames(clip, dialogue.source) for clip in dialogue.targets()]
        found.references += [
            num_frames(reference.clip, dialogue.source) for reference in dialogue.references
        ]
        if row.get(SPEAKER):
            found.speakers.add(row[SPEAKER])
        if positions is not None:
            found.positions.append(positions(dialogue))
    return found


def settings_of(trainer: Any) -> dict[str, Any]:
    """What the weights depend on, and what MS-SWIFT and we made of what was left open; nothing of
    the rows."""
    options = resume.fingerprint(trainer)
    for name in ("number of rows", "content of the rows"):
        options.pop(name, None)
    return {**options, "max_length": trainer.template.max_length, "dtype": str(trainer.model.dtype)}


def versions() -> str:
    names = [("higgs-audio-swift", __version__), ("Python", platform.python_version())]
    for name in _PACKAGES:
        try:
            names.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(f"{name} {version}" for name, version in names)


def commit() -> str | None:
    """Of this kit, with `-dirty` if files of it were changed; None if it is no checkout of git."""
    command = [
        "git",
        "-C",
        str(_ROOT),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        # Not of a repository that this installation happens to lie in.
        done = (
            subprocess.run(command, capture_output=True, text=True)
            if (_ROOT / ".git").exists()
            else None
        )
    except OSError:
        return None  # no git
    return done.stdout.strip() or None if done else None


def shown(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(shown, value))
    return "" if value is None else str(value)
