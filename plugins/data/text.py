"""A text -> the same text as the model was shown texts; a long text -> pieces to speak one by one.

Strings in, strings out: it knows no rows, no tokens and no settings, and its work grows with the
length of a text, not faster. Source of the clean-up: boson-ai/higgs-audio,
``examples/generation.py``; that of Unicode forms is ours. Who decides whether it is done:
`clean_text` of `plugins.settings`. Where it is done: `plugins.data.rows`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

# Of a piece, as `pieces` counts: about 20 s.
MAX_CHARS = 300
# Of four digits at most: each piece of a turn repeats its tag.
SPEAKER_TAG = re.compile(r"\[SPEAKER\d{1,4}\]")

# Not to be heard: soft hyphen, zero-width space, word joiner, byte order mark, marks of direction.
_NOT_HEARD = "\u00ad\u200b\u2060\ufeff\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
_INVISIBLE = dict.fromkeys(map(ord, _NOT_HEARD + "\u2066\u2067\u2068\u2069"))
_JOINERS = re.compile("[\u200c\u200d]+")
# Scripts in which a joiner makes another word or syllable: Arabic and its kin, those of India,
# Tibetan, Burmese, Khmer, Mongolian.
_JOINING_LETTER = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc]"
)
# On one letter. No language has as many (Unicode's Stream-Safe Text Format, UAX #15), and bringing
# them into order takes the square of their number.
_MAX_MARKS = 30
_VIRAMA_CLASS = 9  # Unicode's combining class of the signs that take a consonant's vowel away

_FULL_WIDTH = "。：；？！、—·【】《》“”「」『』‘’（）()"
_HALF_WIDTH = ".:;?!,-.[]<>" + '"' * 6 + "'" * 2 + " " * 4
_PUNCTUATION = str.maketrans(_FULL_WIDTH, _HALF_WIDTH) | str.maketrans({"，": ", ", "…": "..."})
_UNITS = {"°F": " degrees Fahrenheit", "°C": " degrees Celsius"}
_SOUNDS = {
    "laugh": "<SE>[Laughter]</SE>",
    "humming start": "<SE>[Humming]</SE>",
    "humming end": "<SE_e>[Humming]</SE_e>",
    "music start": "<SE_s>[Music]</SE_s>",
    "music end": "<SE_e>[Music]</SE_e>",
    "music": "<SE>[Music]</SE>",
    "sing start": "<SE_s>[Singing]</SE_s>",
    "sing end": "<SE_e>[Singing]</SE_e>",
    "applause": "<SE>[Applause]</SE>",
    "cheering": "<SE>[Cheering]</SE>",
    "cough": "<SE>[Cough]</SE>",
}
SOUND = re.compile(rf"\[({'|'.join(_SOUNDS)})\]")
_ENDS = (".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>")
# Not in the middle of a run of stops, where it would be tried again at each of them.
_SENTENCE_END = re.compile(
    r"""(?<![.!?。！？…])[.!?。！？…]+["'”’»)\]]*(?=\s|$)|[。！？]+["'”’]*"""
)
# A full stop after these, or after a single capital, ends no sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Sr|Jr|vs|etc|No|e\.g|i\.e|z\.B|bzw|ca)\.$"
)
_ABBREVIATION_CHARS = len(" Prof.")  # of the longest
_CLAUSE_END = re.compile(r"[,;:、，；：](?=\s)|[、，；：]|\s[-–—](?=\s)")
_CUTS = (_CLAUSE_END, re.compile(r"\s+"))  # of a sentence that is too long: clauses, then words


def clean_transcript(text: str) -> str:
    """`text` as the model's own examples write it: half-width punctuation, sounds such as
    ``[laugh]`` as the model's tags, units in words, one space between words, no empty line, and a
    full stop where no punctuation ends it; in one Unicode form. Clean texts stay as they are."""
    text = unified(text).translate(_PUNCTUATION)
    for unit, words in _UNITS.items():
        text = text.replace(unit, words)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    text = "\n".join(filter(None, lines))
    # After the spaces: a sound's name has one between its words.
    text = SOUND.sub(lambda match: _SOUNDS[match[1]], text)
    # Again: new punctuation may combine with an accent after it.
    text = unicodedata.normalize("NFC", text)
    return text if not text or text.endswith(_ENDS) else f"{text}."


