"""Speech and words of a stretch -> where clips begin and end, and which words are theirs.

Pure arithmetic: times in seconds from the beginning of the stretch, levels in dB per frame of
`FRAME_S`. Clips begin and end in pauses only: where a recogniser says that a word ends is off by
0.1 s and more, so its times say which pause lies between which words, and never where to cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plugins.prepare.slicing.hearing import Word
from plugins.prepare.slicing.settings import Slicing
from plugins.prepare.slicing.tape import Span

FRAME_S = 0.01
_SOFT_S = 0.25  # the most that silero-vad leaves out of a soft beginning or end
_ABOVE_NOISE_DB, _BELOW_LOUDEST_DB = 6.0, 40.0  # what is sound: above the one, within the other
_MIN_CUT_S = 0.12  # of silence; the closure of a "t" is shorter
_NEAR_S = 0.15  # how far a pause may lie from where the recogniser ends a word
TOO_SHORT = "speech between long pauses below min_clip_s"
_BEST_CLIP_S, _SPREAD_S = 8.0, 4.0
_SENTENCE_ENDS = tuple(".!?…。！？")


@dataclass(frozen=True)
class Cut:
    """A clip of a stretch."""

    start_s: float  # with its padding
    end_s: float
    speech: list[Span]
    words: list[Word]
    fault: str = ""  # why it cannot be a clip

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def frame_levels(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """dBFS of each frame of `FRAME_S` of samples (N,), their mean removed."""
    size = round(FRAME_S * sample_rate_hz)
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    power = np.maximum(np.square(frames - samples.mean(dtype=np.float64)).mean(axis=1), 1e-10)
    return np.asarray(10 * np.log10(power))


def cut(
    speech: Sequence[Span],
    words: Sequence[Word],
    levels: np.ndarray,
    slicing: Slicing,
    *,
    apart: Sequence[bool] = (),
) -> list[Cut]:
    """The clips of a stretch, in order; together they have all of its words.

    apart: per pause between two of `speech`, whether another voice speaks behind it."""
    floor_db = silence_db(levels)
    widened = _widened(speech, levels, floor_db)
    owners = assigned(words, widened)
    pieces: list[tuple[Span, list[Word]]] = []
    borders: list[bool] = []  # per piece: no clip goes on from it to the next one
    for i, span in enumerate(widened):
        mine = [word for word, owner in zip(words, owners, strict=True) if owner == i]
        split = _split(span, mine, levels, floor_db, slicing.max_clip_s)
        pieces += split
        borders += [False] * (len(split) - 1) + [bool(apart) and i < len(apart) and apart[i]]
    end_s = len(levels) * FRAME_S
    groups = _grouped(pieces, borders, slicing)
    return [_cut_of(pieces, group, end_s, slicing) for group in groups]


def silence_db(levels: np.ndarray) -> float:
    """Below it a frame is a pause."""
    noise_db = float(np.percentile(levels, 10))
    return max(min(noise_db + _ABOVE_NOISE_DB, levels.max() - 10), levels.max() - _BELOW_LOUDEST_DB)


def assigned(words: Sequence[Word], speech: Sequence[Span]) -> list[int]:
    """Per word the index of the speech in which it was said, never going back.

    A recogniser stretches words over the pauses beside them, so that not their borders count but
    how much of them is heard where."""
    num_spans = len(speech)
    best = np.zeros(num_spans)
    choices = []
    for word in words:
        gain = np.array([_heard_in(word, span) for span in speech])
        reached = np.maximum.accumulate(best)
        # Of equal ways the one that stays as long as it can.
        last = np.zeros(num_spans, np.int64)
        for i in range(1, num_spans):
            last[i] = i if best[i] > reached[i - 1] else last[i - 1]
        choices.append(last)
        best = reached + gain
    owners = []
    position = int(np.argmax(best)) if num_spans else 0
    for last in reversed(choices):
        owners.append(position)
        position = int(last[position])
    return owners[::-1]


def _heard_in(word: Word, span: Span) -> float:
    overlap = min(word.end_s, span[1]) - max(word.start_s, span[0])
    length = max(word.end_s - word.start_s, 0.02)
    # Outside of all speech the nearest counts.
    return overlap / length if overlap > 0 else 0.01 * max(overlap, -10.0)


def _widened(speech: Sequence[Span], levels: np.ndarray, floor_db: float) -> list[Span]:
    """`speech` with the soft beginnings and ends that are left out of it."""
    reach = round(_SOFT_S / FRAME_S)
    edges = [0, *(round(t / FRAME_S) for span in speech for t in span), len(levels)]
    widened = []
    for i, (start_s, end_s) in enumerate(speech):
        start, end = edges[2 * i + 1], min(edges[2 * i + 2], len(levels))
        # Not beyond the middle of a pause: its other half is the neighbour's.
        low = max(start - reach, (edges[2 * i] + start) // 2 if i else 0)
        high = min(end + reach, len(levels))
        if i + 1 < len(speech):
            high = min(high, (end + edges[2 * i + 3]) // 2)
        before = _loud_run(levels[low:start][::-1], floor_db)
        after = _loud_run(levels[end:high], floor_db)
        widened.append((start_s - before * FRAME_S, end_s + after * FRAME_S))
    return widened


def _loud_run(levels: np.ndarray, floor_db: float) -> int:
    """How far sound goes on from the beginning of `levels`, over dips of up to 40 ms."""
    loud = np.flatnonzero(levels > floor_db)
    length = 0
    for frame in loud:
        if frame - length > 4:
            break
        length = int(frame) + 1
    return length


def _split(
    span: Span, words: list[Word], levels: np.ndarray, floor_db: float, longest_s: float
) -> list[tuple[Span, list[Word]]]:
    """`span` at short pauses between its words, while it is too long for a clip."""
    if span[1] - span[0] <= longest_s or len(words) < 2:
        return [(span, words)]
    best, at = 0.0, None
    for i in range(1, len(words)):
        low = max(words[i - 1].end_s - _NEAR_S, span[0] + 1.0)
        high = min(words[i].start_s + _NEAR_S, span[1] - 1.0)
        quiet = _quiet_run(levels, floor_db, low, high)
        if quiet is None:
            continue
        length = quiet[1] - quiet[0]
        # Long pauses, and those that leave two halves.
        middle = 1 - abs(sum(quiet) - sum(span)) / (span[1] - span[0])
        if length >= _MIN_CUT_S and length * (0.3 + middle) > best:
            best, at = length * (0.3 + middle), (i, quiet)
    if at is None:
        return [(span, words)]
    i, (start_s, end_s) = at
    left = _split((span[0], start_s), words[:i], levels, floor_db, longest_s)
    return left + _split((end_s, span[1]), words[i:], levels, floor_db, longest_s)


def _quiet_run(levels: np.ndarray, floor_db: float, low_s: float, high_s: float) -> Span | None:
    """The longest silence that begins or ends between two times."""
    low, high = math.ceil(low_s / FRAME_S), math.floor(high_s / FRAME_S)
    quiet = levels[low : max(low, high)] <= floor_db
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return None
    start, end = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    return (low + int(start)) * FRAME_S, (low + int(end)) * FRAME_S


def _grouped(
    pieces: Sequence[tuple[Span, list[Word]]], borders: Sequence[bool], slicing: Slicing
) -> list[tuple[int, int]]:
    """Pieces from, up to: of all ways to put neighbours together the cheapest."""
    cheapest: list[tuple[float, int]] = [(0.0, 0)]  # up to each piece: its cost, where it begins
    for end in range(1, len(pieces) + 1):
        best = (math.inf, end - 1)
        for start in range(end - 1, -1, -1):
            if start < end - 1 and (
                borders[start] or _length_s(pieces, start, end) > slicing.max_clip_s
            ):
                break
            cost = cheapest[start][0] + _cost(pieces, start, end, slicing)
            if cost < best[0]:
                best = (cost, start)
        cheapest.append(best)
    groups = []
    end = len(pieces)
    while end:
        groups.append((cheapest[end][1], end))
        end = cheapest[end][1]
    return groups[::-1]


def _length_s(pieces: Sequence[tuple[Span, list[Word]]], start: int, end: int) -> float:
    return pieces[end - 1][0][1] - pieces[start][0][0]


def _cost(
    pieces: Sequence[tuple[Span, list[Word]]], start: int, end: int, slicing: Slicing
) -> float:
    length_s = _length_s(pieces, start, end)
    cost = 0.3 * ((length_s - _BEST_CLIP_S) / _SPREAD_S) ** 2
    if length_s < slicing.min_clip_s:
        cost += 8.0
    for i in range(start, end - 1):
        # A voice that is trained on long silences learns to fall silent.
        cost += 2.0 * max(0.0, pieces[i + 1][0][0] - pieces[i][0][1] - 0.6)
    if end < len(pieces):
        pause_s = pieces[end][0][0] - pieces[end - 1][0][1]
        cost += 5.0 * max(0.0, 0.4 - pause_s)
        words = pieces[end - 1][1]
        if words and not words[-1].text.endswith(_SENTENCE_ENDS):
            cost += 0.6
    return cost


def _cut_of(
    pieces: Sequence[tuple[Span, list[Word]]],
    group: tuple[int, int],
    stretch_end_s: float,
    slicing: Slicing,
) -> Cut:
    first, end = group
    speech = [span for span, _ in pieces[first:end]]
    words = [word for _, mine in pieces[first:end] for word in mine]
    before_s = speech[0][0]
    if first:
        before_s = (speech[0][0] - pieces[first - 1][0][1]) / 2
    after_s = stretch_end_s - speech[-1][1]
    if end < len(pieces):
        after_s = (pieces[end][0][0] - speech[-1][1]) / 2
    start_s = speech[0][0] - min(before_s, slicing.clip_padding_s)
    end_s = speech[-1][1] + min(after_s, slicing.clip_padding_s)
    fault = ""
    if not words:
        fault = "no words heard"
    elif end_s - start_s < slicing.min_clip_s:
        fault = TOO_SHORT
    elif end_s - start_s > slicing.max_clip_s + 2 * slicing.clip_padding_s:
        fault = "speech without a pause above max_clip_s"
    return Cut(start_s, end_s, speech, words, fault)
