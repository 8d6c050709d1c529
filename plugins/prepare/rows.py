"""Outcomes -> rows, without duplicates; the split; the files.

In: what `plugins.prepare.clips` made of each utterance. Out: `Clip`, `Rejected`, and files that
appear whole or not at all. Knows no corpus layout."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.corpora import Rejected, Utterance
from plugins.files.disk import file_hash, remove_strays, replace_when_done
from plugins.prepare.clips import File, Level, Outcome


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
    others: tuple[Path, ...] = ()  # of a dialogue: the recordings of its other turns
    # Of a dialogue that was made of clips: these, whose speakers differ.
    turns: tuple[Clip, ...] = ()

    @property
    def speakers(self) -> set[str]:
        """Those that have a name."""
        names = {clip.speaker for clip in self.turns or (self,)}
        return {name for name in names if name is not None}


def clips_of(utterance: Utterance, outcome: Outcome) -> list[Clip]:
    """The rows that an utterance gives: one, and one per augmented copy, of which a dialogue has
    none."""
    if utterance.turns:
        return [_dialogue(utterance, outcome.files)]
    clips: list[Clip] = []
    for file in outcome.files:
        clip = Clip(
            file.id,
            Path(file.audio),
            file.speaker,
            _row(utterance, [file], file.id),
            duration_s=file.duration_s,
            content=file.content,
            copy_of=clips[0].id if clips else None,
        )
        clips.append(clip)
    return clips


def _dialogue(utterance: Utterance, files: Sequence[File]) -> Clip:
    durations_s = [file.duration_s for file in files if file.duration_s is not None]
    return Clip(
        utterance.id,
        Path(files[0].audio),
        utterance.speaker,
        _row(utterance, files, utterance.id),
        duration_s=sum(durations_s) if durations_s else None,
        others=tuple(Path(file.audio) for file in files[1:]),
    )


def drop_duplicates(
    fit: Sequence[tuple[Utterance, Outcome]], *, level: Level
) -> tuple[list[tuple[Utterance, Outcome]], list[Rejected]]:
    """Without utterances whose recording an earlier one has; their ids are all different."""
    # The copies of a duplicate are duplicates too.
    num_alike = Counter(outcome.files[0].content for _, outcome in fit)
    recordings: dict[str, str] = {}  # content -> the id of the first clip that has it
    kept, rejected = [], []
    for utterance, outcome in fit:
        file = outcome.files[0]
        content = file.content
        if content is not None and num_alike[content] > 1 and level != "full":
            # Only edges were hashed, and those of many clips are silent. Each is read once, never
            # compared with each other.
            try:
                content = file_hash(file.audio)
            except OSError as error:
                reason = f"may not be read ({error.strerror})"
                rejected.append(Rejected(utterance.place, file.id, reason, file.audio))
                continue
        twin = file.id if content is None else recordings.setdefault(content, file.id)
        if twin == file.id:
            kept.append((utterance, outcome))
        else:
            reason = f"duplicate audio (as {twin})"
            rejected.append(Rejected(utterance.place, file.id, reason, str(utterance.audio)))
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
    ratios = {"val": val_ratio}
    if test_ratio:
        ratios["test"] = test_ratio
    groups = _groups(clips, by_speaker=by_speaker)
    sides = _sides(set(groups.values()), ratios, seed)
    result: dict[str, list[Clip]] = {name: [] for name in ("train", *ratios)}
    for clip in clips:
        side = sides[groups[clip.audio]]
        # A faster copy of a validation clip among the training rows would spoil its loss.
        if clip.copy_of is None or side == "train":
            result[side].append(clip)
    return result


def _groups(clips: Sequence[Clip], *, by_speaker: bool) -> dict[Path, str]:
    """Recording -> what decides about its side. One named by several rows goes by the smallest of
    their ids."""
    groups: dict[Path, str] = {}
    # Of the originals: a copy at another speed has a speaker of its own, but shares their side.
    speakers = {clip.id: clip.speaker for clip in clips}
    ties: list[set[str]] = []
    for clip in clips:
        origin = clip.copy_of or clip.id
        group, speaker = origin, speakers[origin]
        if by_speaker and speaker is not None:
            group = speaker
        for audio in (clip.audio, *clip.others):
            groups[audio] = min(group, groups.get(audio, group))
        if by_speaker and clip.turns:
            ties.append({groups[clip.audio], *clip.speakers})
    for clip in clips:
        if clip.others:
            ties.append({groups[audio] for audio in (clip.audio, *clip.others)})
    names = _tied(ties)
    return {audio: names.get(group, group) for audio, group in groups.items()}


def _tied(ties: Iterable[set[str]]) -> dict[str, str]:
    """Group -> the smallest of all that hang together: those of a dialogue, and so those of all
    dialogues that share a clip, or a speaker where the speakers decide."""
    above: dict[str, str] = {}

    def top(group: str) -> str:
        while (higher := above.setdefault(group, group)) != group:
            above[group] = above[higher]  # a shorter way for the next one
            group = higher
        return group

    for tie in ties:
        tops = set(map(top, tie))
        above |= dict.fromkeys(tops, min(tops))
    return {group: top(group) for group in list(above)}


def _sides(groups: Iterable[str], ratios: Mapping[str, float], seed: int) -> dict[str, str]:
    """Group -> its side. Groups lie on a line from 0 to 1 by their hash; each side of `ratios` has
    a stretch of it, train has the rest."""
    position = {group: _unit_hash(group, seed) for group in groups}
    order = sorted(position, key=lambda group: (position[group], group))
    sides = {group: _side_at(position[group], ratios) for group in order}
    # Two clips and 5 % would nearly always leave no validation rows.
    if len(order) > len(ratios):
        for i, name in enumerate(ratios):
            if name not in sides.values():
                sides[order[i]] = name
        if "train" not in sides.values():
            sides[order[-1]] = "train"
    return sides


def _side_at(position: float, ratios: Mapping[str, float]) -> str:
    border = 0.0
    for name, ratio in ratios.items():
        border += ratio
        if position < border:
            return name
    return "train"


def rejected_row(rejected: Rejected) -> dict[str, Any]:
    """The line of `rejected` in that list."""
    return {
        "file": rejected.place,
        "id": rejected.id,
        "reason": rejected.reason,
        "value": rejected.value,
        **rejected.details,
    }


def write_files(files: Mapping[Path, bytes | Iterable[dict[str, Any]]]) -> None:
    """Write all `files`, bytes as they are and rows as lines of JSON; the last one of the mapping
    takes its place last.

    Only once every one of them is complete do they replace their predecessors.
    """
    remove_strays(files)
    with ExitStack() as stack:
        # An exit stack goes backwards: what is entered first takes its place last.
        for path, content in reversed(list(files.items())):
            temporary = stack.enter_context(replace_when_done(path))
            if isinstance(content, bytes):
                temporary.write_bytes(content)
                continue
            with temporary.open("w", encoding="utf-8") as file:
                for row in content:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(utterance: Utterance, files: Sequence[File], id_: str) -> dict[str, Any]:
    audios = [file.audio for file in files]
    originals = [str(turn.audio) for turn in utterance.turns or (utterance,)]
    row = utterance.to_row() | {"audios": audios}
    if audios != originals:
        # What the row says of the original is not true of the processed one.
        row.pop("audio_codes", None)
        row.pop("duration_s", None)
    speaker = utterance.speaker if utterance.turns else files[0].speaker
    if speaker is not None:
        row["speaker"] = speaker
    if utterance.language is not None:
        row["language"] = utterance.language
    return row | {"id": id_}


def _unit_hash(id_: str, seed: int) -> float:
    """A number in [0, 1) that depends on `id_` and `seed` only, on every machine and Python."""
    # Python's own hash of a text differs from process to process.
    digest = hashlib.sha256(f"{seed}:{id_}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
