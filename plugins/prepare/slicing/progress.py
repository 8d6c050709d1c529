"""How far a pass through recordings is, for people: a bar in seconds of sound.

In: the recordings, and how far each has been heard. Out: a line of the terminal, none in a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from plugins.audio.tracks import Track
from plugins.audio.waveforms import AudioError

_FORMAT = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of sound [{elapsed}<{remaining}]"


class Progress:
    """Through `recordings`, one after the other. What an earlier run has done tells nothing of the
    time that is left."""

    def __init__(self, title: str, recordings: Iterable[Path]) -> None:
        self._durations_s = list(map(_duration_s, recordings))
        self._begin_s = 0.0  # of the present recording
        # Stretches differ: the mean of all tells more of those to come than the last ones do.
        self._bar = tqdm(
            total=sum(self._durations_s),
            desc=title,
            bar_format=_FORMAT,
            smoothing=0,
            disable=None,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def at(self, position_s: float, *, lap: int = 0, laps: int = 1) -> None:
        """The present recording has been heard up to there, in one of several passes."""
        # Beyond what the headers say, tqdm would forget the total that the line shows.
        position_s = min(position_s, self._durations_s[0])
        position_s = (lap * self._durations_s[0] + position_s) / laps
        self._bar.update(self._begin_s + position_s - self._bar.n)

    def next(self, *, kept: bool = False) -> None:
        """The present recording is done. kept: by an earlier run."""
        duration_s = self._durations_s[0]
        if kept and not self._bar.disable:
            self._bar.initial += duration_s
        self.at(duration_s)
        self._begin_s += self._durations_s.pop(0)


def _duration_s(recording: Path) -> float:
    """As its header says; 0 for what cannot be read, which is told when it is its turn."""
    try:
        with Track(recording) as track:
            return track.duration_s or 0.0
    except AudioError:
        return 0.0
