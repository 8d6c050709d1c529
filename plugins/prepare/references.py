"""References that rows of our own bring along: as fit as the clips, and on their side of the split.

In: utterances with their outcomes, or the sides of the split. Out: the same without what is unfit
or crosses a side. References that are chosen here are the matter of `plugins.prepare.pairing`."""

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
    fit: Sequence[tuple[Utterance, Outcome]],
    unfit: Collection[str],
    *,
    level: Level,
    limits: Limits,
) -> tuple[list[tuple[Utterance, Outcome]], list[Rejected]]:
    """Without rows whose reference is one of the `unfit` recordings, or is found to be one.

    The others name their reference as it is after processing, if it is a clip of `fit` too.
    """
    processed: dict[str, str] = {}
    for utterance, outcome in fit:
        # A dialogue has a file per turn; a clip has one, and its copies.
        for turn, file in zip(utterance.turns or (utterance,), outcome.files, strict=False):
            processed[str(turn.audio)] = file.audio

    @cache
    def fault_of(path: str) -> tuple[str, object] | None:
        if path in processed:  # a clip that was looked at already
            return None
        if path in unfit:
            return "is a rejected clip", path
        return _fault(path, level, limits)

    kept, rejected = [], []
    for utterance, outcome in fit:
        references = _references(utterance.row or {})
        fault = next(filter(None, map(fault_of, references)), None)
        if fault is not None:
            reason, value = f"reference_audio {fault[0]}", str(fault[1])
            rejected.append(Rejected(utterance.place, utterance.id, reason, value))
            continue
        # Target and voice must come from the same processing.
        after = [processed.get(path, path) for path in references]
        if after != references:
            row = {**(utterance.row or {}), "reference_audio": after}
            row.pop("reference_codes", None)  # of the recording before processing
            utterance = replace(utterance, row=row)
        kept.append((utterance, outcome))
    return kept, rejected


def within_sides(sides: Mapping[str, Sequence[Clip]]) -> tuple[dict[str, list[Clip]], int]:
    """`sides` with the references left out that lie on another side, and how many these are.

    A voice in validation that was trained on would tell nothing of cloning.
    """
    side_of: dict[str, str] = {}
    for name, clips in sides.items():
        for clip in clips:
            side_of |= dict.fromkeys(map(str, (clip.audio, *clip.others)), name)
    num_left_out = 0
    result: dict[str, list[Clip]] = {name: [] for name in sides}
    for name, clips in sides.items():
        for clip in clips:
            # A reference that is no clip of the corpus belongs to every side.
            if any(side_of.get(path, name) != name for path in _references(clip.row)):
                row = dict(clip.row)
                for column in _COLUMNS:
                    row.pop(column, None)
                clip = replace(clip, row=row)
                num_left_out += 1
            result[name].append(clip)
    return result, num_left_out


def _fault(path: str, level: Level, limits: Limits) -> tuple[str, object] | None:
    if level == "none":
        return None
    try:
        # From the cheapest question to the dearest, as of a clip.
        if fault := check_file_size(Path(path).stat().st_size, limits):
            return fault
        info = probe(path)
        if fault := check_header(info, limits):
            return fault
        if level == "header":
            return None
        samples = load(path, sample_rate_hz=info.sample_rate_hz)
        return check_samples(samples, info.sample_rate_hz, limits)
    except AudioError as error:
        return error.reason, path
    except FileNotFoundError:
        return "not found", path


def _references(row: Mapping[str, Any]) -> list[str]:
    value = row.get("reference_audio") or []
    return [value] if isinstance(value, str) else list(value)
