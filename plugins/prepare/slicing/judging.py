"""A clip as it was cut -> how sure its words are and what else sounds in it.

In: `Cut`, the levels of its stretch, the language of its words. Out: `Judgement`: measures, what is
doubtful, and why it is unfit. Looks at no sample."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plugins.prepare.slicing.cutting import FRAME_S, Cut
from plugins.prepare.slicing.settings import Slicing

# Between the limit, where a clip is rejected, and this much above it, it is doubtful.
_DOUBTFUL_CONFIDENCE, _DOUBTFUL_SNR_DB = 0.15, 8.0
_AROUND_S = 1.0  # pauses before and after a clip that tell what sounds behind its speech
_MIN_PAUSE_FRAMES = 10
_CAP_DB = 60.0  # of digital silence there is no ratio
_MOST_LETTERS_PER_S = 30.0  # as `Limits.max_chars_per_s`
_FEWEST_LETTERS_PER_S = 4.0  # of speech without its pauses; slow speech has 8
_MOST_REPEATS = 4  # of three words in a row: a recogniser that has lost its way
_UNSURE = "confidence below min_confidence"
_FOREIGN = "another language than --language"
_REPEATED, _TOO_MANY = "words repeat themselves", "more words than its length can hold"
NOT_UNDERSTOOD = (_UNSURE, _FOREIGN, _REPEATED, _TOO_MANY)  # how such faults begin


@dataclass(frozen=True)
class Judgement:
    confidence: float  # mean certainty of the words, geometric
    snr_db: float  # speech to what sounds in its pauses
    doubts: tuple[str, ...] = ()
    fault: str = ""  # constant per kind, but for a detail in parentheses at its end


def judge(
    clip: Cut,
    levels: np.ndarray,
    in_speech: np.ndarray,
    slicing: Slicing,
    *,
    language: str | None,
    wanted: str | None,
) -> Judgement:
    """levels, in_speech: of the stretch, per frame. language: that of the words; wanted: what the
    user said it is. None: not known."""
    confidence = confidence_of([word.probability for word in clip.words])
    snr_db = _snr_db(clip, levels, in_speech)
    doubts, fault = [], clip.fault
    if wanted is not None and language is not None and language != wanted:
        fault = fault or f"{_FOREIGN} ({language})"
    if confidence < slicing.min_confidence:
        fault = fault or f"{_UNSURE} ({confidence:.2f})"
    elif confidence < slicing.min_confidence + _DOUBTFUL_CONFIDENCE:
        doubts.append("words not heard clearly")
    if snr_db < slicing.min_snr_db:
        fault = fault or f"SNR below min_snr_db ({snr_db:.1f} dB)"
    elif snr_db < slicing.min_snr_db + _DOUBTFUL_SNR_DB:
        doubts.append("music, noise or voices behind the speech")
    text = "".join(word.text for word in clip.words)
    speech_s = sum(end - start for start, end in clip.speech)
    letters_per_s = sum(map(str.isalnum, text)) / speech_s
    if _most_repeated(text.lower().split()) >= _MOST_REPEATS:
        fault = fault or _REPEATED
    if letters_per_s > _MOST_LETTERS_PER_S:
        fault = fault or _TOO_MANY
    if letters_per_s < _FEWEST_LETTERS_PER_S:
        doubts.append("few words for its length")
    return Judgement(round(confidence, 4), round(snr_db, 1), tuple(doubts), fault)


def confidence_of(probabilities: Sequence[float]) -> float:
    """Their geometric mean: one word that was guessed counts more than several that were sure."""
    if not probabilities:
        return 0.0
    return math.exp(sum(math.log(max(p, 1e-6)) for p in probabilities) / len(probabilities))


def speech_mask(cuts: Sequence[Cut], num_frames: int) -> np.ndarray:
    """Which frames of a stretch are speech, (num_frames,) bool."""
    mask = np.zeros(num_frames, bool)
    for clip in cuts:
        for start_s, end_s in clip.speech:
            mask[math.floor(start_s / FRAME_S) : math.ceil(end_s / FRAME_S)] = True
    return mask


def _snr_db(clip: Cut, levels: np.ndarray, in_speech: np.ndarray) -> float:
    start = max(0, round((clip.start_s - _AROUND_S) / FRAME_S))
    end = round((clip.end_s + _AROUND_S) / FRAME_S)
    power, speaks = 10 ** (levels[start:end] / 10), in_speech[start:end]
    if not speaks.any():
        return 0.0
    pauses = power[~speaks]
    if len(pauses) < _MIN_PAUSE_FRAMES:
        # Speech without pauses: its quietest frames.
        pauses = np.sort(power)[: max(1, len(power) // 20)]
    # The middle one: a breath, or the end of a neighbour's word, is not the background.
    noise = max(float(np.median(pauses)), 1e-10)
    speech = float(power[speaks].mean()) - noise
    return min(_CAP_DB, 10 * math.log10(max(speech, 1e-10) / noise))


def _most_repeated(words: Sequence[str]) -> int:
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    return max(triples.values(), default=0)
