"""Cloning pairs: to each clip a reference clip of the same voice, another utterance of the same
side of the split.

In: the clips of one side. Out: the same clips; the rows of those with a partner name it in
`reference_audio` and `reference_text`. Pairs depend on ids and seed only, and adding clips changes
few of them: the clips of a speaker stand on a ring by the hash of their ids, and a clip takes the
first fit one after its own place."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

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
    rings: dict[str, list[tuple[int, Clip]]] = defaultdict(list)
    for clip in clips:
        is_long = (clip.duration_s or 0.0) >= MIN_REFERENCE_S
        if clip.speaker is not None and is_long and not clip.others:
            rings[clip.speaker].append((_hash(seed, "ring", clip.id), clip))
    for ring in rings.values():
        ring.sort(key=lambda place: place[0])
    result = []
    for clip in clips:
        # Rows without reference keep the model able to speak without one.
        stays_without = _hash(seed, "without", clip.id) < without_share * 2**64
        if "reference_audio" not in clip.row and not clip.others and not stays_without:
            ring = rings.get(clip.speaker or "", [])
            clip = _with_reference(clip, _candidates(ring, clip, seed), is_similar)
        result.append(clip)
    return result


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
            text = candidate.row["messages"][-2]["content"]
            columns = {"reference_audio": candidate.row["audios"][0], "reference_text": text}
            return replace(clip, row={**clip.row, **columns})
    return clip


def _hash(seed: int, purpose: str, id_: str) -> int:
    """64 bits that depend on the arguments only, on every machine."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{id_}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
