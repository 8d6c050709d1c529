"""Sentences to train the codec on, from words (words.txt) and patterns of our own; heldout.txt has
those to test it on."""

from __future__ import annotations

import random
import re
from pathlib import Path

from plugins.files.lines import text_lines

_WORDS = Path(__file__).with_name("words.txt")
_HELD_OUT = Path(__file__).with_name("heldout.txt")
_PATTERNS = """
    The {adjective} {noun} {went} {preposition} the {noun}.
    The {noun} {went} {adverb} {preposition} the {adjective} {noun}.
    {person} {did} the {adjective} {noun} {preposition} the {noun}.
    {person} {did} {owner} {noun} and {went} {adverb}.
    A {adjective} {noun} and a {adjective} {noun} {went} {preposition} {owner} {noun}.
    The {noun} of the {noun} is {adjective} and {adjective}.
    {owner} {noun} {did} a {adjective} {noun} on {time}.
    {number} {adjective} men {did} the {noun} {preposition} the {noun}.
    Please {verb} the {noun} before you {verb} the {noun}.
    Did {person} {verb} the {adjective} {noun} last {time}?
    We will {verb} {number} or {number} times in {time}.
    If you {verb} {adverb}, the {noun} will be {adjective}.
    Never {verb} {preposition} a {adjective} {noun}.
    When the {noun} {went}, the {noun} was {adjective}.
    It was a {adjective} {noun}, but {person} {did} it {adverb}.
    There were {number} of them {preposition} the {adjective} {noun}.
    {person} {did} the {noun}, the {noun} and the {noun}.
    Why would {person} {verb} such a {adjective} {noun}?
    {adverb}, the {adjective} {noun} {did} {owner} {noun}.
    On {time} {person} {went} {preposition} the {noun} with {owner} {noun}.
"""


def training(count: int, *, seed: int) -> list[str]:
    """`count` different sentences: grammatical, hardly sensible, every word as likely as every
    other of its kind."""
    draw = random.Random(seed)
    words = _words()
    patterns = list(map(str.strip, _PATTERNS.strip().split("\n")))
    forbidden = set(held_out())
    sentences: dict[str, None] = {}  # ordered, and none twice
    while len(sentences) < count:
        # All patterns in turn, so that each is as frequent as any other.
        sentence = patterns[len(sentences) % len(patterns)]
        while "{" in sentence:
            kind = sentence[sentence.index("{") + 1 : sentence.index("}")]
            sentence = sentence.replace(f"{{{kind}}}", draw.choice(words[kind]), 1)
        # "an apple", but nothing for words that are only said so: "a honest", "an useful".
        sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
        sentence = sentence[0].upper() + sentence[1:]
        if sentence not in forbidden:
            sentences[sentence] = None
    return list(sentences)


def held_out() -> list[str]:
    """Sentences no part of the codec is fitted to."""
    return [line for _, line in text_lines(_HELD_OUT)]


def _words() -> dict[str, list[str]]:
    """Of each kind."""
    words = {}
    for _, line in text_lines(_WORDS):
        kind, _, listed = line.partition(": ")
        words[kind] = listed.split()
    return words
