"""A summary, the scores of its items and their clips -> report.html, a page to listen.

It lies beside the clips and links to them, asks no host, and opens from a disk. Rows are sentences,
columns are systems, what they are compared with first. All that it shows comes from data sets,
recognisers and file names of strangers, and is written as text. The form stands in page.html."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from plugins.evaluation import report
from plugins.evaluation.run import Clip, flat
from plugins.evaluation.scores import METRICS, column
from plugins.hearing.text import align, whisper_style

PAGE = "report.html"
_REFERENCES = (report.TRUTH, report.CODEC)  # the columns that others are compared with

Row = Mapping[str, Any]


def page(
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    clips: Mapping[str, Sequence[Clip]],
    *,
    folder: Path,
    made_of: Mapping[str, str],
) -> str:
    """HTML. clips: of each system one per row, all of them below `folder`. made_of: names of the
    model, the data set ..., for the foot."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = hashlib.sha256(script[1].encode()).digest()
    names = [name for name in _REFERENCES if name in summary["systems"]]
    names += [name for name in summary["systems"] if name not in _REFERENCES]
    notes = [note.replace("**", "") for note in report.notes(summary)]
    if summary["differences"]:
        notes.insert(0, f"*: {report.STAR}")
    return Template(template).substitute(
        script_hash=base64.b64encode(digest).decode(),
        title=escape(", ".join(made_of.values())),
        intervals=escape(report.intervals(summary)),
        summary=_summary(report.cells(summary, names)),
        notes="\n".join(f'<p class="small">{escape(note)}</p>' for note in notes),
        sentences=_sentences(summary, rows, {name: clips[name] for name in names}, folder),
        facts=_facts(summary, clips, made_of),
    )


def _summary(lines: Sequence[Sequence[str]]) -> str:
    heads, *body = lines
    html = ["<thead><tr>", *(f'<th scope="col">{escape(head)}</th>' for head in heads)]
    html += ["</tr></thead>", "<tbody>"]
    for title, *cells in body:
        html += [f'<tr><th scope="row">{escape(title)}</th>']
        html += [f"<td>{escape(cell)}</td>" for cell in cells]
        html += ["</tr>"]
    return "\n".join([*html, "</tbody>"])


def _sentences(
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    clips: Mapping[str, Sequence[Clip]],
    folder: Path,
) -> str:
    html = ["<thead><tr>", '<th scope="col">sentence</th>']
    html += [_heading(name, rows) for name in clips]
    html += ["</tr></thead>", "<tbody>"]
    # A list for each row: nobody counts positions twice.
    for row, *of_row in zip(rows, *clips.values(), strict=True):
        label = " · ".join(filter(None, (row["id"], row["speaker"])))
        html += ['<tr><th scope="row">', f'<p dir="auto">{escape(row["text"])}</p>']
        html += [f'<p class="small"><bdi>{escape(label)}</bdi></p>', "</th>"]
        for name, clip in zip(clips, of_row, strict=True):
            html.append(_cell(name, row, clip, folder, summary["settings"]["language"]))
        html.append("</tr>")
    return "\n".join([*html, "</tbody>"])


def _heading(name: str, rows: Sequence[Row]) -> str:
    """With a button for each score that the system has at all; a script shows and obeys them."""
    html = f'<th scope="col">{escape(name)}<br>'
    for metric in METRICS:
        if not any(column(rows, name, metric)):
            continue
        worst = "ascending" if metric.better == "higher" else "descending"
        html += (
            f'<button type="button" hidden aria-pressed="false" data-score="{metric.name}"'
            f' data-worst="{worst}" aria-label="{escape(f"{metric.title} of {name}")}">'
            f"{escape(metric.title)}</button>"
        )
    return html + "</th>"


def _cell(name: str, row: Row, clip: Clip, folder: Path, language: str) -> str:
    said = row["systems"].get(name)
    if said is None:
        return '<td><p class="small">no recording</p></td>'
    values, shown = "", []
    for metric in METRICS:
        value = said.get(metric.name)
        # Without words there is no rate of their errors.
        if value is not None:
            values += f' data-{metric.name}="{value:.6f}"'
            shown.append(f"{metric.title} {report.shown(value, metric)}")
    html = [f"<td{values}>"]
    error = said["error"] or clip.error
    if error:
        html.append(f'<p class="error" dir="auto">failed: {escape(error)}</p>')
    elif clip.path is not None:
        link = quote(os.fsencode(_relative(clip.path, folder)))
        label = escape(f"{name}: {row['id']}")
        html.append(f'<audio controls preload="none" src="{link}" aria-label="{label}"></audio>')
    if "transcript" in said and not said["error"]:
        marked = _marked(row["text"], said["transcript"], language)
        html.append(f'<p dir="auto" lang="{escape(language)}">{marked}</p>')
    html.append(f'<p class="small">{escape(" · ".join(shown))}</p>')
    return "\n".join([*html, "</td>"])


def _marked(text: str, transcript: str, language: str) -> str:
    """What was heard, with what was not and what should not have been, as WER counts them."""
    html = []
    for stretch in align(whisper_style(text, language), whisper_style(transcript, language)):
        asked, heard = escape(" ".join(stretch.asked)), escape(" ".join(stretch.heard))
        if not stretch.num_errors:
            html.append(heard)
        elif not heard:
            html.append(f"<del>{asked}</del>")
        elif not asked:
            html.append(f"<ins>{heard}</ins>")
        else:
            for wanted, instead in zip(stretch.asked, stretch.heard, strict=True):
                pair = f"<del>{escape(wanted)}</del><ins>{escape(instead)}</ins>"
                html.append(f'<span class="other">{pair}</span>')
    return " ".join(html)


def _facts(
    summary: Mapping[str, Any], clips: Mapping[str, Sequence[Clip]], made_of: Mapping[str, str]
) -> str:
    facts: dict[str, Any] = dict(made_of)
    written_s = []
    for of_system in clips.values():
        written_s += [clip.path.stat().st_mtime for clip in of_system if clip.path is not None]
    # Not the day of the page: of the same clips it is the same page.
    if written_s:
        facts["date"] = datetime.fromtimestamp(max(written_s), timezone.utc).date().isoformat()
    facts |= flat(summary["settings"])
    for name, identity in summary["scorers"].items():
        facts[f"scorer {name}"] = identity
    html = []
    for name, value in facts.items():
        if value is not None:
            html.append(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>")
    return "\n".join(html)


def _relative(path: Path, folder: Path) -> Path:
    return Path(os.path.realpath(path)).relative_to(os.path.realpath(folder))
