"""A recording -> its pieces, one after the other: sound, words, judgement.

In: an open `Track` and who listens. Out: `Piece` after `Piece`, fit or not; nothing of the speech
is left out. Holds one stretch at a time, writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from plugins.audio.tracks import Track
from plugins.prepare.slicing.cutting import TOO_SHORT, Cut, cut, frame_levels
from plugins.prepare.slicing.diarising import Turn, turn_at
from plugins.prepare.slicing.hearing import Heard, Word
from plugins.prepare.slicing.judging import NOT_UNDERSTOOD, Judgement, judge, speech_mask
from plugins.prepare.slicing.settings import Slicing
from plugins.prepare.slicing.tape import HEARING_HZ, Stretch, Tape

_SURE = 0.8  # of who speaks
_EDGE_S = 0.05  # of a recording: who presses the button while somebody speaks


@dataclass(frozen=True, eq=False)
class Piece:
    """A clip of a recording. Times count from the recording's beginning."""

    start_s: float
    end_s: float
    sound: np.ndarray  # (N,) float32 at `sound_hz`
    sound_hz: int
    words: list[Word]  # their times count from the stretch's beginning: only their texts matter
    language: str | None
    speaker: str | None
    judgement: Judgement


def pieces(
    track: Track,
    hear: Callable[[np.ndarray], Heard],
    slicing: Slicing,
    *,
    language: str | None,
    turns: Sequence[Turn] = (),
) -> Iterator[tuple[list[Piece], float]]:
    """Those of each stretch, and how far the recording has been heard, in seconds.

    hear: what is said in (N,) float32 at 16 kHz. language: what the user said is spoken; None:
    nothing. turns: who speaks when, if that is known: a clip is of one speaker."""
    tape = Tape(track)
    begins_torn = False
    while (stretch := tape.next()) is not None:
        heard = hear(stretch.heard)
        levels = frame_levels(stretch.heard, HEARING_HZ)
        apart = _changes(stretch, turns)
        cuts = cut(stretch.speech, heard.words, levels, slicing, apart=apart)
        used_s = stretch.duration_s
        # A short rest may be the beginning of a longer clip; it is heard again with what follows.
        is_rest = cuts[-1].fault == TOO_SHORT or stretch.torn
        if len(cuts) > 1 and is_rest and not stretch.last:
            used_s = cuts.pop().start_s
        elif stretch.torn:
            cuts[-1] = _torn(cuts[-1])
        if begins_torn:
            cuts[0] = _torn(cuts[0])
        begins_torn = stretch.torn and used_s == stretch.duration_s
        judged = _judged(stretch, heard, cuts, levels, slicing, language)
        yield [_spoken(piece, turns) for piece in judged], stretch.start_s + used_s
        tape.advance(used_s)


def _changes(stretch: Stretch, turns: Sequence[Turn]) -> list[bool]:
    """Per pause of a stretch: whether another speaker goes on behind it."""
    speakers = []
    for start_s, end_s in stretch.speech:
        turn = turn_at(turns, (stretch.start_s + start_s, stretch.start_s + end_s))
        speakers.append(turn and turn.speaker)
    return [before != after for before, after in pairwise(speakers)]


def _spoken(piece: Piece, turns: Sequence[Turn]) -> Piece:
    turn = turn_at(turns, (piece.start_s, piece.end_s))
    if turn is None:
        return piece
    piece = replace(piece, speaker=turn.speaker)
    return piece if turn.sureness >= _SURE else _doubted(piece, "speaker not told apart clearly")


def _torn(clip: Cut) -> Cut:
    return replace(clip, fault="speech without a pause above max_clip_s")


def _judged(
    stretch: Stretch,
    heard: Heard,
    cuts: list[Cut],
    levels: np.ndarray,
    slicing: Slicing,
    language: str | None,
) -> list[Piece]:
    mask = speech_mask(cuts, len(levels))
    judged = []
    for clip in cuts:
        judgement = judge(clip, levels, mask, slicing, language=heard.language, wanted=language)
        start, end = (round(t * stretch.sound_hz) for t in (clip.start_s, clip.end_s))
        judged.append(
            Piece(
                stretch.start_s + clip.start_s,
                stretch.start_s + clip.end_s,
                stretch.sound[max(0, start) : end],
                stretch.sound_hz,
                clip.words,
                heard.language,
                None,
                judgement,
            )
        )
    if judged and stretch.start_s + cuts[0].speech[0][0] < _EDGE_S:
        judged[0] = _doubted(judged[0], "begins with the recording, perhaps in a word")
    if stretch.last and stretch.duration_s - cuts[-1].speech[-1][1] < _EDGE_S:
        judged[-1] = _doubted(judged[-1], "ends with the recording, perhaps in a word")
    # Who does not understand one sentence may have invented the next one.
    if any(piece.judgement.fault.startswith(NOT_UNDERSTOOD) for piece in judged):
        judged = [_doubted(piece, "beside speech that was not understood") for piece in judged]
    return judged


def _doubted(piece: Piece, doubt: str) -> Piece:
    if piece.judgement.fault:
        return piece
    doubts = (*piece.judgement.doubts, doubt)
    return replace(piece, judgement=replace(piece.judgement, doubts=doubts))
