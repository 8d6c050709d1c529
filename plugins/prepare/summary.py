"""What the command tells its user at the end: the counts, the files, the next command.

In: the clips by side and the rejected. Out: text. Reads no file."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from plugins.corpora import Rejected
from plugins.errors import UserError, problem
from plugins.prepare.outputs import rejected_path, split_path
from plugins.prepare.pairing import MIN_REFERENCE_S
from plugins.prepare.report import dialogue_counts, dialogue_total
from plugins.prepare.rows import Clip

_ENOUGH = 10  # rows; fewer say more of themselves than of a model
_NAMING = {
    "folder": "put the clips of each speaker into a folder of its own",
    "custom": "name their column with --speaker_column",
    "huggingface": "name their column with --speaker_column",
    "gpt_sovits": "name them in the second field of the list",
    "recordings": "put the recordings of each speaker into a folder of its own",
    "jsonl": 'give each row a "speaker"',
}
_NAMES = {"train": "train", "val": "validation", "test": "test"}


def summary(
    output: Path,
    sides: Mapping[str, Sequence[Clip]],
    rejected: Sequence[Rejected],
    *,
    num_crossing: int,
    files: Iterable[Path],
    dialogues: Mapping[str, Any] | None = None,
) -> str:
    """Of a preparation that has written `files`, without a line end at its end.

    num_crossing: references left out because they lay on another side of the split. dialogues: what
    the report says of them, if they were asked for."""
    clips = list(chain.from_iterable(sides.values()))
    speakers = set().union(*(clip.speakers for clip in clips))
    lines = [
        f"rows      {_rows(sides)}",
        f"hours     {_hours(clips)}",
        f"speakers  {len(speakers) or 'not named'}",
    ]
    if dialogues is not None:
        lines.append(f"dialogues {dialogue_total(dialogues)}")
        lines += [f"          {count} {text}" for count, text in dialogue_counts(dialogues)]
    lines.append(f"cloning   {num_references(clips)} rows with a reference")
    if num_crossing:
        lines.append(f"          {num_crossing} left out: they lay on another side of the split")
    lines.append(f"rejected  {len(rejected)}")
    for kind, count in _kinds(rejected):
        lines.append(f"          {count} {kind}")
    for path in files:
        lines.append(f"written   {path}")
    for side, name in _NAMES.items():
        if side != "train" and side in sides and len(sides[side]) < _ENOUGH:
            few = f"few {name} rows ({len(sides[side])})"
            lines.append(f"warning   {few}: raise --{side}_ratio or add clips")
    lines.append(f"next      {_training(output, sides)}")
    return "\n".join(lines)


def num_references(clips: Iterable[Clip]) -> int:
    """How many rows have a voice to clone."""
    return sum("reference_audio" in clip.row for clip in clips)


def naming_of(dataset_type: str) -> str:
    """How the clips of such a corpus get the names of their speakers."""
    return _NAMING.get(dataset_type, "leave the flag out: the corpus names none")


def no_references(
    dataset_type: str, clips: Sequence[Clip], min_similarity: float | None
) -> UserError:
    """The error of `--references` where no row of the training `clips` got one."""
    speakers = Counter(clip.speaker for clip in clips if clip.copy_of is None)
    del speakers[None]
    can_serve = set()
    for clip in clips:
        if (clip.duration_s or 0.0) >= MIN_REFERENCE_S:
            can_serve.add(clip.speaker)
    if not speakers:
        reason = "were made: no clip names its speaker"
        remedy = f"{naming_of(dataset_type)}, or give --single_speaker NAME if all are one voice"
    elif not can_serve & set(speakers):
        reason = f"were made: no clip of a named speaker has {MIN_REFERENCE_S:g} s or more"
        remedy = "add longer clips or leave out --references"
    elif not any(speakers[speaker] > 1 for speaker in can_serve):
        reason = f"were made: no speaker has a clip of {MIN_REFERENCE_S:g} s and another one"
        remedy = "add clips or leave out --references"
    elif min_similarity is not None:
        reason = f"were made: no two clips of a speaker reach --min_similarity {min_similarity:g}"
        remedy = "lower it"
    else:
        reason, remedy = "were made: too few clips for the share without", "--without_reference 0"
    return problem(source="--references", field="pairs", value=0, reason=reason, remedy=remedy)


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
