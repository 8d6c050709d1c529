"""The report of a corpus, its rejected and its doubtful clips -> report.html, a page to listen.

It lies beside the rows, and the clips stay where they are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from plugins.corpora import Rejected, Utterance
from plugins.hearing import page as form
from plugins.hearing.page import text
from plugins.prepare.report import dialogue_counts, dialogue_total
from plugins.prepare.transcripts import Finding

_MAX_CLIPS = 1000  # shown of either kind: a browser holds a few thousand players
_WIDTH, _HEIGHT, _FOOT = 360, 150, 18  # pixels of a picture, and of the numbers below it
_CER_BINS = 20  # to 1, of 0.05
# Title, attribute of `Shown`, first order: of columns that are there if any clip has the number.
_NUMBERS = (("CER", "cer", "descending"), ("confidence", "confidence", "ascending"))


@dataclass(frozen=True)
class Shown:
    """A clip of the page. reason: None for one that is doubtful only."""

    id: str
    place: str
    reason: str | None
    value: str | float | None  # what else there is to say of it
    audio: str | None  # None: there is none that could be opened
    written: str | None
    heard: str | None = None  # None: nobody listened
    cer: float | None = None
    confidence: float | None = None  # of who heard the text, from 0 to 1


def clips_to_show(
    entries: Iterable[Utterance | Rejected],
    rejected: Sequence[Rejected],
    findings: Iterable[Finding],
) -> list[Shown]:
    """The rejected in their order, then what is doubtful, the worst first."""
    utterances = {entry.place: entry for entry in entries if isinstance(entry, Utterance)}
    shown = [_out(entry, utterances.get(entry.place)) for entry in rejected]
    places = {entry.place for entry in rejected}
    doubtful = []
    for finding in findings:
        utterance, is_fit = finding.utterance, finding.fault is None
        if is_fit and utterance.place not in places and (finding.is_doubtful or _unsure(utterance)):
            clip = _doubtful(utterance)
            heard, cer = finding.heard, finding.cer
            doubtful.append(replace(clip, audio=finding.audio, heard=heard, cer=cer))
    doubtful.sort(key=lambda clip: -(clip.cer or 0))
    places |= {clip.place for clip in doubtful}
    unsure = []
    for utterance in utterances.values():
        if _unsure(utterance) and utterance.place not in places:
            unsure.append(_doubtful(utterance))
    unsure.sort(key=lambda clip: clip.confidence or 0)
    return [*shown, *doubtful, *unsure]


def _out(entry: Rejected, utterance: Utterance | None) -> Shown:
    details = entry.details
    audio, written = details.get("audio"), details.get("written")
    heard, confidence = details.get("heard"), details.get("confidence")
    if utterance is not None:
        audio, written = audio or str(utterance.audio), written or utterance.text
        if utterance.transcription is not None:
            confidence = utterance.transcription.confidence
    # A rate of errors, or what was heard, stands in a column of its own.
    value = None if "cer" in details or entry.value == heard else entry.value
    shown = Shown(entry.id, entry.place, entry.reason, value, audio, written)
    return replace(shown, heard=heard, cer=details.get("cer"), confidence=confidence)


def _unsure(utterance: Utterance) -> bool:
    return utterance.transcription is not None and bool(utterance.transcription.doubts)


def _doubtful(utterance: Utterance) -> Shown:
    audio, made = str(utterance.audio), utterance.transcription
    shown = Shown(utterance.id, utterance.place, None, None, audio, utterance.text)
    if made is None:
        return shown
    value = "; ".join(made.doubts) or None
    return replace(shown, value=value, heard=made.heard, confidence=made.confidence)


def page(
    report: Mapping[str, Any],
    shown: Sequence[Shown],
    errors: Sequence[float] | None,
    *,
    beside: Path,
    title: str,
) -> str:
    """HTML, the same for the same clips in the same places. errors: CER of each clip that was
    heard; None: nobody compared. beside: the folder that the page will lie in."""
    histogram = report["duration_s"]["histogram"]
    pictures = [_picture("clips by seconds", histogram["clips"], histogram["bin_s"])]
    if errors is not None:
        counts = [0] * (_CER_BINS + 1)
        for cer in errors:
            counts[min(_CER_BINS, int(cer * _CER_BINS + 1e-9))] += 1
        caption = "clips by errors per letter (CER); the last bar is 1 and more"
        pictures.append(_picture(caption, counts, 1 / _CER_BINS))
    out = [clip for clip in shown if clip.reason is not None]
    doubtful = [clip for clip in shown if clip.reason is None]
    notes = []
    for clips, name in ((out, "rejected"), (doubtful, "doubtful")):
        if len(clips) > _MAX_CLIPS:
            notes.append(f"{_MAX_CLIPS} of {len(clips)} {name} clips are shown.")
    was_heard = errors is not None or bool(doubtful)
    if was_heard:
        notes.append("Recognisers err too: listen. Doubtful clips are among the rows.")
    lines = _lines(report, len(doubtful) if was_heard else None)
    clips = [*out[:_MAX_CLIPS], *doubtful[:_MAX_CLIPS]]
    numbers = []
    for name, key, first in _NUMBERS:
        if any(getattr(clip, key) is not None for clip in clips):
            numbers.append((name, key, first))
    return form.page(
        title=f"Corpus: {title}",
        before="\n".join(
            [form.summary(lines, label="Counts"), '<div class="pictures">', *pictures, "</div>"]
        ),
        heading="Rejected and doubtful clips",
        notes=form.small(notes),
        order="Rejected ones in the order of the corpus, then doubtful ones, the worst first.",
        heads=_heads(numbers),
        rows=(_row(clip, [key for _, key, _ in numbers], beside) for clip in clips),
    )


def _lines(report: Mapping[str, Any], num_doubtful: int | None) -> Iterator[tuple[str, str]]:
    accepted = report["accepted"]
    yield "accepted", f"{accepted['clips']} clips, {accepted['hours']:.2f} h"
    dialogues = report.get("dialogues")
    if dialogues is not None:
        yield "dialogues", dialogue_total(dialogues)
        for count, about in dialogue_counts(dialogues):
            yield f"· {about}", str(count)
    if num_doubtful is not None:
        yield "of them doubtful", str(num_doubtful)
    yield "rejected", str(report["rejected"]["clips"])
    for reason, count in report["rejected"]["reasons"].items():
        yield f"· {reason}", str(count)


def _picture(caption: str, counts: Sequence[int], bin_width: float) -> str:
    """A histogram from 0, as SVG."""
    num_bins, highest = max(1, len(counts)), max([1, *counts])
    width = _WIDTH / num_bins
    html = [f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" width="{_WIDTH}" role="img"']
    html.append(f' aria-label="{text(caption)}">')
    for number, count in enumerate(counts):
        height = _HEIGHT * count / highest
        begin, end = number * bin_width, (number + 1) * bin_width
        html.append(
            f'<rect x="{number * width:.2f}" y="{_HEIGHT - height:.2f}" width="{0.9 * width:.2f}"'
            f' height="{height:.2f}"><title>{begin:g} to {end:g}: {count}</title></rect>'
        )
    html.append(f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/>')
    step = max(1, math.ceil(num_bins / 6))
    for number in range(0, num_bins, step):
        place = f'x="{number * width:.2f}" y="{_HEIGHT + _FOOT - 5}"'
        html.append(f"<text {place}>{number * bin_width:g}</text>")
    html.append(f"</svg><figcaption>{text(caption)}; highest {highest}</figcaption></figure>")
    return "\n".join(html)


def _heads(numbers: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    buttons = [
        form.button("clip", "id", first="ascending", kind="text"),
        form.button("state", "state", first="ascending", kind="text"),
        *(form.button(name, key, first=first) for name, key, first in numbers),
    ]
    heard = "heard: <del>not</del>, <ins>instead or too</ins>"
    for head in (*buttons, "recording", "written", heard):
        yield f'<th scope="col">{head}</th>'


def _row(clip: Shown, numbers: Sequence[str], beside: Path) -> str:
    state = "doubtful" if clip.reason is None else clip.reason
    html = [f'<tr><th scope="row" data-id="{text(clip.id)}"><p><bdi>{text(clip.id)}</bdi></p>']
    html += [f'<p class="small"><bdi>{text(clip.place)}</bdi></p></th>']
    html += [f'<td data-state="{text(state)}">']
    html += [f'<p class="{"error" if clip.reason else "small"}">{text(state)}</p>']
    if clip.value is not None:
        html.append(f'<p class="small" dir="auto">{text(str(clip.value))}</p>')
    html.append("</td>")
    for key in numbers:
        number = getattr(clip, key)
        html.append(
            "<td></td>"
            if number is None
            else f'<td data-{key}="{number:.4f}">{100 * number:.1f} %</td>'
        )
    player = '<p class="small">no recording</p>'
    if clip.audio is not None:
        player = form.player(clip.audio, label=f"recording of {clip.id}", folder=beside)
    html.append(f"<td>{player}</td>")
    html.append(f'<td><p dir="auto">{text(clip.written or "")}</p></td>')
    html.append(f'<td><p dir="auto">{_marked(clip)}</p></td></tr>')
    return "\n".join(html)


def _marked(clip: Shown) -> str:
    """What was heard, word by word, with what is written only and what is heard only."""
    if clip.heard is None or clip.written is None:
        return text(clip.heard or "")
    a, b = clip.written.split(), clip.heard.split()
    matched = SequenceMatcher(None, list(map(_bare, a)), list(map(_bare, b)), autojunk=False)
    html = []
    for tag, i, j, k, m in matched.get_opcodes():
        lost, extra = text(" ".join(a[i:j])), text(" ".join(b[k:m]))
        if tag == "equal":
            html.append(extra)
            continue
        if lost:
            html.append(f"<del>{lost}</del>")
        if extra:
            html.append(f"<ins>{extra}</ins>")
    return " ".join(html)


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word).lower()
