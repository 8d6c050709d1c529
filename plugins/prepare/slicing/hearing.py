"""A stretch of sound -> the words in it, with their times.

In: (N,) float32 at 16 kHz, at most 30 s. Out: `Heard`. Whose words they are nobody here knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins.errors import problem
from plugins.hearing.recogniser import (
    Recogniser,
    identity_of,
    iso_code,
    known_code,
    model_folder,
    require_packages,
    shipped_model,
)

_NO_TIME_S = 0.02  # one step of Whisper's clock
_FEWEST_INVENTED = 3  # a single short word may well have no time
_UNSURE = 0.5
_SURELY = 0.7  # that a language is another one than was said


@dataclass(frozen=True)
class Word:
    """One word as it is written, with the punctuation that is attached to it."""

    text: str  # begins with a space where one belongs before it
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Heard:
    words: list[Word]
    language: str | None  # ISO 639-1; None: it cannot be told

    def to_json(self) -> dict[str, Any]:
        return {"words": list(map(vars, self.words)), "language": self.language}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Heard:
        """Raises LookupError or TypeError for what `to_json` has not made."""
        return cls([Word(**word) for word in values["words"]], values["language"])


class WordRecogniser(Recogniser):
    """A recogniser that says when each word is spoken."""

    is_told = True  # which language it is, or knows no other one

    def words(self, samples: np.ndarray) -> Heard:
        """(N,) float32 at 16 kHz, at most 30 s. A language other than its own is named, and its
        words are in it."""
        if self.is_told and not self.is_multilingual:
            return self._words(samples, self.language)
        # Told the language, it would write any other one down as if it were that.
        heard = self._words(samples, None)
        if not self.is_told or heard.language == self.language:
            return heard
        return heard if heard.language else self._words(samples, self.language)

    def _words(self, samples: np.ndarray, language: str | None) -> Heard:
        segments, about = self._transcribed(samples, language, word_timestamps=True)
        words = []
        for segment in segments:
            for word in segment.words or ():
                probability = float(word.probability)
                words.append(Word(word.word, float(word.start), float(word.end), probability))
        is_sure = language is not None or about.language_probability >= _SURELY
        return Heard(without_inventions(words), about.language if is_sure else None)


def without_inventions(words: Sequence[Word]) -> list[Word]:
    """`words` without those at the end that nobody had time to say.

    Where a stretch ends in silence Whisper may go on ("please like and subscribe"): of such words
    most begin and end at its very end, and the first ones are unsure."""
    end = len(words)
    while end and words[end - 1].end_s - words[end - 1].start_s <= _NO_TIME_S:
        end -= 1
    if len(words) - end < _FEWEST_INVENTED:
        return list(words)
    while end and words[end - 1].probability < _UNSURE:
        end -= 1
    return list(words[:end])


@dataclass(frozen=True)
class WordListener:
    """language: what the user said is spoken. identity: what the words depend on. load: takes
    seconds."""

    language: str | None
    identity: str
    load: Callable[[], WordRecogniser]


def listener(*, asr: str | None, language: str | None, beam: int, device: str) -> WordListener:
    """asr: folder or Hub id in faster-whisper's format; None: the English one that is a package.
    language: ISO 639-1; None: English for that one, and for others whatever each stretch is heard
    to be. Raises UserError for what is not there."""
    require_packages("recordings", shipped=asr is None)
    code = None if language is None else iso_code(language)
    if asr is None and code not in (None, "en"):
        raise problem(
            source="command line",
            field="--language",
            value=language,
            reason="is not heard by the recogniser that ships with this kit, which knows English",
            remedy="add --asr Systran/faster-whisper-large-v3, or the folder of such a model",
        )
    folder = shipped_model() if asr is None else model_folder(asr)

    def load() -> WordRecogniser:
        heard = WordRecogniser(folder, language=code or "en", device=device, beam_size=beam)
        if language is not None:
            known_code(language, heard, source="--language")
        heard.is_told = asr is None or language is not None
        return heard

    return WordListener(code, f"{identity_of(folder)}, beam {beam}", load)
