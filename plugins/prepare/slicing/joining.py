"""Pieces of a recording -> the turns of a conversation: neighbours of one speaker in one clip.

In: batches of `Piece`, in order. Out: batches of `Piece`, in order; none is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from plugins.prepare.slicing.judging import Judgement, confidence_of
from plugins.prepare.slicing.pieces import NOT_ALONE, Piece, interrupted
from plugins.prepare.slicing.settings import Slicing
from plugins.prepare.slicing.tape import Span

MAX_PAUSE_S = 2.5  # longer ones end what is said
_KEPT_PAUSE_S = 1.0  # longer ones are cut: who is trained on silence learns to fall silent

Batch = tuple[list[Piece], float]


def joined(batches: Iterable[Batch], slicing: Slicing, others: Sequence[Span]) -> Iterator[Batch]:
    """Turns of at most `max_clip_s`. others: when somebody else speaks, if the pieces do not say
    it."""
    turn: Piece | None = None
    position_s = 0.0
    for pieces, position_s in batches:
        ready = []
        for piece in pieces:
            if turn is not None and _goes_on(turn, piece, slicing, others):
                turn = _with(turn, piece)
                continue
            if turn is not None:
                ready.append(turn)
            turn = piece
        yield ready, position_s
    if turn is not None:
        yield [turn], position_s


def _goes_on(turn: Piece, piece: Piece, slicing: Slicing, others: Sequence[Span]) -> bool:
    if turn.judgement.fault or piece.judgement.fault:
        return False
    if turn.speaker is None or turn.speaker != piece.speaker or turn.language != piece.language:
        return False
    # Whose words they are may be clear of one of them.
    if any(doubt in (*turn.judgement.doubts, *piece.judgement.doubts) for doubt in NOT_ALONE):
        return False
    pause = (turn.said[1], piece.said[0])
    num_samples = sum(map(len, (turn.sound, _pause(piece), piece.sound)))
    return (
        pause[1] - pause[0] <= MAX_PAUSE_S
        and num_samples <= slicing.max_clip_s * piece.sound_hz
        and not interrupted(pause, others)
    )


def _with(turn: Piece, piece: Piece) -> Piece:
    words = [*turn.words, *piece.words]
    a, b = turn.judgement, piece.judgement
    judgement = Judgement(
        round(confidence_of([word.probability for word in words]), 4),
        min(a.snr_db, b.snr_db),
        tuple(dict.fromkeys((*a.doubts, *b.doubts))),
    )
    return replace(
        turn,
        end_s=piece.end_s,
        sound=np.concatenate([turn.sound, _pause(piece), piece.sound]),
        words=words,
        judgement=judgement,
        said=(turn.said[0], piece.said[1]),
    )


def _pause(piece: Piece) -> np.ndarray:
    """What sounds before `piece`, as it was, or its end. The padding of both clips is beside it."""
    return piece.before[max(0, len(piece.before) - round(_KEPT_PAUSE_S * piece.sound_hz)) :]
