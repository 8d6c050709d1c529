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


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions; and the number of words in `reference`. Needs the
    package jiwer."""
    import jiwer

    num_words = len(reference.split())
    if num_words == 0:  # jiwer refuses an empty reference
        return len(heard.split()), 0
    counts = jiwer.process_words(reference, heard)
    return counts.substitutions + counts.deletions + counts.insertions, num_words


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
