"""Clips in the order in which they were said -> dialogues: ``--dialogues``.

In: the entries of recordings, and the clips that are fit. Out: a `Clip` per dialogue, whose row has
a turn for each of its clips under ``[SPEAKER0]`` and so on, in the order in which they begin to
speak; and the clips that are part of none, with the reason. A dialogue leaves nothing out that was
said in its time. Voices to clone come later: they are on its side of the split."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugins.corpora import Rejected, Utterance
from plugins.corpora.utterance import Moment, collapse
from plugins.errors import problem
from plugins.prepare.rows import Clip

MAX_PAUSE_S = 2.5  # as it ends a turn
MAX_DIALOGUE_S = 60.0  # of its clips, 1500 frames: with the voices it fits in 4096 positions
_SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")  # in a script: who speaks is told by the sound
# Why a clip stays a row of its own.
_REJECTED = "beside what was rejected"
_PAUSE = "between long pauses"
_FULL = f"left over beside a dialogue of {MAX_DIALOGUE_S:g} s"
_UNCLEAR = "somebody speaks at the same time, or who speaks is unclear"
_END = "nobody else speaks in the recording"


@dataclass
class Dialogues:
    """num_speakers: by recording. rows: dialogues and clips that are part of none, in the order in
    which they were said. single: why clips are part of none, and how many."""

    num_speakers: Mapping[str, int]
    rows: list[Clip] = field(default_factory=list)
    single: Counter[str] = field(default_factory=Counter)

    def add_single(self, clips: Sequence[Clip], reason: str) -> None:
        if clips:
            self.rows += clips
            self.single[reason] += len(clips)

    def require_any(self) -> None:
        """Raises UserError if there is no dialogue."""
        if any(clip.turns for clip in self.rows):
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.single.most_common())
        raise problem(
            source="--dialogues",
            field="dialogues",
            value=0,
            reason=f"were found among {len(self.rows)} clips ({reasons})",
            remedy="leave --dialogues out",
        )

    def totals(self, rows: Sequence[Clip]) -> dict[str, Any]:
        """What the report says of them. rows: as they are written."""
        dialogues = [clip for clip in rows if clip.turns]
        num_speakers = Counter(str(len(clip.speakers)) for clip in dialogues)
        without = sum("reference_audio" not in clip.row for clip in dialogues)
        single = sorted(self.single.items(), key=lambda kind: (-kind[1], kind[0]))
        return {
            "rows": len(dialogues),
            "turns": sum(len(clip.turns) for clip in dialogues),
            "speakers": dict(sorted(num_speakers.items())),
            "without_references": without,
            "single_rows": dict(single),
        }


def dialogues_of(entries: Sequence[Utterance | Rejected], clips: Sequence[Clip]) -> Dialogues:
    """Of the `clips` that were made of `entries`, which are in the order of time in each of their
    recordings."""
    left = {clip.id: clip for clip in clips}
    found = Dialogues(num_speakers=_num_speakers(entries))
    run = _Run(_END)
    for entry in entries:
        clip = left.pop(entry.id, None)
        if clip is None or not isinstance(entry, Utterance) or entry.moment is None:
            is_beside = entry.id.startswith(f"{run.recording}-")
            run = run.ended(_REJECTED if is_beside else _END, found)
            continue
        if not entry.moment.is_clear:
            run = run.ended(_UNCLEAR, found)
            found.add_single([clip], _UNCLEAR)
            continue
        border = run.border(clip, entry.moment)
        if border is not None:
            run = run.ended(border, found)
        run.add(clip, entry.moment)
    run.ended(_END, found)
    return found


def _num_speakers(entries: Sequence[Utterance | Rejected]) -> dict[str, int]:
    """By recording, of what could be a clip at all."""
    speakers: dict[str, set[str | None]] = defaultdict(set)
    for entry in entries:
        if isinstance(entry, Utterance) and entry.moment is not None:
            speakers[entry.moment.recording].add(entry.speaker)
    return {recording: len(names) for recording, names in speakers.items()}


class _Run:
    """Clips between which nothing else was said. began: the reason why it goes back no further."""

    def __init__(self, began: str) -> None:
        self._began = began
        self._clips: list[Clip] = []
        self._length_s = self._end_s = 0.0
        self.recording: str | None = None

    def border(self, clip: Clip, moment: Moment) -> str | None:
        """Why it does not go on with `clip`; None: it does."""
        if not self._clips:
            return None
        if moment.recording != self.recording:
            return _END
        if moment.start_s - self._end_s > MAX_PAUSE_S:
            return _PAUSE
        return _FULL if self._length_s + (clip.duration_s or 0.0) > MAX_DIALOGUE_S else None

    def add(self, clip: Clip, moment: Moment) -> None:
        self._clips.append(clip)
        self._length_s += clip.duration_s or 0.0
        self._end_s, self.recording = moment.end_s, moment.recording

    def ended(self, reason: str, found: Dialogues) -> _Run:
        """The next one; the clips of this one go to `found`."""
        if len({clip.speaker for clip in self._clips}) > 1:
            found.rows.append(_dialogue(self._clips))
        else:
            is_alone = self.recording and found.num_speakers[self.recording] < 2
            why = self._began if reason == _END else reason
            found.add_single(self._clips, _END if is_alone else why)
        run = _Run(reason)
        run.recording = self.recording
        return run


def _dialogue(turns: Sequence[Clip]) -> Clip:
    numbers: dict[str | None, int] = {}
    messages: list[dict[str, Any]] = []
    for turn in turns:
        number = numbers.setdefault(turn.speaker, len(numbers))
        text = _SPEAKER_TAG.sub("", turn.row["messages"][-2]["content"])
        messages.append({"role": "user", "content": f"[SPEAKER{number}] {collapse(text)}"})
        messages.append({"role": "assistant", "content": ""})
    row: dict[str, Any] = {"messages": messages, "audios": [str(turn.audio) for turn in turns]}
    languages = {turn.row.get("language") for turn in turns}
    if len(languages) == 1 and languages != {None}:
        row["language"] = languages.pop()
    id_ = f"{turns[0].id}+{len(turns) - 1}"
    return Clip(
        id_,
        turns[0].audio,
        None,
        row | {"id": id_},
        duration_s=math.fsum(turn.duration_s or 0.0 for turn in turns),
        others=tuple(turn.audio for turn in turns[1:]),
        turns=tuple(turns),
    )
