"""A summary, the scores of its items and their clips -> report.html, a page to listen.

Rows are sentences, columns are systems, what they are compared with first. All clips lie below the
folder of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from plugins.evaluation import report
from plugins.evaluation.journal import flat
from plugins.evaluation.run import Clip
from plugins.evaluation.scores import METRICS, column
from plugins.hearing import page as form
from plugins.hearing.page import text
from plugins.hearing.takes import Take, take_lines
from plugins.hearing.text import align, whisper_style

PAGE = "report.html"
_REFERENCES = (report.TRUTH, report.CODEC)  # the columns that others are compared with
_LEGEND = """\
<p>What a recogniser heard, as its errors are counted: <del>left out</del>, <ins>added</ins>,
<span class="other"><del>asked</del><ins>heard instead</ins></span>. Recognisers err too: listen.
</p>"""

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
    names = [name for name in _REFERENCES if name in summary["systems"]]
    names += [name for name in summary["systems"] if name not in _REFERENCES]
    notes = [note.replace("**", "") for note in report.notes(summary)]
    if summary["differences"]:
        notes.insert(0, f"*: {report.STAR}")
    heads, *means = report.cells(summary, names)
    before = ["<h2>Means</h2>", f"<p>{text(report.intervals(summary))}</p>"]
    before += [form.summary(means, label="Means", heads=heads), form.small(notes)]
    shown = {name: clips[name] for name in names}
    return form.page(
        title=f"Evaluation: {', '.join(made_of.values())}",
        before="\n".join(before),
        heading="Sentences",
        notes=_LEGEND,
        order="In the order of the data set.",
        heads=['<th scope="col">sentence</th>', *(_heading(name, rows) for name in names)],
        rows=_sentences(summary, rows, shown, folder),
        after=_facts(summary, clips, made_of),
    )


def _sentences(
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    clips: Mapping[str, Sequence[Clip]],
    folder: Path,
) -> Iterator[str]:
    # A list for each row: nobody counts positions twice.
    for row, *of_row in zip(rows, *clips.values(), strict=True):
        label = " · ".join(filter(None, (row["id"], row["speaker"])))
        html = ['<tr><th scope="row">', f'<p dir="auto">{text(row["text"])}</p>']
        html += [f'<p class="small"><bdi>{text(label)}</bdi></p>', "</th>"]
        for name, clip in zip(clips, of_row, strict=True):
            html.append(_cell(name, row, clip, folder, summary["settings"]["language"]))
        yield "\n".join([*html, "</tr>"])


def _heading(name: str, rows: Sequence[Row]) -> str:
    """With a button for each score that the system has at all; the worst comes first."""
    html = f'<th scope="col">{text(name)}<br>'
    for metric in METRICS:
        if any(column(rows, name, metric)):
            first = "ascending" if metric.better == "higher" else "descending"
            label = f"{metric.title} of {name}"
            html += form.button(metric.title, metric.name, first=first, label=label)
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
        html.append(f'<p class="error" dir="auto">failed: {text(error)}</p>')
    elif clip.path is not None:
        html.append(form.player(clip.path, label=f"{name}: {row['id']}", folder=folder))
    if "transcript" in said and not said["error"]:
        marked = _marked(row["text"], said["transcript"], language)
        html.append(f'<p dir="auto" lang="{text(language)}">{marked}</p>')
    html.append(f'<p class="small">{text(" · ".join(shown))}</p>')
    for line in take_lines([Take(**take) for take in said.get("takes", ())]):
        html.append(f'<p class="small">{text(line)}</p>')
    return "\n".join([*html, "</td>"])


def _marked(said: str, transcript: str, language: str) -> str:
    """What was heard, with what was not and what should not have been, as WER counts them."""
    html = []
    for stretch in align(whisper_style(said, language), whisper_style(transcript, language)):
        asked, heard = text(" ".join(stretch.asked)), text(" ".join(stretch.heard))
        if not stretch.num_errors:
            html.append(heard)
        elif not heard:
            html.append(f"<del>{asked}</del>")
        elif not asked:
            html.append(f"<ins>{heard}</ins>")
        else:
            for wanted, instead in zip(stretch.asked, stretch.heard, strict=True):
                pair = f"<del>{text(wanted)}</del><ins>{text(instead)}</ins>"
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
    html = ["<footer>", "<h2>How it was made</h2>", "<dl>"]
    for name, value in facts.items():
        if value is not None:
            html.append(f"<dt>{text(name)}</dt><dd>{text(str(value))}</dd>")
    return "\n".join([*html, "</dl>", "</footer>"])
