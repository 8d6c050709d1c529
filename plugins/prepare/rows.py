"""Outcomes -> rows, without duplicates; the split; the files (L4).

In: what `plugins.prepare.clips` found. Out: `Clip`, `Rejected`, and files that appear whole or not
at all. Knows no corpus layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.corpora import Rejected, Utterance
from plugins.files.disk import remove_strays, replace_when_done
from plugins.prepare.clips import File, Level, Outcome, is_same_recording


@dataclass(frozen=True)
class Clip:
    """One row to be written, with what the split and the summary need of it."""

    id: str
    audio: Path
    speaker: str | None
    row: dict[str, Any]
    duration_s: float | None = None  # None: not measured
    content: str | None = None  # equal for equal recordings; None: not looked at
    copy_of: str | None = None  # the id of the clip of which this is an augmented copy


def clips_of(utterance: Utterance, outcome: Outcome) -> list[Clip]:
    """The rows that an utterance gives: one, and one per augmented copy."""
    return [
        Clip(
            file.id,
            Path(file.audio),
            file.speaker,
            _row(utterance, file),
            file.duration_s,
            file.content,
            None if i == 0 else outcome.files[0].id,
        )
        for i, file in enumerate(outcome.files)
    ]


def drop_duplicates(
    found: Sequence[tuple[Utterance, Outcome]], *, level: Level
) -> tuple[list[tuple[Utterance, Outcome]], list[Rejected]]:
    """Without utterances whose recording an earlier one has; their ids are all different."""
    contents: dict[str, list[File]] = {}
    kept, rejected = [], []
    for utterance, outcome in found:
        file = outcome.files[0]
        twins = contents.setdefault(file.content, []) if file.content is not None else []
        twin = next((each for each in twins if is_same_recording(each, file, level)), None)
        if twin is not None:
            rejected.append(
                Rejected(
                    utterance.place,
                    file.id,
                    f"duplicate audio (as {twin.id})",
                    str(utterance.audio),
                )
            )
            continue
        twins.append(file)
        kept.append((utterance, outcome))
    return kept, rejected


def split(
    clips: Sequence[Clip],
    *,
    val_ratio: float,
    seed: int,
    test_ratio: float = 0.0,
    by_speaker: bool = False,
) -> dict[str, list[Clip]]:
    """`clips` as train, val and, with a `test_ratio`, test, each in the given order, no recording
    in two of them.

    A recording goes by the hash of its id alone, so it stays on its side when files are added or
    reordered. by_speaker: by the hash of its speaker, so that val and test hold voices that are
    never trained. If that leaves a side empty, what lies closest to its border changes over; with
    too few it stays empty. Augmented copies are only trained on."""
    groups = _groups(clips, by_speaker=by_speaker)
    position = {group: _unit_hash(group, seed) for group in set(groups.values())}
    order = sorted(position, key=lambda group: (position[group], group))
    ratios = {"val": val_ratio, **({"test": test_ratio} if test_ratio else {})}
    bounds, start = {}, 0.0
    for name, ratio in ratios.items():
        bounds[name] = (start, start + ratio)
        start += ratio
    sides = {
        group: next((n for n, (a, b) in bounds.items() if a <= position[group] < b), "train")
        for group in order
    }
    if len(order) > len(ratios):
        for i, name in enumerate(ratios):
            if name not in sides.values():
                sides[order[i]] = name
        if "train" not in sides.values():
            sides[order[-1]] = "train"
    result: dict[str, list[Clip]] = {name: [] for name in ("train", *ratios)}
    for clip in clips:
        side = sides[groups[clip.audio]]
        if clip.copy_of is None or side == "train":
            result[side].append(clip)
    return result


def _groups(clips: Sequence[Clip], *, by_speaker: bool) -> dict[Path, str]:
    """Recording -> what decides about its side. One named by several rows goes by the smallest of
    their ids."""
    groups: dict[Path, str] = {}
    speakers = {clip.id: clip.speaker for clip in clips}
    for clip in clips:
        origin = clip.copy_of or clip.id
        speaker = speakers[origin] if by_speaker else None
        group = origin if speaker is None else speaker
        groups[clip.audio] = min(group, groups.get(clip.audio, group))
    return groups


def rejected_row(rejected: Rejected) -> dict[str, Any]:
    """The line of `rejected` in that list."""
    return {
        "file": rejected.place,
        "id": rejected.id,
        "reason": rejected.reason,
        "value": rejected.value,
    }


def write_files(files: Mapping[Path, bytes | Iterable[dict[str, Any]]]) -> None:
    """Write all `files`, bytes as they are and rows as lines of JSON; the last one of the mapping
    takes its place last.

    Only once every one of them is complete do they replace their predecessors.
    """
    remove_strays(files)
    with ExitStack() as stack:
        for path, content in reversed(list(files.items())):  # an exit stack goes backwards
            temporary = stack.enter_context(replace_when_done(path))
            if isinstance(content, bytes):
                temporary.write_bytes(content)
                continue
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in content)


def _row(utterance: Utterance, file: File) -> dict[str, Any]:
    row = utterance.to_row() | {"audios": [file.audio]}
    if file.audio != str(
        utterance.audio
    ):  # what the row said of the original is not true of the processed one
        row = {
            name: value for name, value in row.items() if name not in ("audio_codes", "duration_s")
        }
    named = {"speaker": file.speaker, "language": utterance.language}
    return {
        **row,
        **{name: value for name, value in named.items() if value is not None},
        "id": file.id,
    }


def _unit_hash(id_: str, seed: int) -> float:
    """A number in [0, 1) that depends on `id_` and `seed` only, on every machine and Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id_}".encode()).digest()[:8], "big") / 2**64
