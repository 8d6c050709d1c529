"""The closed vocabulary and phrases over it: each word as often as any other, in ever new orders.

Half of the phrases are grammatical, half are words in any order: of grammar alone a model would
guess the next word, and need not read. None has four words in a row of a held-out sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from plugins.files.lines import text_lines

_RUN = 4  # words in a row
_MAX_WORDS = 10
_SMALL = """
    preposition determiner owner subject object auxiliary negation joiner question
""".split()  # noqa: SIM905


def lines(name: str) -> list[str]:
    """Of a file of this folder."""
    return [line for _, line in text_lines(Path(__file__).with_name(name))]


@cache
def kinds() -> dict[str, list[str]]:
    """Words by what they can do in a phrase, of which a word may have several, and patterns of
    phrases by names in capitals."""
    kinds = {}
    for line in lines("words.txt"):
        name, listed = line.split(": ")
        kinds[name] = listed.split(" | ") if name.isupper() else listed.split()
    return kinds


@cache
def vocabulary() -> list[str]:
    """All words as they are written, sorted."""
    return sorted({word for name, words in kinds().items() if name.islower() for word in words})


def words_of(text: str) -> list[str]:
    """Its words in small letters, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def draw(random: random.Random, count: int) -> Iterator[str]:
    """`count` phrases of one to ten words, with a point or a question mark at the end."""
    deck: list[str] = []

    def word() -> str:
        # From a shuffled deck, so that no word is rare.
        if not deck:
            deck.extend(vocabulary())
            random.shuffle(deck)
        return deck.pop()

    def small_word() -> str:
        return random.choice(kinds()[random.choice(_SMALL)])

    for i in range(count):
        match i % 10:
            case 0:
                phrase = word()
            case 1 | 2:
                phrase = " ".join(word() for _ in range(random.choice((2, 2, 3))))
            case 3 | 4 | 5:
                words = []
                for _ in range(random.randint(4, 9)):
                    words.append(small_word() if random.random() < 0.2 else word())
                phrase = " ".join(words)
            case _:
                phrase = _grammatical(random)
        yield phrase if phrase.endswith("?") else f"{phrase}."


def sentences(random: random.Random) -> Iterator[str]:
    """Grammatical phrases without end, with a capital and a full stop."""
    while True:
        phrase = _grammatical(random)
        phrase = phrase[0].upper() + phrase[1:]
        yield phrase if phrase.endswith("?") else f"{phrase}."


def _grammatical(random: random.Random) -> str:
    while True:
        phrase = "PHRASE"
        while found := re.search(r"[A-Z]{5,}|\{(\w+)\}", phrase):
            chosen = random.choice(kinds()[found[1] or found[0]])
            phrase = phrase[: found.start()] + chosen + phrase[found.end() :]
        # "an apple": by letter, like the voices' own reading of "a".
        phrase = re.sub(r"\ba (?=[aeio])", "an ", phrase)
        if len(phrase.split()) <= _MAX_WORDS:
            return phrase


def gives_away(text: str) -> bool:
    """Whether `text` has four words in a row of a held-out sentence."""
    return not _runs(text).isdisjoint(_held_out_runs())


@cache
def _held_out_runs() -> set[tuple[str, ...]]:
    return set().union(*map(_runs, lines("heldout.txt")))


def _runs(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)}
