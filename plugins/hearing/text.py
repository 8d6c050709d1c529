"""What should be said and what was heard -> counts of errors. Strings only.

Two ways to make both comparable, as published figures use one or the other:

Whisper-style   Radford et al. 2022 (arXiv 2212.04356), appendix C: numbers, contractions and
                spelling of English made uniform; other languages stripped of symbols. Errors are
                pooled over all items.
Seed-TTS-style  Anastassiou et al. 2024 (arXiv 2406.02430), as its public test set is scored: lower
                case, no punctuation but the apostrophe, Chinese by character. The figure is the
                mean over items.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from plugins.data.text import SOUND, SPEAKER_TAG, unified

# Whisper takes these, which put no spaces between words, letter by letter.
_LETTER_BY_LETTER = {"zh", "yue", "ja", "th", "lo", "my"}
# Not `.*?`: of many opening tags each would look for an end through all that follows.
_SOUND_TAG = re.compile(r"<SE(?:_[se])?>[^<]*</SE(?:_[se])?>")


def words_to_say(text: str) -> str:
    """`text` without what is not spoken as words: speaker tags, tags of sounds."""
    for tag in (_SOUND_TAG, SOUND, SPEAKER_TAG):
        text = tag.sub(" ", text)
    return " ".join(text.split())


def whisper_style(text: str, language: str) -> str:
    """Needs the package whisper-normalizer."""
    return " ".join(_whisper_normalizer(language)(unified(text)).split())


def seed_style(text: str, language: str) -> str:
    """Units apart by single spaces: characters of Chinese, else words."""
    kept = ""
    for character in unified(text):
        # P: punctuation, S: symbols, as Unicode sorts them.
        if character == "'" or unicodedata.category(character)[0] not in "PS":
            kept += character
    if language == "zh":
        return " ".join("".join(kept.split()))
    return " ".join(kept.lower().split())


@dataclass(frozen=True)
class Stretch:
    """Words that were asked for, and those that were heard for them: the same, as many others, or
    none on one of the two sides."""

    asked: tuple[str, ...]
    heard: tuple[str, ...]

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return 0 if self.asked == self.heard else max(len(self.asked), len(self.heard))


def align(reference: str, heard: str) -> list[Stretch]:
    """Both from their beginning to their end, by an alignment of the fewest errors. Needs the
    package jiwer."""
    import jiwer

    asked_words, heard_words = tuple(reference.split()), tuple(heard.split())
    if not asked_words:  # jiwer refuses an empty reference
        return [Stretch((), heard_words)] if heard_words else []
    stretches = []
    for chunk in jiwer.process_words(reference, heard).alignments[0]:
        asked = asked_words[chunk.ref_start_idx : chunk.ref_end_idx]
        stretches.append(Stretch(asked, heard_words[chunk.hyp_start_idx : chunk.hyp_end_idx]))
    return stretches


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions; and the number of words in `reference`. Needs the
    package jiwer."""
    errors = sum(stretch.num_errors for stretch in align(reference, heard))
    return errors, len(reference.split())


def character_errors(reference: str, heard: str) -> tuple[int, int]:
    """As `word_errors`, of characters; spaces are none."""
    return word_errors(" ".join(reference.replace(" ", "")), " ".join(heard.replace(" ", "")))


@lru_cache
def _whisper_normalizer(language: str) -> Any:
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=language in _LETTER_BY_LETTER)
