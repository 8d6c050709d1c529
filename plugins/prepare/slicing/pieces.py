"""A recording -> its pieces, one after the other: sound, words, judgement.

In: an open `Track` and who listens. Out: `Piece` after `Piece`, fit or not; nothing of the speech
is left out. Holds one stretch at a time, writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from plugins.audio.tracks import Track
from plugins.prepare.slicing.channels import MIXED, Voice, overlap_s
from plugins.prepare.slicing.cutting import TOO_SHORT, Cut, cut, frame_levels
from plugins.prepare.slicing.diarising import Turn, turn_at
from plugins.prepare.slicing.hearing import Heard, Word
from plugins.prepare.slicing.judging import NOT_UNDERSTOOD, Judgement, judge, speech_mask
from plugins.prepare.slicing.settings import Slicing
from plugins.prepare.slicing.tape import HEARING_HZ, Span, Stretch, Tape

_SURE = 0.8  # of who speaks
_UNSURE = "speaker not told apart clearly"
_OVERLAP = "somebody else speaks at the same time"
_SHARED = "two speakers without a pause between them"
NOT_ALONE = (_UNSURE, _OVERLAP)  # doubts about whose words they are
_MOST_OVERLAP_S = 0.2  # who takes the turn hardly waits
_INTERRUPTS_S = 0.1  # of others' speech in a pause; less is the edge of a word
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
    said: Span  # from where to where it is speech, without the padding
    before: np.ndarray  # what sounds between the clip before and this one, as far as it is known


def pieces(
    track: Track,
    hear: Callable[[np.ndarray], Heard],
    slicing: Slicing,
    *,
    language: str | None,
    turns: Sequence[Turn] = (),
    voice: Voice = MIXED,
) -> Iterator[tuple[list[Piece], float]]:
    """Those of each stretch, and how far the recording has been heard, in seconds.

    hear: what is said in (N,) float32 at 16 kHz. language: what the user said is spoken; None:
    nothing. turns: who speaks when, if that is known: a clip is of one speaker. voice: whose clips
    are wanted; no clip goes on where the others have spoken in a pause."""
    tape = Tape(track, voice.channel)
    begins_torn = False
    while (stretch := tape.next()) is not None:
        heard = hear(stretch.heard)
        levels = frame_levels(stretch.heard, HEARING_HZ)
        apart = _changes(stretch, turns, voice.others)
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
        yield [_spoken(piece, turns, voice) for piece in judged], stretch.start_s + used_s
        tape.advance(used_s)


def _changes(stretch: Stretch, turns: Sequence[Turn], others: Sequence[Span]) -> list[bool]:
    """Per pause of a stretch: whether another speaker goes on behind it, or has spoken in it."""
    speakers: list[object] = []
    for start_s, end_s in stretch.speech:
        turn = turn_at(turns, (stretch.start_s + start_s, stretch.start_s + end_s))
        # What two speakers share is of neither.
        speakers.append(turn and (turn if turn.is_shared else turn.speaker))
    changes = [before != after for before, after in pairwise(speakers)]
    for i, ((_, end_s), (start_s, _)) in enumerate(pairwise(stretch.speech)):
        pause = (stretch.start_s + end_s, stretch.start_s + start_s)
        changes[i] = changes[i] or interrupted(pause, others)
    return changes


def interrupted(pause: Span, others: Sequence[Span]) -> bool:
    """Whether one of `others` speaks in that pause."""
    return overlap_s(others, pause) > _INTERRUPTS_S


def _spoken(piece: Piece, turns: Sequence[Turn], voice: Voice) -> Piece:
    if voice.channel is not None:
        piece = replace(piece, speaker=voice.speaker)
        is_alone = overlap_s(voice.others, piece.said) <= _MOST_OVERLAP_S
        return piece if is_alone else _doubted(piece, _OVERLAP)
    turn = turn_at(turns, (piece.start_s, piece.end_s))
    if turn is None:
        return piece
    piece = replace(piece, speaker=turn.speaker)
    if turn.is_shared and not piece.judgement.fault:
        return replace(piece, judgement=replace(piece.judgement, fault=_SHARED))
    return piece if turn.sureness >= _SURE else _doubted(piece, _UNSURE)


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
    end_before = 0
    for clip in cuts:
        judgement = judge(clip, levels, mask, slicing, language=heard.language, wanted=language)
        start, end = (round(t * stretch.sound_hz) for t in (clip.start_s, clip.end_s))
        start = max(0, start)
        said = (stretch.start_s + clip.speech[0][0], stretch.start_s + clip.speech[-1][1])
        judged.append(
            Piece(
                stretch.start_s + clip.start_s,
                stretch.start_s + clip.end_s,
                stretch.sound[start:end],
                stretch.sound_hz,
                clip.words,
                heard.language,
                None,
                judgement,
                said,
                stretch.sound[end_before:start],
            )
        )
        end_before = end
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
