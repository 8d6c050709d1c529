"""Requests to speak -> dialogues: whose voice, in which scene (L2).

In: texts, recordings and descriptions as a user gives them. Out: a `Dialogue` in the words of
training (`plugins.data.rows`), whose one user turn holds the text. Faults of a reference that would
give noise instead of a voice are told here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plugins.audio import waveforms as audio
from plugins.corpora.canonical import canonical_row
from plugins.data.dialogue import AudioClip, Dialogue, Turn
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SCENE_END, SCENE_START
from plugins.errors import problem
from plugins.settings import HiggsAudioSettings

AnyPath = str | Path
Transcript = (
    str | Callable[[str], str]
)  # or a function that hears it: path of the recording -> its text
MIN_REFERENCE_S, MAX_REFERENCE_S = (
    1.0,
    30.0,
)  # a word says little of a voice; longer than what is trained on
_CONTEXT_TURNS = (
    3  # spoken turns that the next one hears; each takes about as many positions as it will
)
_SILENT = 10 ** (-60 / 20)  # peak 60 dB below full scale


@dataclass(frozen=True)
class Voice:
    """A recording to clone, best with its transcript, or a description in words ("warm, unhurried,
    elderly man")."""

    audio: AnyPath | None = None
    text: Transcript | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        if (self.audio is None) == (self.description is None):
            reason = "needs either a recording or a description"
            raise problem(
                source="voice",
                field="audio",
                value=self.audio,
                reason=reason,
                remedy="give one of the two",
            )

    @classmethod
    def of(cls, given: Voice | AnyPath | tuple[AnyPath, Transcript]) -> Voice:
        """From a recording, or (recording, transcript)."""
        if isinstance(given, Voice):
            return given
        return cls(*given) if isinstance(given, tuple) else cls(given)


@dataclass(frozen=True)
class Script:
    """A request: what all its pieces have in common, and the pieces, each to be spoken in the
    hearing of the ones before it."""

    whole: Dialogue
    lines: tuple[str, ...]

    def next_line(self, spoken: Sequence[Tensor], *, max_frames: int) -> Dialogue:
        """The prompt for the line after those `spoken`, codes (K, F): it holds the last of them, as
        far as `max_frames` go, and the very first where no reference holds the voice."""
        heard = [*range(max(0, len(spoken) - _CONTEXT_TURNS), len(spoken))]
        if heard and heard[0] > 0 and not self.whole.references:
            heard = [0, *heard[1:]]
        while heard and sum(spoken[i].shape[1] for i in heard) > max_frames:
            heard.pop(0 if self.whole.references or len(heard) == 1 else 1)
        turns: list[Turn] = []
        for i in heard:
            turns += [
                Turn("user", (self.lines[i],)),
                Turn("assistant", (AudioClip(codes=spoken[i]),)),
            ]
        return replace(self.whole, turns=(*turns, Turn("user", (self.lines[len(spoken)],))))


def request(
    text: str, scene: str | None, voices: Sequence[Voice], settings: HiggsAudioSettings
) -> Dialogue:
    """`voices` are SPEAKER0, SPEAKER1 ... in this order; recordings have to come before
    descriptions.

    Raises UserError for an empty text, and for a recording that is missing, damaged, too short, too
    long or silent."""
    recorded = [voice for voice in voices if voice.audio is not None]
    assert list(voices[: len(recorded)]) == recorded, "recordings come first"
    described = [
        f"SPEAKER{i}: {voice.description}"
        for i, voice in enumerate(voices)
        if voice.description is not None
    ]
    scene = "\n\n".join(part for part in (scene, "\n".join(described)) if part)
    system = (
        [{"role": "system", "content": f"{SCENE_START}\n{scene}\n{SCENE_END}"}] if scene else []
    )
    row = canonical_row(
        {
            "messages": [*system, {"role": "user", "content": text}],
            "reference_audio": [str(voice.audio) for voice in recorded],
        },
        "request",
        settings,
    )
    for path in row["reference_audio"]:
        _check_reference(path)
    heard = zip(recorded, row["reference_audio"], strict=True)
    row["reference_text"] = [
        (v.text(path) if callable(v.text) else v.text) or "" for v, path in heard
    ]
    return dialogue_from_row(row, settings, training=False)


def voices_of(
    audio: AnyPath | Sequence[AnyPath] | None,
    text: Transcript | Sequence[Transcript] | None,
    description: str | None,
) -> list[Voice]:
    """SPEAKER0, SPEAKER1 ..., the described one last."""
    paths = [] if audio is None else [audio] if isinstance(audio, str | Path) else list(audio)
    texts: list[Transcript | None] = (
        [] if text is None else [text] if isinstance(text, str) or callable(text) else [*text]
    )
    if len(texts) > len(paths):
        reason = f"are {len(texts)} transcripts for {len(paths)} references"
        raise problem(
            source="request",
            field="reference_text",
            value=texts,
            reason=reason,
            remedy="give one per reference_audio",
        )
    texts += [None] * (len(paths) - len(texts))
    described = [] if description is None else [Voice(description=description)]
    return [Voice(path, each) for path, each in zip(paths, texts, strict=True)] + described


def speakers_of(
    dialogue: Sequence[Mapping[str, str]], voices: Mapping[str, Any] | None
) -> dict[str, Voice | None]:
    """Who speaks, in the order of their numbers: recorded voices before described ones."""
    if not dialogue:
        raise problem(
            source="dialogue",
            field="turns",
            value=[],
            reason="is empty",
            remedy="give at least one turn",
        )
    speakers: dict[str, Voice | None] = {}
    for i, line in enumerate(dialogue):
        speaker = line.get("speaker")
        if speaker is None or (voices is not None and speaker not in voices):
            known = ", ".join(voices or ()) or "nobody"
            raise problem(
                source=f"dialogue[{i}]",
                field="speaker",
                value=speaker,
                reason=f"has no voice (known: {known})",
                remedy="add one",
            )
        speakers.setdefault(speaker, None if voices is None else Voice.of(voices[speaker]))
    return dict(
        sorted(speakers.items(), key=lambda item: item[1] is not None and item[1].audio is None)
    )


def _check_reference(path: str) -> None:
    remedy = "give 3 to 15 seconds of clear speech"
    try:
        duration_s = audio.probe(path).duration_s
        if duration_s > MAX_REFERENCE_S:  # before decoding it
            reason = f"lasts {duration_s:.1f} s, more than {MAX_REFERENCE_S:g}"
            raise problem(
                source="request", field="reference_audio", value=path, reason=reason, remedy=remedy
            )
        samples = audio.load(path)
    except audio.AudioError as error:
        raise problem(
            source="request",
            field="reference_audio",
            value=path,
            reason=error.reason,
            remedy=error.remedy,
        ) from None
    duration_s = len(samples) / audio.SAMPLE_RATE_HZ
    if duration_s < MIN_REFERENCE_S:
        reason = f"lasts {duration_s:.1f} s, less than {MIN_REFERENCE_S:g}"
        raise problem(
            source="request", field="reference_audio", value=path, reason=reason, remedy=remedy
        )
    if np.abs(samples).max() < _SILENT:
        raise problem(
            source="request", field="reference_audio", value=path, reason="is silent", remedy=remedy
        )
