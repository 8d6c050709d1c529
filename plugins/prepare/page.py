"""The report of a corpus, its rejected and its doubtful clips -> report.html, a page to listen.

It lies beside the rows and links to the recordings where they are, asks no host, and opens from a
disk. All that it shows comes from corpora, recognisers and file names of strangers, and is written
as text. The form stands in page.html."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from plugins.corpora import Rejected, Utterance
from plugins.prepare.transcripts import Finding

_MAX_CLIPS = 1000  # shown of either kind: a browser holds a few thousand players
_WIDTH, _HEIGHT, _FOOT = 360, 150, 18  # pixels of a picture, and of the numbers below it
_CER_BINS = 20  # to 1, of 0.05
# Title, key of the rows, kind of its values, first order.
_SORTED_BY = (
    ("clip", "id", "text", "ascending"),
    ("state", "reason", "text", "ascending"),
    ("CER", "cer", "number", "descending"),
)


@dataclass(frozen=True)
class Shown:
    """A clip of the page. reason: None for one that is doubtful only."""

    id: str
    place: str
    reason: str | None
    value: str | float | None
    audio: str | None  # None: there is none that could be opened
    written: str | None
    heard: str | None = None  # None: nobody listened
    cer: float | None = None
    language: str = ""


def clips_to_show(
    entries: Iterable[Utterance | Rejected],
    rejected: Iterable[Rejected],
    findings: Iterable[Finding],
) -> list[Shown]:
    """The rejected in their order, then what is doubtful, the worst first."""
    utterances = {entry.place: entry for entry in entries if isinstance(entry, Utterance)}
    shown = []
    for entry in rejected:
        details = entry.details
        audio, written = details.get("audio"), details.get("written")
        utterance = utterances.get(entry.place)
        if utterance is not None:
            audio, written = audio or str(utterance.audio), written or utterance.text
        # A value that is a rate of errors stands in a column of its own.
        value = None if "cer" in details else entry.value
        clip = Shown(entry.id, entry.place, entry.reason, value, audio, written)
        clip = replace(clip, heard=details.get("heard"), cer=details.get("cer"))
        shown.append(clip)
    doubtful = [finding for finding in findings if finding.is_doubtful]
    for finding in sorted(doubtful, key=lambda finding: -finding.cer):
        utterance = finding.utterance
        shown.append(
            Shown(
                utterance.id,
                utterance.place,
                None,
                None,
                finding.audio,
                utterance.text,
                finding.heard,
                finding.cer,
                finding.language,
            )
        )
    return shown


def page(
    report: Mapping[str, Any],
    shown: Sequence[Shown],
    errors: Sequence[float] | None,
    *,
    beside: Path,
    title: str,
) -> str:
    """HTML, the same for the same clips in the same places. errors: CER of each clip that was
    heard; None: nobody listened. beside: the folder that the page will lie in."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = hashlib.sha256(script[1].encode()).digest()
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
    if errors is not None:
        notes.append("Recognisers err too: listen. Doubtful clips are among the rows.")
    return Template(template).substitute(
        script_hash=base64.b64encode(digest).decode(),
        title=escape(_text(title)),
        summary=_summary(report, len(doubtful) if errors is not None else None),
        pictures="\n".join(pictures),
        notes="\n".join(f'<p class="small">{escape(note)}</p>' for note in notes),
        clips=_table([*out[:_MAX_CLIPS], *doubtful[:_MAX_CLIPS]], beside),
    )


def _summary(report: Mapping[str, Any], num_doubtful: int | None) -> str:
    accepted = report["accepted"]
    lines = [("accepted", f"{accepted['clips']} clips, {accepted['hours']:.2f} h")]
    if num_doubtful is not None:
        lines.append(("of them doubtful", str(num_doubtful)))
    lines.append(("rejected", str(report["rejected"]["clips"])))
    for reason, count in report["rejected"]["reasons"].items():
        lines.append((f"· {reason}", str(count)))
    html = ["<tbody>"]
    for name, value in lines:
        html.append(f'<tr><th scope="row">{escape(_text(name))}</th><td>{escape(value)}</td></tr>')
    return "\n".join([*html, "</tbody>"])


def _picture(caption: str, counts: Sequence[int], bin_width: float) -> str:
    """A histogram from 0, as SVG."""
    num_bins, highest = max(1, len(counts)), max([1, *counts])
    width = _WIDTH / num_bins
    html = [f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" width="{_WIDTH}" role="img"']
    html.append(f' aria-label="{escape(caption)}">')
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
    html.append(f"</svg><figcaption>{escape(caption)}; highest {highest}</figcaption></figure>")
    return "\n".join(html)


def _table(clips: Sequence[Shown], beside: Path) -> str:
    html = ["<thead><tr>"]
    for name, key, kind, first in _SORTED_BY:
        html.append(
            f'<th scope="col"><button type="button" hidden aria-pressed="false" data-key="{key}"'
            f' data-kind="{kind}" data-first="{first}">{name}</button></th>'
        )
    html += ['<th scope="col">recording</th><th scope="col">written</th>']
    html += ['<th scope="col">heard: <del>not</del>, <ins>instead or too</ins></th>']
    html += ["</tr></thead>", "<tbody>"]
    for clip in clips:
        html.append(_row(clip, beside))
    return "\n".join([*html, "</tbody>"])


def _row(clip: Shown, beside: Path) -> str:
    state = "doubtful" if clip.reason is None else clip.reason
    values = f' data-id="{escape(_text(clip.id))}" data-reason="{escape(_text(state))}"'
    cer = ""
    if clip.cer is not None:
        values += f' data-cer="{clip.cer:.4f}"'
        cer = f"{100 * clip.cer:.1f} %"
    html = [f"<tr{values}>", f'<th scope="row"><p><bdi>{escape(_text(clip.id))}</bdi></p>']
    html += [f'<p class="small"><bdi>{escape(_text(clip.place))}</bdi></p></th>']
    html += [f'<td><p class="{"error" if clip.reason else "small"}">{escape(_text(state))}</p>']
    if clip.value is not None:
        html.append(f'<p class="small" dir="auto">{escape(_text(str(clip.value)))}</p>')
    html += ["</td>", f"<td>{cer}</td>", f"<td>{_player(clip, beside)}</td>"]
    html.append(f'<td><p dir="auto">{escape(_text(clip.written or ""))}</p></td>')
    heard = "" if clip.heard is None else _marked(clip.written or "", clip.heard)
    html.append(f'<td><p dir="auto">{heard}</p></td></tr>')
    return "\n".join(html)


def _player(clip: Shown, beside: Path) -> str:
    if clip.audio is None:
        return '<p class="small">no recording</p>'
    link = quote(os.fsencode(os.path.relpath(clip.audio, os.path.realpath(beside))))
    label = escape(_text(f"recording of {clip.id}"))
    return f'<audio controls preload="none" src="{link}" aria-label="{label}"></audio>'


def _marked(written: str, heard: str) -> str:
    """`heard`, word by word, with what is written only and what is heard only."""
    a, b = _text(written).split(), _text(heard).split()
    matched = SequenceMatcher(None, list(map(_bare, a)), list(map(_bare, b)), autojunk=False)
    html = []
    for tag, i, j, k, m in matched.get_opcodes():
        lost, extra = escape(" ".join(a[i:j])), escape(" ".join(b[k:m]))
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


def _text(text: str) -> str:
    """`text` without what no file in UTF-8 may hold."""
    return text.encode("utf-8", "backslashreplace").decode()
