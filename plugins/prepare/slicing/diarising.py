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
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from plugins.audio.tracks import Track
from plugins.audio.waveforms import AudioError
from plugins.files.disk import replace_when_done
from plugins.prepare.slicing.tape import Span, Tape
from plugins.prepare.slicing.voices import SIZE, VoiceMeter, speakers_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """Speech of one speaker."""

    start_s: float  # in the recording
    end_s: float
    speaker: str
    sureness: float  # 0 to 1


def diarised(
    recordings: Mapping[str, Path], *, number: int | None, kept_in: Callable[[str], Path]
) -> dict[str, list[Turn]]:
    """Of each recording, by its id. number: of speakers; None: as many as can be told apart.
    kept_in: the file that keeps its embeddings. A recording that cannot be read has no turns: who
    cuts it says why. Raises UserError if resemblyzer is missing."""
    meter = VoiceMeter()
    spans: list[tuple[str, Span]] = []
    voices = [np.zeros((0, SIZE), np.float32)]
    for id_, path in tqdm(recordings.items(), desc="voices", unit="recording", disable=None):
        with suppress(AudioError):
            times, embeddings = _voices_in(path, meter, kept_in(id_))
            spans += [(id_, (float(start), float(end))) for start, end in times]
            voices.append(embeddings)
    lengths_s = [end - start for _, (start, end) in spans]
    speakers = speakers_of(np.concatenate(voices), lengths_s, number)
    logger.warning(
        "%d speakers told apart; %.1f %% of the speech is expected to be under the right one",
        speakers.count,
        100 * speakers.expected_purity,
    )
    turns: dict[str, list[Turn]] = {id_: [] for id_ in recordings}
    found = zip(spans, speakers.indices, speakers.sureness, strict=True)
    for (id_, (start_s, end_s)), index, sureness in found:
        turns[id_].append(Turn(start_s, end_s, f"speaker{index + 1}", sureness))
    return turns


def turn_at(turns: Sequence[Turn], span: Span) -> Turn | None:
    """The turn that has most of `span` of the same recording."""
    best, longest_s = None, 0.0
    for turn in turns:
        overlap_s = min(turn.end_s, span[1]) - max(turn.start_s, span[0])
        if overlap_s > longest_s:
            best, longest_s = turn, overlap_s
    return best


def _voices_in(path: Path, meter: VoiceMeter, kept: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (spans, 2) in seconds, and embeddings (spans, `SIZE`)."""
    status = path.stat()
    key = np.array([status.st_size, status.st_mtime_ns])
    with suppress(OSError, ValueError, LookupError, EOFError, BadZipFile), np.load(kept) as file:
        if np.array_equal(file["key"], key):
            return file["times"], file["voices"]
    times: list[Span] = []
    voices = [np.zeros((0, SIZE), np.float32)]
    with Track(path) as track:
        tape = Tape(track)
        while (stretch := tape.next()) is not None:
            voices.append(meter.voices(stretch.heard, stretch.speech))
            for start_s, end_s in stretch.speech:
                times.append((stretch.start_s + start_s, stretch.start_s + end_s))
            tape.advance(stretch.duration_s)
    result = np.array(times).reshape(-1, 2), np.concatenate(voices)
    buffer = io.BytesIO()
    np.savez(buffer, key=key, times=result[0], voices=result[1])
    with replace_when_done(kept) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return result
