"""Several takes of one text -> what is heard in each, and which is the best. Needs no torch.

In: waveforms (N,) and the text, which is known here and not by the scorers. Out: a `Take` each,
and their order. Who spoke them, nobody here knows.

The order is by one thing after the other: a take that was said, one that stopped by itself, the
fewest wrong words, a length like that of the others, the voice that is most like the reference.
Words come before the voice, for the differences of takes lie there; lengths tell what no recogniser
hears, a pause or babble behind the last word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
import soxr

from plugins.audio import waveforms
from plugins.errors import problem
from plugins.hearing.scorers import RATE_HZ, Missing, Scorer, cosine, load_scorers
from plugins.hearing.text import whisper_style, word_errors, words_to_say

_ODD = 1.5  # times the median length, or that part of it
_FEW = 3  # takes whose median says something


@dataclass(frozen=True)
class Take:
    """What is heard in one take; `None` where there is nothing to say."""

    seed: int | None  # speaks it again
    stopped: bool  # by itself
    duration_s: float  # 0: nothing was said at all
    wer: float | None = None  # wrong words per word, Whisper-style
    similarity: float | None = None  # of its voice and the reference's
    transcript: str | None = None
    is_best: bool = False

    def __str__(self) -> str:
        words = [f"{self.duration_s:.2f} s"]
        if self.wer is not None:
            words.append(f"WER {100 * self.wer:.1f} %")
        if self.similarity is not None:
            words.append(f"similarity {self.similarity:.3f}")
        if not self.stopped:
            words.append("not stopped" if self.duration_s else "nothing said")
        return ", ".join(words)


class Judge:
    """Hears takes with `scorers`, of which those that are called `transcript` and `voice` are
    asked. language: of the texts, ISO 639-1."""

    def __init__(self, scorers: Sequence[Scorer], *, language: str = "en") -> None:
        by_name = {scorer.name: scorer for scorer in scorers}
        self._recogniser, self._voice = by_name.get("transcript"), by_name.get("voice")
        self._language = language
        # Voices of references, by path and time of change.
        self._references: dict[tuple[str, int], list[int]] = {}

    @property
    def identity(self) -> list[str]:
        """What its order depends on besides the takes."""
        scorers = filter(None, (self._recogniser, self._voice))
        return [self._language, *(scorer.identity for scorer in scorers)]

    def hear(
        self,
        text: str,
        samples: np.ndarray,
        rate_hz: int,
        *,
        stopped: bool,
        seed: int | None = None,
        reference: str | None = None,
    ) -> Take:
        """Of one take of `text`, (N,) float32. reference: the recording of the voice."""
        duration_s = len(samples) / rate_hz
        samples = soxr.resample(samples, rate_hz, RATE_HZ)
        wer = transcript = similarity = None
        if self._recogniser is not None:
            transcript = self._recogniser.hear(samples)
            asked, heard = (
                whisper_style(words_to_say(words), self._language) for words in (text, transcript)
            )
            errors, num_words = word_errors(asked, heard)
            # Of a text without words each that is heard is wrong.
            wer = errors / max(1, num_words)
        if self._voice is not None and reference is not None:
            similarity = cosine(self._voice.hear(samples), self._voice_of(reference))
        return Take(seed, stopped, duration_s, wer, similarity, transcript)

    def _voice_of(self, reference: str) -> list[int]:
        assert self._voice is not None
        key = (reference, Path(reference).stat().st_mtime_ns)
        if key not in self._references:
            samples = waveforms.load(reference, sample_rate_hz=RATE_HZ)
            self._references[key] = self._voice.hear(samples)
        return self._references[key]


def failed_take(seed: int | None) -> Take:
    """Of which nothing was said: all its words are wrong."""
    return Take(seed, stopped=False, duration_s=0.0, wer=1.0)


def load_judge(
    *,
    asr: str | None = None,
    speaker_model: str | None = None,
    language: str = "en",
    device: str = "cpu",
) -> tuple[Judge, list[Missing]]:
    """As `plugins.hearing.scorers.load_scorers` does, and what it has to do without.

    Raises UserError if nobody hears the words: by its length alone no take is the best."""
    scorers, missing = load_scorers(
        asr=asr, speaker_model=speaker_model, language=language, device=device
    )
    for scorer in missing:
        if scorer.name == "transcript":
            raise problem(
                source="takes",
                field="recogniser",
                value=None,
                reason=f"is missing: {scorer.reason}",
                remedy=scorer.remedy,
            )
    return Judge(scorers, language=language), [one for one in missing if one.name == "voice"]


def take_lines(takes: Sequence[Take]) -> list[str]:
    """One for each take; that which is kept is marked."""
    lines = []
    for number, take in enumerate(takes, start=1):
        line = f"take {number}: {take}"
        if take.seed is not None:
            line += f", seed {take.seed}"
        lines.append(f"{line} *" if take.is_best else line)
    return lines


def best_first(takes: Sequence[Take]) -> list[int]:
    """The numbers of `takes` in their order (see above); of equal ones the earlier is better."""
    is_odd = odd_lengths(takes)

    def rank(number: int) -> tuple[bool, bool, float, bool, float, int]:
        take = takes[number]
        unlike = 1 - (take.similarity or 0.0)
        is_cut = not take.stopped
        return not take.duration_s, is_cut, take.wer or 0.0, is_odd[number], unlike, number

    return sorted(range(len(takes)), key=rank)


def odd_lengths(takes: Sequence[Take]) -> list[bool]:
    """Which of them are much longer or shorter than most of those that stopped; none if these are
    too few."""
    durations_s = [take.duration_s for take in takes if take.stopped]
    if len(durations_s) < _FEW:
        return [False] * len(takes)
    usual_s = median_low(durations_s)
    return [not usual_s / _ODD <= take.duration_s <= usual_s * _ODD for take in takes]
