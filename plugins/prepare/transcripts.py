"""What is written of a clip and what is heard in it -> whether they fit, as a fault with both
texts.

In: transcripts and hearings. Out: `Finding`, `Rejected`, lines of JSON. Listens to nothing and
opens no file: `plugins.prepare.listening` does."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from plugins.corpora import Rejected, Utterance
from plugins.hearing.comparison import Comparison, Stretch, compare

# Where the numbers come from: Asterisk's English prompts, 1 to 25 s, heard by Whisper tiny.en. Of
# those that are right the CER is at most 0.27, and no stretch that only one of both texts has is
# heavier than 2 letters, but for one "the" too many; of shuffled texts the CER is 0.5 and more.
MAX_CER = 0.4
_MIN_EDGE, _MIN_STRETCH = 3.0, 4.0  # letters: within a text, "the" is lost or added
# Beyond these a second, slower hearing decides, whatever the limit.
_DOUBTFUL_CER = 0.15
_GRAM, _SKETCH = 5, 8  # letters of a piece, pieces of a text, for the search of its like
_SURE = 0.8  # of a language


@dataclass(frozen=True)
class Hearing:
    """What a recogniser heard in one clip: its texts, the later ones by more careful hearings, and
    the language that is spoken, if it was asked."""

    texts: tuple[str, ...] = ()
    spoken: tuple[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"texts": list(self.texts), "spoken": self.spoken and list(self.spoken)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Hearing:
        """Raises LookupError, TypeError or ValueError for what `to_json` has not made."""
        spoken = values["spoken"]
        if spoken is not None:
            language, share = spoken
            spoken = (str(language), float(share))
        return cls(tuple(map(str, values["texts"])), spoken)


@dataclass(frozen=True)
class Finding:
    """One clip: both texts as they are, and what is wrong, which is None where they fit."""

    owner: int  # the number of the utterance, of all that were heard
    utterance: Utterance  # it, or a turn of it
    audio: str  # the recording that was heard
    language: str
    heard: str
    comparison: Comparison
    hearing: Hearing
    key: str
    fault: str | None = None

    @property
    def cer(self) -> float:
        return round(self.comparison.cer, 4)

    @property
    def is_doubtful(self) -> bool:
        """Whether it fits, but with more differences than most."""
        return self.fault is None and is_doubtful(self.comparison)

    def details(self, max_cer: float) -> dict[str, Any]:
        """What the list of the rejected says of it besides the reason."""
        details: dict[str, Any] = {"written": self.utterance.text, "heard": self.heard}
        details |= {"cer": self.cer, "max_cer": max_cer, "audio": self.audio}
        return details

    def to_json(self) -> dict[str, Any]:
        """The line of ``x.transcripts.jsonl``."""
        return {
            "id": self.utterance.id,
            "audio": self.audio,
            "language": self.language,
            "written": self.utterance.text,
            "heard": self.heard,
            "cer": self.cer,
            "unheard": self.comparison.unheard.letters,
            "unwritten": self.comparison.unwritten.letters,
            "fault": self.fault,
            "key": self.key,
            "hearing": self.hearing.to_json(),
        }


def best_of(text: str, texts: Sequence[str], language: str) -> tuple[str, Comparison]:
    """The one of `texts`, heard, that is closest to `text`, written."""
    compared = [(heard, compare(text, heard, language)) for heard in texts]
    return min(compared, key=lambda pair: (_is_faulty(pair[1]), pair[1].cer))


def is_doubtful(comparison: Comparison) -> bool:
    """Whether a more careful hearing is worth its time."""
    return comparison.cer > _DOUBTFUL_CER or _is_faulty(comparison)


def fault_of(comparison: Comparison, max_cer: float, language: str, hearing: Hearing) -> str | None:
    """The reason why the transcript is not what is said; None if it is, or if any would do."""
    if max_cer >= 1:
        return None
    if not comparison.heard and comparison.written:
        return "no words are heard"
    # A cut recording or a second sentence says more than many letters that are others.
    if place := _missing(comparison, max_cer):
        return place
    if not _has_others(comparison, max_cer):
        return None
    reason = "other words are heard than are written"
    if hearing.spoken and hearing.spoken[0] != language and hearing.spoken[1] >= _SURE:
        reason += f" (the language is {hearing.spoken[0]})"
    return reason


def name_swapped(findings: Sequence[Finding], max_cer: float) -> list[Finding]:
    """`findings`, those that say the words of another clip with its id in their fault."""
    wrong = [
        finding
        for finding in findings
        if finding.fault and _has_others(finding.comparison, max_cer)
    ]
    if not wrong:
        return list(findings)
    owners: dict[bytes, list[int]] = defaultdict(list)
    for number, finding in enumerate(findings):
        for piece in _sketch(finding.comparison.written):
            owners[piece].append(number)
    named: dict[int, Finding] = {}
    for finding in wrong:
        votes: Counter[int] = Counter()
        for piece in _sketch(finding.comparison.heard):
            votes.update(owners.get(piece, ())[:100])  # "thank you" may be everywhere
        for number, _ in votes.most_common(3):
            other = findings[number]
            if other.utterance.text == finding.utterance.text:
                continue
            like = compare(other.utterance.text, finding.heard, finding.language)
            if like.cer <= min(max_cer, 0.25):
                fault = f"the words of another clip are heard ({other.utterance.id})"
                named[id(finding)] = replace(finding, fault=fault)
                break
    return [named.get(id(finding), finding) for finding in findings]


def heard_totals(findings: Sequence[Finding], max_cer: float) -> dict[str, Any]:
    """What the report says of them: errors per letter, pooled, and of the worst of the clips."""
    num_errors = sum(finding.comparison.num_errors for finding in findings)
    num_letters = sum(len(finding.comparison.written) for finding in findings)
    errors = sorted(finding.cer for finding in findings)
    totals: dict[str, Any] = {"clips": len(findings), "max_cer": max_cer}
    totals["doubtful"] = sum(finding.is_doubtful for finding in findings)
    totals["cer"] = round(num_errors / max(1, num_letters), 4)
    for name, share in (("median", 0.5), ("p95", 0.95), ("max", 1.0)):
        totals[name] = errors[min(len(errors) - 1, int(share * len(errors)))] if errors else None
    return totals


def rejected(utterance: Utterance, finding: Finding, max_cer: float) -> Rejected:
    """`utterance` for the fault of `finding`, its own or that of one of its turns."""
    assert finding.fault is not None
    reason = f"transcript: {finding.fault}"
    details = finding.details(max_cer)
    return Rejected(utterance.place, utterance.id, reason, finding.cer, details)


def _has_others(comparison: Comparison, max_cer: float) -> bool:
    """Whether more words are others than a recogniser mishears."""
    # Two letters of "DAHDI", heard as "Daddy", are 40 %.
    return comparison.cer > max_cer and comparison.num_errors > min(2, 5 * max_cer)


def _missing(comparison: Comparison, max_cer: float) -> str | None:
    """What only one of both texts has, if the rest of them fits."""
    unheard, unwritten = comparison.unheard, comparison.unwritten
    num_written = len(comparison.written)
    is_less = unheard.weight >= unwritten.weight
    stretch = unheard if is_less else unwritten
    num_others = comparison.num_errors - len(stretch.letters)
    num_left = num_written - len(stretch.letters) if is_less else num_written
    if not _is_long(stretch, comparison) or num_others > max_cer * num_left:
        return None
    if not is_less:
        return "more is heard than is written"
    if stretch.begin == 0:
        return "the beginning of the text is not heard"
    if stretch.end == num_written:
        return "the end of the text is not heard"
    return "a part of the text is not heard"


def _is_faulty(comparison: Comparison) -> bool:
    if not comparison.heard and comparison.written:
        return True
    return any(_is_long(one, comparison) for one in (comparison.unheard, comparison.unwritten))


def _is_long(stretch: Stretch, comparison: Comparison) -> bool:
    """Whether it is a word that only one of both texts has."""
    text = comparison.written if stretch is comparison.unheard else comparison.heard
    is_edge = stretch.begin == 0 or stretch.end == len(text)
    return stretch.weight >= (_MIN_EDGE if is_edge else _MIN_STRETCH)


def _sketch(text: str) -> list[bytes]:
    """A few pieces of `text`: those with the smallest hashes, which a similar text has too."""
    pieces = {text[i : i + _GRAM].encode() for i in range(max(1, len(text) - _GRAM + 1))}
    hashes = [hashlib.blake2b(piece, digest_size=8).digest() for piece in pieces]
    return sorted(hashes)[:_SKETCH]
