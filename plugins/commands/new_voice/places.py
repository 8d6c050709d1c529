"""The folder of a voice, and what is asked of the command before anything is begun.

NAME/data/         rows, clips, codes, what was rejected (`higgs-audio prepare`)
NAME/lora.yaml     the settings of the training
NAME/training/     its run: checkpoints, log, curves, samples (`higgs-audio sft`)
NAME/adapter/      the best checkpoint for those who speak, and the model's card
NAME/evaluation/   figures and clips (`higgs-audio evaluate`)
NAME/report.html   leads to the page there
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from plugins.audio.tracks import Track
from plugins.audio.waveforms import AudioError
from plugins.commands.new_voice.state import FILE
from plugins.errors import UserError, problem
from plugins.files import lock
from plugins.files.untrusted import ADAPTER_CONFIG
from plugins.prepare.outputs import rejected_path, report_paths, split_path
from plugins.training import start


@dataclass(frozen=True)
class Places:
    """Paths as they are typed: relative ones stay so in the lines that are shown."""

    folder: Path
    name: str

    @property
    def rows(self) -> Path:
        return self.folder / "data" / f"{self.name}_train.jsonl"

    @property
    def validation(self) -> Path:
        return split_path(self.rows, "val")

    @property
    def test(self) -> Path:
        return split_path(self.rows, "test")

    @property
    def rejected(self) -> Path:
        return rejected_path(self.rows)

    @property
    def counts(self) -> Path:
        """The preparation's report as JSON."""
        return report_paths(self.rows)[0]

    @property
    def heard(self) -> Path:
        """The same as a page with players."""
        return report_paths(self.rows)[-1]

    @property
    def settings(self) -> Path:
        return self.folder / "lora.yaml"

    @property
    def speed(self) -> Path:
        return self.folder / "speed"

    @property
    def training(self) -> Path:
        return self.folder / "training"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    def hold(self) -> None:
        """Make the folder, and let this process be the only one that makes a voice in it."""
        others = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        if set(others) - {lock.NAME} and FILE not in others:
            shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
            raise self._wrong(f"holds files that are not of a voice ({shown})")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            holder = lock.take(self.folder / lock.NAME)
        except OSError as error:
            raise self._wrong(f"cannot be written ({error.strerror})") from None
        if holder is not None:
            raise self._wrong(f"is being made by {holder}", "wait for it or stop it")

    def _wrong(self, reason: str, remedy: str = "give another --output") -> UserError:
        return _refused("output", str(self.folder), reason, remedy)


def check(options: Namespace) -> Places:
    """Where the voice goes. Raises UserError for options that cannot be meant."""
    name, recordings = options.name, Path(options.recordings)
    if not name.isprintable() or name.startswith((".", "-")) or "/" in name or not name.strip():
        reason = "cannot be the name of a folder"
        raise _refused("name", name, reason, "give a word, such as ann")
    if not recordings.is_dir():
        reason = "is a file" if recordings.exists() else "not found"
        remedy = "give the folder of the recordings; one alone goes into a folder of its own"
        raise _refused("RECORDINGS", str(recordings), reason, remedy)
    folder = options.output or Path(name)
    if folder.resolve().is_relative_to(recordings.resolve()):
        reason = f"lies within the recordings ({recordings}): its clips would be taken for some"
        raise _refused("output", str(folder), reason, "give --output a folder elsewhere")
    if options.asr is not None and options.language is None:
        reason = "needs the language that it is to hear"
        raise _refused("asr", options.asr, reason, "give --language too, for example en")
    if options.hours is not None and not 0 < options.hours < float("inf"):
        raise _refused("hours", options.hours, "is no time", "give hours, for example 2")
    if not 1 <= options.min_minutes < float("inf"):
        raise _refused("min_minutes", options.min_minutes, "is below 1", "give minutes")
    # As the training will, an hour later: of its rows nothing is known yet.
    start.check(["--model", options.model, "--dataset", "rows", "--output_dir", str(folder)])
    if (Path(options.model) / ADAPTER_CONFIG).is_file():
        reason = "is a LoRA, on which no other one is trained"
        remedy = "give its base, or merge it: higgs-audio export"
        raise _refused("model", options.model, reason, remedy)
    return Places(folder, name)


def minutes_of(recordings: list[Path]) -> tuple[float, bool]:
    """As their headers say, and whether all of them do. One that cannot be read has none: its
    preparation says why."""
    seconds, is_known = 0.0, True
    for path in recordings:
        try:
            with Track(path) as track:
                seconds += track.duration_s or 0.0
                is_known = is_known and track.duration_s is not None
        except AudioError:
            continue
    return seconds / 60, is_known


def _refused(option: str, value: object, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)
