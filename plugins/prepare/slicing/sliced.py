"""Clips that were cut from a recording, on the disk: their sound, and the note of what they are.

In: `Piece`. Out: `SlicedClip`, as ``clips.json`` beside its sound has it; and these again for the
next run, if they are whole and were made of the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from plugins.audio.waveforms import flac_of
from plugins.corpora.utterance import collapse
from plugins.files.disk import replace_when_done, sync
from plugins.prepare.slicing.pieces import Piece

_NOTE = "clips.json"


@dataclass(frozen=True)
class SlicedClip:
    """One clip of a recording, as `clips.json` has it."""

    id: str
    file: str  # beside that file
    num_bytes: int
    bytes_hash: str
    start_s: float  # in the recording
    end_s: float
    said: tuple[float, float]  # without the padding
    text: str
    heard: str  # the text, but where a script has it otherwise
    speaker: str | None  # as it is told apart; None: it is not asked for
    language: str | None
    confidence: float
    agreement: float | None  # of a script with what is heard; None: there is none
    snr_db: float
    doubts: tuple[str, ...]
    fault: str  # why it is no utterance; may be empty


def written(id_: str, path: Path, piece: Piece) -> SlicedClip:
    """`piece`, once its sound has been written to `path`."""
    content = flac_of(piece.sound, piece.sound_hz)
    # Only with clips.json, synced below, are they anybody's.
    path.write_bytes(content)
    judgement = piece.judgement
    heard = collapse("".join(word.text for word in piece.words))
    return SlicedClip(
        id_,
        path.name,
        len(content),
        _hash(content),
        round(piece.start_s, 3),
        round(piece.end_s, 3),
        (round(piece.said[0], 3), round(piece.said[1], 3)),
        heard,
        heard,
        piece.speaker,
        piece.language,
        judgement.confidence,
        None,
        judgement.snr_db,
        judgement.doubts,
        judgement.fault,
    )


def note(folder: Path, key: str, clips: Sequence[SlicedClip]) -> None:
    for clip in clips:
        sync(folder / clip.file)
    content = {"key": key, "clips": list(map(asdict, clips))}
    with replace_when_done(folder / _NOTE) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def kept(folder: Path, key: str) -> list[SlicedClip] | None:
    """The clips in `folder` if they are whole and were made under `key`."""
    # Another release may have written anything; its keys are others too.
    with suppress(OSError, LookupError, TypeError, ValueError, RecursionError):
        content = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        clips = []
        for values in content["clips"]:
            tuples = {name: tuple(values[name]) for name in ("said", "doubts")}
            clip = SlicedClip(**values | tuples)
            if _hash((folder / clip.file).read_bytes()) != clip.bytes_hash:
                return None
            clips.append(clip)
        return clips
    return None


def _hash(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)
