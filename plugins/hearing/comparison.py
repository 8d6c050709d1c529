"""What is written and what was heard -> how far apart they are, and where. Strings only.

Both are made comparable as the evaluation does, Whisper-style, and compared by their letters and
digits alone: case, punctuation, spaces, and numbers as figures or words are no difference. Where
that sets them further apart ("saved to", heard as "saved two"), they are taken as they are, and
figures that are left as they are read out.

Where a stretch of one of them has nothing beside it in the other is told apart from letters that a
recogniser takes for others, as it always does: a word that is missing at an edge is a cut
recording, even if it is a twentieth of the text. Needs the packages whisper-normalizer and, by way
of jiwer, rapidfuzz; num2words for the numbers of other languages than English."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

from plugins.hearing.text import whisper_style, words_to_say

_MATCHED = 1.0  # what a letter that both have takes from a stretch that only one has
_NUMBER = re.compile(r"[0-9]{1,12}")
_WIDE = 2.5  # letters: about what a character of Chinese, or a syllable of Korean, takes to say


class Stretch(NamedTuple):
    """Letters of one text that have nothing beside them in the other; `begin` and `end` count the
    letters of the first."""

    letters: str
    weight: float  # in letters of an alphabet, less the matches among them
    begin: int
    end: int


@dataclass(frozen=True)
class Comparison:
    """num_errors: letters that are left out, added or others. unheard, unwritten: the longest
    stretch of either kind."""

    written: str  # letters
    heard: str
    num_errors: int
    unheard: Stretch
    unwritten: Stretch

    @property
    def cer(self) -> float:
        """Errors per letter of what is written; may be above 1."""
        return self.num_errors / max(1, len(self.written))

    @property
    def worst(self) -> float:
        """The weight of the longest stretch."""
        return max(self.unheard.weight, self.unwritten.weight)


def compare(written: str, heard: str, language: str) -> Comparison:
    """Of a transcript and what a recogniser heard, both as they are. language: ISO 639-1."""
    compared = _compared(*(letters(text, language) for text in (written, heard)))
    if not compared.num_errors:
        return compared
    others = [compared, _compared(*(_letters(words_to_say(text)) for text in (written, heard)))]
    if language != "en":
        # Of English alone the normalisation knows the numbers.
        for kind in ("cardinal", "year"):
            read_out = [_read_out(text, language, kind) for text in (written, heard)]
            if read_out != [written, heard]:
                others.append(_compared(*(letters(text, language) for text in read_out)))
    return min(others, key=lambda comparison: (comparison.worst, comparison.cer))


def letters(text: str, language: str) -> str:
    """What is compared of `text`."""
    return _letters(whisper_style(words_to_say(text), language))


def _read_out(text: str, language: str, kind: str) -> str:
    """`text` with its numbers in words, if num2words is there and knows the language."""
    if find_spec("num2words") is None:
        return text
    from num2words import num2words

    def words(match: re.Match[str]) -> str:
        try:
            return f" {num2words(int(match[0]), lang=language, to=kind)} "
        # It has neither all languages nor all kinds, nor numbers without end.
        except (NotImplementedError, OverflowError, TypeError, ValueError, LookupError):
            return match[0]

    return _NUMBER.sub(words, text)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).lower()))


def _compared(a: str, b: str) -> Comparison:
    from rapidfuzz.distance import Levenshtein

    # One step is one letter of `a`, one of `b`, or one of both.
    steps: list[tuple[int, int, str]] = []
    num_errors = 0
    for edit in Levenshtein.opcodes(a, b):
        i, j = edit.src_start, edit.dest_start
        length = max(edit.src_end - i, edit.dest_end - j)
        for k in range(length):
            steps.append((min(i + k, edit.src_end), min(j + k, edit.dest_end), edit.tag))
        if edit.tag != "equal":
            num_errors += length
    return Comparison(a, b, num_errors, _stretch(a, steps, 0), _stretch(b, steps, 1))


def _stretch(text: str, steps: list[tuple[int, int, str]], side: int) -> Stretch:
    """The longest stretch of `text` that the other has not: the largest sum of steps in a row,
    where a letter of this one alone counts for it, and all others against it."""
    alone, other = ("delete", "insert") if side == 0 else ("insert", "delete")
    best, best_from, best_to = 0.0, 0, 0
    total, start = 0.0, 0
    for i, j, tag in steps:
        at = (i, j)[side]
        if total <= 0:
            total, start = 0.0, at
        if tag == alone:
            total += _WIDE if _is_wide(text[at]) else 1.0
        elif tag == other:
            total -= 1.0
        else:
            total -= _MATCHED
        if total > best:
            best, best_from, best_to = total, start, at + 1
    return Stretch(text[best_from:best_to], best, best_from, best_to)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"
