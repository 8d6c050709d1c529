"""What is written of a recording and the words heard in it -> the text of each clip, as written.

In: subtitles (``.srt``, ``.vtt``) or the whole text (``.txt``) beside a recording, and the words of
its clips as they were heard. Out: per clip the written words that were said in it, and how far both
agree. The times of subtitles are not used: they are when a line is shown."""

from __future__ import annotations

import bisect
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

from plugins.corpora.transcripts import read_whole

SUFFIXES = (".srt", ".vtt", ".txt")  # the first that is there
_ARROW = "-->"
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
_TAGS = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,100}\}")  # HTML, and SubStation's {\an8}
_NOTES = re.compile(r"\[[^\[\]]{0,200}\]|[♪♫#]+(?=\s|$)|^\s*\([^()]{0,200}\)\s*$")  # [applause]
_SPEAKER = re.compile(r"^(?:>>\s*)?(?:[^\W\d_a-zß-ÿ][^a-z:]{0,30}:\s)?")  # ">> ANN: "
_DASH = re.compile(r"^\s*[-–—]\s*")
_GRAM = 3  # words in a row that are anchors where both texts have them once
_MISSED = 2  # written words in a row that a recogniser may leave out
_SENTENCE_ENDS = tuple(".!?…。！？")


@dataclass(frozen=True)
class Written:
    """The text of a clip. agreement: of its letters with those heard, 0 to 1."""

    text: str
    agreement: float


def script_beside(recording: Path) -> Path | None:
    """The subtitles or the text of `recording`: of its name, with another suffix."""
    for suffix in SUFFIXES:
        for path in (recording.with_suffix(suffix), Path(f"{recording}{suffix}")):
            if path.is_file():
                return path
    return None


def read_script(path: Path, input_dir: Path, root: Path | None) -> list[str]:
    """The words to be said, in order, with their punctuation. Raises `AudioError`."""
    text = read_whole(path, input_dir, root)
    if path.suffix.lower() == ".txt" and _ARROW not in text:
        return text.split()
    return _subtitles(text)


def _subtitles(text: str) -> list[str]:
    cues: list[list[str]] = []
    is_cue = False  # else a number, a header, a note
    lines = [line.strip() for line in text.split("\n")]
    for line, after in pairwise([*lines, ""]):
        if _ARROW in line:
            is_cue = True
            cues.append([])
        elif not line:
            is_cue = False
        elif is_cue and not (line.isdigit() and _ARROW in after):
            cues[-1] += filter(None, [_spoken(line)])
    cues = list(filter(None, cues))
    # Live captions roll: the last line of one cue is the first of the next.
    num_repeated = sum(after[0] == before[-1] for before, after in pairwise(cues))
    words: list[str] = []
    before = ""
    for cue in cues:
        first = 1 if 2 * num_repeated >= len(cues) > 2 and cue[0] == before else 0
        before = cue[-1]
        words += " ".join(cue[first:]).split()
    return words


def _spoken(line: str) -> str:
    line = html.unescape(_TAGS.sub("", _BREAK.sub(" ", line)))
    line = _DASH.sub("", _NOTES.sub(" ", line)).strip()
    return _SPEAKER.sub("", line).strip()


def written_in(script: Sequence[str], heard: Sequence[Sequence[str]]) -> list[Written]:
    """Per clip of the words `heard` those of `script` that were said in it."""
    flat = [(_letters(word), clip) for clip, words in enumerate(heard) for word in words]
    flat = [(letters, clip) for letters, clip in flat if letters]
    pairs = matches(list(map(_letters, script)), [letters for letters, _ in flat])
    owners = _owners(script, [clip for _, clip in flat], pairs)
    texts: list[list[str]] = [[] for _ in heard]
    for word, owner in zip(script, owners, strict=True):
        if owner is not None:
            texts[owner].append(word)
    written = []
    for mine, theirs in zip(texts, heard, strict=True):
        a, b = _letters("".join(mine)), _letters("".join(theirs))
        agreement = SequenceMatcher(None, a, b, autojunk=False).ratio() if a and b else 0.0
        written.append(Written(" ".join(mine), round(agreement, 3)))
    return written


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def matches(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Positions of equal words in both, rising in both. Long texts are anchored first where three
    words in a row are in each of them once: comparing all with all would take hours."""
    pairs: list[tuple[int, int]] = []
    for (a_from, b_from), (a_to, b_to) in pairwise([(0, 0), *_anchors(a, b), (len(a), len(b))]):
        matcher = SequenceMatcher(None, a[a_from:a_to], b[b_from:b_to], autojunk=False)
        for block in matcher.get_matching_blocks():
            for k in range(block.size):
                pairs.append((a_from + block.a + k, b_from + block.b + k))
    return pairs


def _anchors(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    places = [_unique_grams(words) for words in (a, b)]
    common = sorted((i, places[1][gram]) for gram, i in places[0].items() if gram in places[1])
    # The longest rising row of places in `b`: patience sorting.
    tops: list[int] = []
    piles: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(common):
        pile = bisect.bisect_left(tops, j)
        before.append(piles[pile - 1] if pile else -1)
        tops[pile : pile + 1] = [j]
        piles[pile : pile + 1] = [index]
    row = []
    index = piles[-1] if piles else -1
    while index >= 0:
        row.append(common[index])
        index = before[index]
    return row[::-1]


def _unique_grams(words: Sequence[str]) -> dict[tuple[str, ...], int]:
    places: dict[tuple[str, ...], int] = {}
    repeated = set()
    for i in range(len(words) - _GRAM + 1):
        gram = tuple(words[i : i + _GRAM])
        if gram in places:
            repeated.add(gram)
        places[gram] = i
    return {gram: i for gram, i in places.items() if gram not in repeated}


def _owners(
    script: Sequence[str], clips: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> list[int | None]:
    """The clip of each written word; None for one that was not said. clips: of each heard word."""
    owners: list[int | None] = [None] * len(script)
    for i, j in pairs:
        owners[i] = clips[j]
    for (i, j), (i_next, j_next) in pairwise([(-1, -1), *pairs, (len(script), len(clips))]):
        unmatched, heard = i_next - i - 1, j_next - j - 1
        if heard == 0:
            owners[i + 1 : i_next] = _missed(script, i, i_next, owners)
        elif unmatched <= 2 * heard + _MISSED:
            # Heard as other words: each stands where its share of them stands.
            for k in range(unmatched):
                owners[i + 1 + k] = clips[j + 1 + k * heard // unmatched]
    return owners


def _missed(
    script: Sequence[str], i: int, i_next: int, owners: Sequence[int | None]
) -> list[int | None]:
    """Owners of the words between two that are heard next to each other."""
    count = i_next - i - 1
    if count > _MISSED or i < 0 or i_next == len(script):
        return [None] * count
    result: list[int | None] = []
    owner = owners[i]
    for k in range(i + 1, i_next):
        # In a pause between two clips: the sentence decides.
        if script[k - 1].endswith(_SENTENCE_ENDS):
            owner = owners[i_next]
        result.append(owner)
    return result
