"""An utterance -> a checked clip with its JSONL row; the split; the files (L4).

In: `Utterance`. Out: `Clip` or `Rejected`, and files that appear whole or not at all. Knows no corpus layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugins.audio import AudioError, load, probe, replace_when_done
from plugins.prepare.corpora import Rejected, Utterance
from plugins.prompt_text import INSTRUCTION

# The seed document asks for 24 kHz and 1-30 s. Below 16 kHz the consonants are gone and no resampling restores them.
MIN_DURATION_S, MAX_DURATION_S = 1.0, 30.0
MIN_SAMPLE_RATE_HZ = 16_000
SILENT_PEAK = 1e-3  # -60 dBFS, the noise floor of a quiet room recording


@dataclass(frozen=True)
class Clip:
    """One row to be written, with what the split and the summary need of it."""

    id: str
    audio: Path
    speaker: str | None
    row: dict[str, Any]
    duration_s: float | None  # None: not measured


def check(utterance: Utterance, *, validate: bool) -> Clip | Rejected:
    """The clip of `utterance`, or why it is unfit. Only `validate` opens the audio (header and every sample)."""
    if not utterance.text:
        return Rejected(utterance.place, utterance.id, "text is empty", "")
    duration_s = _measure(utterance) if validate else None
    if isinstance(duration_s, Rejected):
        return duration_s
    return Clip(utterance.id, utterance.audio, utterance.speaker, _row(utterance), duration_s)


def split(clips: Sequence[Clip], *, val_ratio: float, seed: int) -> tuple[list[Clip], list[Clip]]:
    """`clips` as (train, validation), each in the given order, no recording in both.

    A recording goes by the hash of its id alone, so it stays on its side when files are added or reordered. If that
    leaves a side empty, the recording closest to the border changes over; with fewer than two it stays empty.
    """
    ids: dict[Path, str] = {}  # a recording named by several rows goes by the smallest of their ids
    for clip in clips:
        ids[clip.audio] = min(clip.id, ids.get(clip.audio, clip.id))
    position = {audio: _unit_hash(id_, seed) for audio, id_ in ids.items()}
    validation = {audio for audio, at in position.items() if at < val_ratio}
    if len(position) > 1 and not validation:
        validation = {min(position, key=position.__getitem__)}
    elif len(position) > 1 and len(validation) == len(position):
        validation.remove(max(position, key=position.__getitem__))
    return [c for c in clips if c.audio not in validation], [c for c in clips if c.audio in validation]


def validation_path(output: Path) -> Path:
    """Where the validation rows go: ``x_train.jsonl`` -> ``x_val.jsonl``, ``x.jsonl`` -> ``x_val.jsonl``."""
    before, found, after = output.stem.rpartition("train")
    return output.with_stem(f"{before}val{after}" if found else f"{output.stem}_val")


def rejected_path(output: Path) -> Path:
    """Where the rejected utterances are listed: ``x.jsonl`` -> ``x.rejected.jsonl``."""
    return output.with_stem(f"{output.stem}.rejected")


def rejected_row(rejected: Rejected) -> dict[str, Any]:
    """The line of `rejected` in that list."""
    return {"file": rejected.place, "id": rejected.id, "reason": rejected.reason, "value": rejected.value}


def write_jsonl(files: Mapping[Path, Iterable[dict[str, Any]]]) -> None:
    """Write all `files`; only once every one of them is complete do they replace their predecessors."""
    with ExitStack() as stack:
        for path, rows in files.items():
            temporary = stack.enter_context(replace_when_done(path))
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _measure(utterance: Utterance) -> float | Rejected:
    """The duration in seconds of a recording that meets every requirement, or the first one that it fails."""
    place, id_, audio = utterance.place, utterance.id, utterance.audio
    try:
        info = probe(audio)
        if info.sample_rate_hz < MIN_SAMPLE_RATE_HZ:
            return Rejected(place, id_, f"sample rate below {MIN_SAMPLE_RATE_HZ} Hz", info.sample_rate_hz)
        if not MIN_DURATION_S <= info.duration_s <= MAX_DURATION_S:
            reason = f"duration outside {MIN_DURATION_S:g}-{MAX_DURATION_S:g} s"
            return Rejected(place, id_, reason, round(info.duration_s, 3))
        peak = float(np.abs(load(audio, sample_rate_hz=info.sample_rate_hz)).max())
    except AudioError as error:
        return Rejected(place, id_, error.reason, str(audio))
    return info.duration_s if peak >= SILENT_PEAK else Rejected(place, id_, "silent", peak)


def _row(utterance: Utterance) -> dict[str, Any]:
    """The row in the seed document's shape; the empty assistant turn is where the audio belongs."""
    contents = {"system": INSTRUCTION, "user": utterance.text, "assistant": ""}
    row: dict[str, Any] = {
        "messages": [{"role": role, "content": content} for role, content in contents.items()],
        "audios": [str(utterance.audio)],
    }
    if utterance.speaker is not None:
        row["speaker"] = utterance.speaker
    return {**row, "id": utterance.id}


def _unit_hash(id_: str, seed: int) -> float:
    """A number in [0, 1) that depends on `id_` and `seed` only, on every machine and Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id_}".encode()).digest()[:8], "big") / 2**64
