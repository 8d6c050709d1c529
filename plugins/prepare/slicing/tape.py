"""The sound of a recording in a stream -> stretches of it that a recogniser hears at once.

In: a `Track` of any length. Out: `Stretch` after `Stretch`, each from pause to pause, with the
speech in it. Holds a minute of sound, not the recording. silero-vad finds the speech, by the copy
that faster-whisper brings along, fed with its own state from piece to piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins.audio.tracks import Resampler, Track
from plugins.audio.waveforms import SAMPLE_RATE_HZ
from plugins.hearing.recogniser import RATE_HZ as HEARING_HZ  # silero-vad's too
from plugins.prepare.slicing.crosstalk import Channel, Crosstalk

MAX_STRETCH_S = 29.0  # Whisper hears 30 s at once
_LONG_PAUSE_S = 2.5  # always ends a stretch: in long silence Whisper invents words
_LEAD_S = 0.4  # of the pause around a stretch that belongs to it
_WINDOW = 512  # samples of silero-vad at 16 kHz
_CONTEXT = 64  # that it sees of the window before
_BATCH = 256  # windows at once: 8 s
_SPEECH, _SILENCE = 0.5, 0.35  # its own thresholds: speech begins above, and ends below
# After a long silence it is surer only by and by: what it took for possible was speech.
_POSSIBLE, _COLD_S = 0.1, 1.0
_MIN_PAUSE_S = 0.2  # shorter ones are stops within words
_MIN_SPEECH_S = 0.1  # shorter ones are clicks

Span = tuple[float, float]  # seconds


@dataclass(frozen=True, eq=False)
class Stretch:
    """A piece of a recording, beginning and ending in pauses. Times count from its beginning."""

    start_s: float  # in the recording
    heard: np.ndarray  # (N,) float32 at `HEARING_HZ`
    sound: np.ndarray  # (M,) float32 at `sound_hz`, the same seconds
    sound_hz: int
    speech: list[Span]
    torn: bool  # it ends in speech, which never paused
    last: bool  # nothing but silence follows

    @property
    def duration_s(self) -> float:
        return len(self.heard) / HEARING_HZ


class SpeechDetector:
    """Pieces of sound at 16 kHz -> how surely each window of 32 ms is speech, (windows,)."""

    def __init__(self) -> None:
        # onnxruntime would write telemetry files at its import.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        from faster_whisper.vad import get_vad_model

        self._session: Any = get_vad_model().session
        self._state = [np.zeros((1, 1, 128), np.float32) for _ in range(2)]
        self._context = np.zeros(_CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        samples = np.concatenate([self._rest, samples])
        num_windows = len(samples) // _WINDOW
        whole, self._rest = np.split(samples, [num_windows * _WINDOW])
        probabilities = [np.zeros(0, np.float32)]
        for start in range(0, num_windows, _BATCH):
            windows = whole.reshape(-1, _WINDOW)[start : start + _BATCH]
            tails = np.vstack([self._context[None], windows[:, -_CONTEXT:]])
            self._context = tails[-1]
            inputs = np.concatenate([tails[:-1], windows], axis=1)
            h, c = self._state
            output, *self._state = self._session.run(None, {"input": inputs, "h": h, "c": c})
            probabilities.append(output.reshape(-1))
        return np.concatenate(probabilities)


class Tape:
    """The stretches of a `Track`, one after the other.

    channel: only of that one, heard without the voice in the other."""

    def __init__(self, track: Track, channel: Channel | None = None) -> None:
        # A rate below that of the codec stays: it tells what the recording is worth.
        self.sound_hz = min(track.sample_rate_hz, SAMPLE_RATE_HZ)
        self._blocks = self._read(track, channel)
        self._detect = SpeechDetector()
        self._start = 0  # of the buffers below, in windows from the beginning
        self._heard = np.zeros(0, np.float32)
        self._sound = np.zeros(0, np.float32)
        self._probabilities = np.zeros(0, np.float32)
        self._is_whole = False  # nothing more comes

    @property
    def position_s(self) -> float:
        """How far the recording has been given out."""
        return self._start * _WINDOW / HEARING_HZ

    def next(self) -> Stretch | None:
        """The next stretch; None at the end of the recording."""
        while True:
            self._fill(MAX_STRETCH_S + _LONG_PAUSE_S)
            speech = spans(self._probabilities)
            if speech:
                break
            if self._is_whole:
                return None
            # Nothing but silence: what is left may begin a word.
            self._drop(len(self._probabilities) - round(_LEAD_S * HEARING_HZ / _WINDOW))
        self._drop(int((speech[0][0] - _LEAD_S) * HEARING_HZ / _WINDOW))
        self._fill(MAX_STRETCH_S + _LONG_PAUSE_S)
        speech = spans(self._probabilities)
        end_s, torn = self._end_of(speech)
        heard = self._heard[: round(end_s * HEARING_HZ)]
        sound = self._sound[: round(end_s * self.sound_hz)]
        inside = [(start, min(end, end_s)) for start, end in speech if start < end_s]
        last = self._is_whole and len(inside) == len(speech) and not torn
        start_s = self.position_s
        return Stretch(start_s, heard, sound, self.sound_hz, inside, torn, last)

    def advance(self, seconds: float) -> None:
        """Go on `seconds` after the beginning of the last stretch: what was not used of it is heard
        again, with what follows."""
        self._drop(max(1, int(seconds * HEARING_HZ / _WINDOW)))

    def _end_of(self, speech: list[Span]) -> tuple[float, bool]:
        """Where the stretch that begins the buffer ends, and whether that is no pause."""
        length_s = len(self._heard) / HEARING_HZ
        best, best_score = None, -1.0
        for (_, end), (start, _) in zip(speech, [*speech[1:], (length_s + 9, 0.0)], strict=True):
            pause = start - end
            if end + min(pause / 2, _LEAD_S) > MAX_STRETCH_S:
                break
            # The last pause of a file that goes on may be the beginning of a longer one.
            cut_s = min(end + min(pause / 2, _LEAD_S), length_s)
            if pause > _LONG_PAUSE_S:
                return cut_s, False
            # Long pauses are safe, and full stretches cost the least.
            score = min(pause, 1.0) + end / MAX_STRETCH_S
            if score >= best_score:
                best, best_score = cut_s, score
        if best is not None:
            return best, False
        # Not one pause: its quietest moment in the second half. Who cuts knows that it is torn.
        frame = HEARING_HZ // 50
        levels = np.abs(self._heard[: int(MAX_STRETCH_S * HEARING_HZ)])
        levels = levels[: len(levels) // frame * frame].reshape(-1, frame).mean(axis=1)
        half = len(levels) // 2
        return (half + int(np.argmin(levels[half:])) + 0.5) * frame / HEARING_HZ, True

    def _fill(self, seconds: float) -> None:
        heard, sound = [self._heard], [self._sound]
        missing = seconds * HEARING_HZ + _WINDOW - len(self._heard)
        while not self._is_whole and missing > 0:
            pieces = next(self._blocks, None)
            if pieces is None:
                # Silence fills the last window.
                pieces = np.zeros(_WINDOW, np.float32), np.zeros(0, np.float32)
                self._is_whole = True
            heard.append(pieces[0])
            sound.append(pieces[1])
            missing -= len(pieces[0])
        # At once: the frames of films are short, and what is held is half a minute.
        if len(heard) > 1:
            found = self._detect(np.concatenate(heard[1:]))
            self._probabilities = np.concatenate([self._probabilities, found])
            self._heard, self._sound = np.concatenate(heard), np.concatenate(sound)

    def _drop(self, num_windows: int) -> None:
        """The first windows, of both rates: their starts stay together to the sample."""
        if num_windows <= 0:
            return
        num_windows = min(num_windows, len(self._probabilities))
        before = self._start * _WINDOW * self.sound_hz // HEARING_HZ
        self._start += num_windows
        after = self._start * _WINDOW * self.sound_hz // HEARING_HZ
        self._probabilities = self._probabilities[num_windows:]
        self._heard = self._heard[num_windows * _WINDOW :].copy()
        self._sound = self._sound[after - before :].copy()

    def _read(
        self, track: Track, channel: Channel | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same sound at both rates, in pieces that need not end at the same time."""
        to_heard = Resampler(self.sound_hz, HEARING_HZ)
        read = self._mixed(track) if channel is None else self._apart(track, channel)
        for own, sound in read:
            yield to_heard(own), sound
        nothing = np.zeros(0, np.float32)
        yield to_heard(nothing, last=True), nothing

    def _mixed(self, track: Track) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        to_sound = Resampler(track.sample_rate_hz, self.sound_hz)
        for block in track.blocks():
            sound = to_sound(block)
            yield sound, sound
        sound = to_sound(np.zeros(0, np.float32), last=True)
        yield sound, sound

    def _apart(self, track: Track, channel: Channel) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A channel without the other one's voice, and as it is."""
        to_sound = Resampler(track.sample_rate_hz, self.sound_hz, num_channels=2)
        without_crosstalk = Crosstalk(channel, self.sound_hz)
        for block in track.channels():
            both = to_sound(block)
            yield without_crosstalk(both), both[:, channel.index]
        both = to_sound(np.zeros((0, 2), np.float32), last=True)
        yield without_crosstalk(both, last=True), both[:, channel.index]


def spans(probabilities: np.ndarray) -> list[Span]:
    """Seconds of speech, by the certainty of each window."""
    found: list[list[int]] = []
    speaking = False
    for i, probability in enumerate(probabilities):
        threshold = _SILENCE if speaking else _SPEECH
        speaking = bool(probability >= threshold)
        if not speaking:
            continue
        if found and (i - found[-1][1]) * _WINDOW < _MIN_PAUSE_S * HEARING_HZ:
            found[-1][1] = i + 1
        else:
            found.append([i, i + 1])
    window_s = _WINDOW / HEARING_HZ
    seconds: list[Span] = []
    end_before = 0
    for start, end in found:
        if (end - start) * window_s < _MIN_SPEECH_S:
            continue
        if not seconds or (start - end_before) * window_s > _COLD_S:
            start = _possible_from(probabilities, start, end_before)
        seconds.append((start * window_s, end * window_s))
        end_before = end
    return seconds


def _possible_from(probabilities: np.ndarray, start: int, end_before: int) -> int:
    """The window since when speech that is sure from `start` on was possible."""
    earliest = max(end_before, start - round(_COLD_S * HEARING_HZ / _WINDOW))
    while start > earliest and probabilities[start - 1] > _POSSIBLE:
        start -= 1
    return start
