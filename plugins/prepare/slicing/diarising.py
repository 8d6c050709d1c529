"""Recordings -> who speaks when in each of them, before they are cut.

In: recordings. Out: `Turn` per span of speech, under speakers that are the same in all recordings.
The embeddings of a finished recording are kept beside its clips: they are not made again."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from plugins.audio.tracks import Track
from plugins.audio.waveforms import AudioError
from plugins.files.disk import replace_when_done
from plugins.prepare.slicing.progress import Progress
from plugins.prepare.slicing.tape import Span, Tape
from plugins.prepare.slicing.voices import SIZE, VoiceMeter, speakers_of

logger = logging.getLogger(__name__)
_KEPT = 2  # raised when something else is kept


@dataclass(frozen=True)
class Turn:
    """Speech of one speaker."""

    start_s: float  # in the recording
    end_s: float
    speaker: str
    sureness: float  # 0 to 1
    is_shared: bool = False  # it begins with one speaker and ends with another


class _Voices(NamedTuple):
    """Of the speech of a recording."""

    times: np.ndarray  # (spans, 2), seconds
    embeddings: np.ndarray  # (spans, 3, `SIZE`)


def diarised(
    recordings: Mapping[str, Path], *, number: int | None, kept_in: Callable[[str], Path]
) -> dict[str, list[Turn]]:
    """Of each recording, by its id. number: of speakers; None: as many as can be told apart.
    kept_in: the file that keeps its embeddings. A recording that cannot be read has no turns: who
    cuts it says why. Raises UserError if resemblyzer is missing."""
    meter = VoiceMeter()
    spans: list[tuple[str, Span]] = []
    voices = [np.zeros((0, 3, SIZE), np.float32)]
    with Progress("voices", recordings.values()) as progress:
        for id_, path in recordings.items():
            recording = _kept(kept_in(id_), path)
            is_kept = recording is not None
            if recording is None:
                with suppress(AudioError):
                    recording = _voices_in(path, meter, progress)
                    _keep(kept_in(id_), path, recording)
            progress.next(kept=is_kept)
            if recording is not None:
                spans += [(id_, (float(start), float(end))) for start, end in recording.times]
                voices.append(recording.embeddings)
    lengths_s = [end - start for _, (start, end) in spans]
    speakers = speakers_of(np.concatenate(voices), lengths_s, number)
    logger.warning(
        "%d speakers told apart; %.1f %% of the speech is expected to be under the right one",
        speakers.count,
        100 * speakers.expected_purity,
    )
    turns: dict[str, list[Turn]] = {id_: [] for id_ in recordings}
    told_apart = zip(spans, speakers.indices, speakers.sureness, speakers.shared, strict=True)
    for (id_, (start_s, end_s)), index, sureness, is_shared in told_apart:
        turns[id_].append(Turn(start_s, end_s, f"speaker{index + 1}", sureness, is_shared))
    return turns


def turn_at(turns: Sequence[Turn], span: Span) -> Turn | None:
    """The turn that has most of `span` of the same recording."""
    best, longest_s = None, 0.0
    for turn in turns:
        overlap_s = min(turn.end_s, span[1]) - max(turn.start_s, span[0])
        if overlap_s > longest_s:
            best, longest_s = turn, overlap_s
    return best


def _voices_in(path: Path, meter: VoiceMeter, progress: Progress) -> _Voices:
    times: list[Span] = []
    voices = [np.zeros((0, 3, SIZE), np.float32)]
    with Track(path) as track:
        tape = Tape(track)
        while (stretch := tape.next()) is not None:
            voices.append(meter.voices(stretch.heard, stretch.speech))
            for start_s, end_s in stretch.speech:
                times.append((stretch.start_s + start_s, stretch.start_s + end_s))
            tape.advance(stretch.duration_s)
            progress.at(tape.position_s)
    return _Voices(np.array(times).reshape(-1, 2), np.concatenate(voices))


def _kept(file: Path, recording: Path) -> _Voices | None:
    """What `file` keeps, if it is of `recording` as that is now."""
    with suppress(OSError, ValueError, LookupError, EOFError, BadZipFile), np.load(file) as kept:
        if np.array_equal(kept["key"], _key(recording)):
            return _Voices(kept["times"], kept["voices"])
    return None


def _keep(file: Path, recording: Path, voices: _Voices) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, key=_key(recording), times=voices.times, voices=voices.embeddings)
    with replace_when_done(file) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _key(recording: Path) -> np.ndarray:
    status = recording.stat()
    return np.array([status.st_size, status.st_mtime_ns, _KEPT])
