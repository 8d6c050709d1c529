"""References that rows of our own bring along: as fit as the clips, and on their side of the split
(L4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from plugins.audio.waveforms import AudioError, load, probe
from plugins.corpora import Rejected, Utterance
from plugins.prepare.clips import Level, Outcome
from plugins.prepare.quality import Limits, check_file_size, check_header, check_samples
from plugins.prepare.rows import Clip

_COLUMNS = ("reference_audio", "reference_text", "reference_codes")


def check_references(
    found: Sequence[tuple[Utterance, Outcome]],
    unfit: Collection[str],
    *,
    level: Level,
    limits: Limits,
) -> tuple[list[tuple[Utterance, Outcome]], list[Rejected]]:
    """Without rows whose reference is one of the `unfit` recordings, or is found to be one.

    The others name their reference as it is after processing, if it is a clip of `found` too.
    """
    clips = {str(utterance.audio): outcome.files[0].audio for utterance, outcome in found}

    @cache
    def fault(path: str) -> tuple[str, object] | None:
        if path in clips:  # looked at already
            return None
        if path in unfit:
            return "is a rejected clip", path
        return _fault(path, level, limits)

    kept, more = [], []
    for utterance, outcome in found:
        references = _references(utterance.row or {})
        told = next(filter(None, map(fault, references)), None)
        if told is not None:
            reason, value = told
            more.append(
                Rejected(utterance.place, utterance.id, f"reference_audio {reason}", str(value))
            )
            continue
        if any(clips.get(path, path) != path for path in references):
            row = {
                **(utterance.row or {}),
                "reference_audio": [clips.get(path, path) for path in references],
            }
            row.pop("reference_codes", None)  # of the recording before processing
            utterance = replace(utterance, row=row)
        kept.append((utterance, outcome))
    return kept, more


def within_sides(sides: Mapping[str, Sequence[Clip]]) -> tuple[dict[str, list[Clip]], int]:
    """`sides` with the references left out that lie on another side, and how many these are.

    A voice in validation that was trained on would tell nothing of cloning.
    """
    side_of = {str(clip.audio): name for name, clips in sides.items() for clip in clips}
    num_left_out = 0
    result: dict[str, list[Clip]] = {name: [] for name in sides}
    for name, clips in sides.items():
        for clip in clips:
            if any(side_of.get(path, name) != name for path in _references(clip.row)):
                clip = replace(
                    clip,
                    row={column: v for column, v in clip.row.items() if column not in _COLUMNS},
                )
                num_left_out += 1
            result[name].append(clip)
    return result, num_left_out


def _fault(path: str, level: Level, limits: Limits) -> tuple[str, object] | None:
    if level == "none":
        return None
    try:
        fault = check_file_size(Path(path).stat().st_size, limits)
        if fault is None:
            info = probe(path)
            fault = check_header(info, limits)
            if fault is None and level == "full":
                fault = check_samples(
                    load(path, sample_rate_hz=info.sample_rate_hz), info.sample_rate_hz, limits
                )
    except AudioError as error:
        return error.reason, path
    return fault


def _references(row: Mapping[str, Any]) -> list[str]:
    value = row.get("reference_audio") or []
    return [value] if isinstance(value, str) else list(value)