def unified(text: str) -> str:
    """The same text in one Unicode form (NFC), so that it has the same tokens wherever it was
    typed, without invisible characters. Joiners stay between letters of scripts that need them.
    Of the marks on one letter 30 stay."""
    if text.isascii():
        return text
    visible = _with_few_marks(text.translate(_INVISIBLE))
    visible = unicodedata.normalize("NFC", _JOINERS.sub(_kept_joiners, visible))
    # Again: a mark may have been written for two.
    return _with_few_marks(visible)


def _with_few_marks(text: str) -> str:
    kept: list[str] = []
    num_marks = 0
    for character in text:
        if unicodedata.combining(character):
            num_marks += 1
        elif not _JOINERS.match(character):  # marks on both sides of a joiner may meet
            num_marks = 0
        if num_marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _kept_joiners(match: re.Match[str]) -> str:
    text, first, last = match.string, match.start() - 1, match.end()
    # With all marks on both sides, whatever their order: NFC comes later and settles it.
    while first >= 0 and unicodedata.combining(text[first]):
        first -= 1
    while last < len(text) and unicodedata.combining(text[last]):
        last += 1
    if first < 0 or not _JOINING_LETTER.match(text[first]):
        return ""
    # At the end of a word only after a virama: so older Malayalam texts write bare consonants.
    has_virama = _VIRAMA_CLASS in map(unicodedata.combining, text[first : match.start()])
    goes_on = _JOINING_LETTER.search(text[match.end() : last + 1])
    return match[0] if has_virama or goes_on else ""


def has_words(text: str) -> bool:
    """Whether there is anything to speak besides speaker tags: a letter or digit of any script."""
    return any(character.isalnum() for character in SPEAKER_TAG.sub("", text))


def pieces(text: str, max_chars: int) -> list[str]:
    """`text` in as few pieces of `max_chars` or less as sentence ends, else clauses, else words,
    allow.

    A wide character counts three: it is about a syllable (Mandarin has 4.3 a second, English 15
    letters). A piece inside a speaker's turn repeats the speaker's tag."""
    packed: list[list[str]] = []  # the parts of each piece: joined once, not at each part
    width, tag = 0, ""
    for part in _parts(text, max_chars):
        part_width = _width(part)
        tags = SPEAKER_TAG.findall(part)
        if packed and width + part_width <= max_chars:
            packed[-1].append(part)
            width += part_width
        else:
            piece = part.lstrip()
            if tag and not SPEAKER_TAG.match(piece):
                piece = f"{tag} {piece}"
            packed.append([piece])
            width = _width(piece)
        # That of who speaks at its end.
        tag = tags[-1] if tags else tag
    joined = map("".join, packed)
    return [piece.strip() for piece in joined if piece.strip()]


def _parts(text: str, max_chars: int) -> Iterator[str]:
    """`text` cut at speaker tags and sentence ends, and what is still too long ever finer; joined
    it is `text`."""
    for turn in _cut(text, _starts(SPEAKER_TAG, text)):
        for sentence in _cut(turn, _sentence_ends(turn)):
            yield from _finer(sentence, max_chars, _CUTS)


def _finer(text: str, max_chars: int, cuts: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """`text`, or what the first of `cuts` makes of it, each cut by the others if it is too long."""
    if _width(text) <= max_chars:
        yield text
    elif cuts:
        for part in _cut(text, _ends(cuts[0], text)):
            yield from _finer(part, max_chars, cuts[1:])
    else:  # a third of the size, since each character may be a wide one
        size = max_chars // 3
        yield from _cut(text, range(size, len(text), size))


def _starts(pattern: re.Pattern[str], text: str) -> Iterator[int]:
    for match in pattern.finditer(text):
        yield match.start()


def _ends(pattern: re.Pattern[str], text: str) -> Iterator[int]:
    for match in pattern.finditer(text):
        yield match.end()


def _sentence_ends(text: str) -> Iterator[int]:
    for end in _ends(_SENTENCE_END, text):
        # Only the last word is looked at, not all that comes before.
        if not _ABBREVIATION.search(text, max(0, end - _ABBREVIATION_CHARS), end):
            yield end


def _cut(text: str, ends: Iterable[int]) -> Iterator[str]:
    start = 0
    for end in ends:
        if end > start:
            yield text[start:end]
            start = end
    if start < len(text):
        yield text[start:]


def _width(text: str) -> int:
    # Wide (W) or full-width (F), as Chinese, Japanese and Korean are written.
    num_wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + 2 * num_wide
