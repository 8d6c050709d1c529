"""What the command tells its user at the end: the counts, the files, the next command.

In: the clips by side and the rejected. Out: text. Reads no file."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from plugins.corpora import Rejected
from plugins.errors import UserError, problem
from plugins.prepare.outputs import rejected_path, split_path
from plugins.prepare.rows import Clip

_NAMES = {"train": "train", "val": "validation", "test": "test"}


def summary(
    output: Path,
    sides: Mapping[str, Sequence[Clip]],
    rejected: Sequence[Rejected],
    *,
    num_crossing: int,
    files: Iterable[Path],
) -> str:
    """Of a preparation that has written `files`, without a line end at its end.

    num_crossing: references left out because they lay on another side of the split."""
    clips = list(chain.from_iterable(sides.values()))
    speakers = {clip.speaker for clip in clips} - {None}
    lines = [
        f"rows      {_rows(sides)}",
        f"hours     {_hours(clips)}",
        f"speakers  {len(speakers) or 'not named'}",
    ]
    num_references = sum("reference_audio" in clip.row for clip in clips)
    if num_references:
        lines.append(f"cloning   {num_references} rows with a reference")
    if num_crossing:
        lines.append(f"          {num_crossing} left out: they lay on another side of the split")
    lines.append(f"rejected  {len(rejected)}")
    for kind, count in _kinds(rejected):
        lines.append(f"          {count} {kind}")
    for path in files:
        lines.append(f"written   {path}")
    lines.append(f"next      {_training(output, sides)}")
    return "\n".join(lines)


def nothing_left(
    dataset_type: str, input_dir: str, rejected: Sequence[Rejected], *, output: Path
) -> UserError:
    """The error of a corpus without one usable clip."""
    if rejected:
        kinds = ", ".join(f"{count} {kind}" for kind, count in _kinds(rejected))
        reason = f"holds no usable clip (rejected: {kinds})"
        remedy = f"see {rejected_path(output)}"
    else:
        reason, remedy = "holds no utterance", "check --input_dir and the metadata"
    return problem(
        source=dataset_type, field="input_dir", value=input_dir, reason=reason, remedy=remedy
    )


def _rows(sides: Mapping[str, Sequence[Clip]]) -> str:
    counts = []
    for side, name in _NAMES.items():
        # Validation rows are counted even where there are none: training without them is a choice.
        if side in sides or side == "val":
            counts.append(f"{len(sides.get(side, []))} {name}")
    return ", ".join(counts)


def _hours(clips: Iterable[Clip]) -> str:
    # Without validation no audio has been opened.
    durations_s = [clip.duration_s for clip in clips if clip.duration_s is not None]
    if not durations_s:
        return "not measured (--validate does)"
    return f"{sum(durations_s) / 3600:.2f}"


def _kinds(rejected: Iterable[Rejected]) -> list[tuple[str, int]]:
    """The kinds of reason and their counts, the most frequent first."""
    return Counter(entry.kind for entry in rejected).most_common()


def _training(output: Path, sides: Mapping[str, Sequence[Clip]]) -> str:
    # To be pasted into a shell: a path may hold a space.
    command = ["./train_higgs_audio.sh", "--dataset", str(output)]
    if "val" in sides:
        command += ["--val_dataset", str(split_path(output, "val"))]
    return shlex.join(command)
