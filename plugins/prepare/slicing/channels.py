"""A recording with a channel for each of two speakers -> who speaks when, by channel.

In: the path of a recording. Out: a `Voice` per channel. Streams it three times, and keeps no
sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plugins.audio.tracks import Track
from plugins.audio.waveforms import AudioError
from plugins.prepare.slicing.crosstalk import Channel, frame_powers, frame_size
from plugins.prepare.slicing.progress import Progress
from plugins.prepare.slicing.tape import Span, Tape

SIDES = ("left", "right")
# Of two microphones it is below 0.3, with loud crosstalk too; of speakers that were mixed into the
# middle, and panned a little, above 0.8.
_ALIKE = 0.7
_LOUD_PERCENT = 99.5  # of frames: who hardly speaks has loud ones too
_REMEDY = "--diarize tells the speakers of a mixed track apart"


@dataclass(frozen=True)
class Voice:
    """Whose clips are cut out of a recording, in one pass through it.

    channel: that speaks; None: all of them, mixed. name: what its clips are called by. speaker:
    None: not told by the channel. others: when the other channel speaks."""

    channel: Channel | None = None
    name: str = ""
    speaker: str | None = None
    others: Sequence[Span] = ()


MIXED = Voice()


def voices_of(path: Path, id_: str, progress: Progress) -> list[Voice]:
    """Those of the recording with that id. This is the first half of all passes through it.

    Raises `AudioError` if it has no two channels, or both hold the same."""
    loudness = _loudness(path)
    channels = [Channel(index, loudness) for index in range(2)]
    speech = [_speech(path, channel, progress) for channel in channels]
    voices = []
    for channel, side in zip(channels, SIDES, strict=True):
        others = speech[1 - channel.index]
        voices.append(Voice(channel, f"{side}-", f"{id_}:{side}", others))
    return voices


def overlap_s(spans: Sequence[Span], span: Span) -> float:
    """How much of `span` lies in `spans`, which do not overlap."""
    return sum(max(0.0, min(end, span[1]) - max(start, span[0])) for start, end in spans)


def _loudness(path: Path) -> tuple[float, float]:
    with Track(path) as track:
        if track.num_channels != 2:
            found = f"but {track.num_channels}; {_REMEDY}"
            reason = f"has no channel for each of two speakers ({found})"
            raise AudioError(path, reason, _REMEDY)
        size = frame_size(track.sample_rate_hz)
        products = np.zeros((2, 2))
        powers = [np.zeros((0, 2))]
        for block in track.channels():
            products += block.T.astype(np.float64) @ block
            powers.append(frame_powers(block, size))
    scale = np.sqrt(products[0, 0] * products[1, 1])
    if scale and abs(products[0, 1]) / scale >= _ALIKE:
        reason = f"has the same sound in both channels, no conversation ({_REMEDY})"
        raise AudioError(path, reason, _REMEDY)
    left, right = np.percentile(np.concatenate([*powers, np.zeros((1, 2))]), _LOUD_PERCENT, axis=0)
    return float(left), float(right)


def _speech(path: Path, channel: Channel, progress: Progress) -> list[Span]:
    """When somebody speaks in that channel, in seconds of the recording."""
    spans: list[Span] = []
    with Track(path) as track:
        tape = Tape(track, channel)
        while (stretch := tape.next()) is not None:
            for start_s, end_s in stretch.speech:
                spans.append((stretch.start_s + start_s, stretch.start_s + end_s))
            tape.advance(stretch.duration_s)
            progress.at(tape.position_s, lap=channel.index, laps=2 * len(SIDES))
    return spans
