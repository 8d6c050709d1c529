"""Cloning pairs: to each clip a reference clip of the same voice, another utterance of the same
side of the split; to each dialogue one for each of its speakers.

In: the clips of one side. Out: the same clips; the rows of those with a partner name it in
`reference_audio` and `reference_text`. Pairs depend on ids and seed only, and adding clips changes
few of them: the clips of a speaker stand on a ring by the hash of their ids, and a clip takes the
first fit one after its own place."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plugins.data.wording import MULTI_SPEAKER_INSTRUCTION
from plugins.prepare.rows import Clip

MIN_REFERENCE_S = 3.0  # shorter ones say too little about a voice
_MAX_TRIES = 50  # unlike voices are passed over; then the clip stays without reference


def add_references(
    clips: Sequence[Clip],
    *,
    seed: int,
    without_share: float = 0.0,
    is_similar: Callable[[Clip, Clip], bool] | None = None,
) -> list[Clip]:
    """`clips` in their order. A share `without_share` of them, chosen by hash, and speakers with
    one clip stay without.

    Rows that have a reference keep it, and dialogues stay as they are. Clips without speaker get
    none: nobody says that they are of one voice. is_similar: whether a candidate sounds like the
    clip (an embedding model's verdict).
    """
    rings = _rings((clip for clip in clips if not clip.others), seed)
    result = []
    for clip in clips:
        # Rows without reference keep the model able to speak without one.
        stays_without = _hash(seed, "without", clip.id) < without_share * 2**64
        if "reference_audio" not in clip.row and not clip.others and not stays_without:
            ring = rings.get(clip.speaker or "", [])
            clip = _with_reference(clip, _candidates(ring, clip, seed), is_similar)
        result.append(clip)
    return result


def add_voices(clips: Sequence[Clip], *, seed: int) -> list[Clip]:
    """`clips` in their order; each dialogue that was made of clips with a voice for each of its
    speakers, in the order in which they begin to speak: a clip that is no part of it. A dialogue
    one of whose speakers has no other clip stays without."""
    said: list[Clip] = []
    for clip in clips:
        said += clip.turns or (() if clip.others else (clip,))
    rings = _rings(said, seed)
    result = []
    for clip in clips:
        if clip.turns:
            clip = replace(clip, row=_with_voices(clip, rings, seed))
        result.append(clip)
    return result


def _with_voices(
    dialogue: Clip, rings: Mapping[str, list[tuple[int, Clip]]], seed: int
) -> dict[str, Any]:
    """Its row."""
    paths = set(map(str, (dialogue.audio, *dialogue.others)))
    contents = {turn.content for turn in dialogue.turns}
    first_turns: dict[str, Clip] = {}
    for turn in dialogue.turns:
        assert turn.speaker is not None, turn.id
        first_turns.setdefault(turn.speaker, turn)
    voices = []
    for speaker, turn in first_turns.items():
        for voice in _candidates(rings.get(speaker, []), turn, seed):
            if str(voice.audio) not in paths and voice.content not in contents:
                voices.append(voice)
                break
    if len(voices) < len(first_turns):
        # Without one, training describes a feminine and a masculine voice: nobody has said so.
        system = {"role": "system", "content": MULTI_SPEAKER_INSTRUCTION}
        return {**dialogue.row, "messages": [system, *dialogue.row["messages"]]}
    return {
        **dialogue.row,
        "reference_audio": [str(voice.audio) for voice in voices],
        "reference_text": list(map(_text_of, voices)),
    }


def _rings(clips: Iterable[Clip], seed: int) -> dict[str, list[tuple[int, Clip]]]:
    """Speaker -> those of `clips` that may be a voice to clone, by their hash."""
    rings: dict[str, list[tuple[int, Clip]]] = defaultdict(list)
    for clip in clips:
        if clip.speaker is not None and (clip.duration_s or 0.0) >= MIN_REFERENCE_S:
            rings[clip.speaker].append((_hash(seed, "ring", clip.id), clip))
    for ring in rings.values():
        ring.sort(key=lambda place: place[0])
    return rings


def _candidates(ring: list[tuple[int, Clip]], clip: Clip, seed: int) -> Iterator[Clip]:
    start = bisect_right(ring, _hash(seed, "place", clip.id), key=lambda place: place[0])
    for i in range(min(len(ring), _MAX_TRIES)):
        _, candidate = ring[(start + i) % len(ring)]
        # The same words, noisier or faster, would teach the model to copy its reference.
        another = (candidate.copy_of or candidate.id) != (clip.copy_of or clip.id)
        if another and candidate.audio != clip.audio and candidate.content != clip.content:
            yield candidate


def _with_reference(
    clip: Clip, candidates: Iterator[Clip], is_similar: Callable[[Clip, Clip], bool] | None
) -> Clip:
    for candidate in candidates:
        if is_similar is None or is_similar(clip, candidate):
            columns = {"reference_audio": candidate.row["audios"][0]}
            columns["reference_text"] = _text_of(candidate)
            return replace(clip, row={**clip.row, **columns})
    return clip


def _text_of(clip: Clip) -> str:
    text: str = clip.row["messages"][-2]["content"]
    return text


def _hash(seed: int, purpose: str, id_: str) -> int:
    """64 bits that depend on the arguments only, on every machine."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{id_}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
