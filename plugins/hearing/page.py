"""Clips and what is said of them -> report.html, a page to listen, sorted by any of its scores.

It lies beside what it reports of and links to the clips where they are, asks no host, and opens
from a disk. All that it shows comes from corpora, recognisers and file names of strangers: `text`
makes text of it. The form stands in page.html."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote


def page(
    *,
    title: str,
    before: str,
    heading: str,
    notes: str,
    order: str,
    heads: Iterable[str],
    rows: Iterable[str],
    after: str = "",
) -> str:
    """HTML. before, notes, after: HTML above the clips, below their heading, and below them. order:
    that of the rows. heads, rows: HTML, a ``<th>`` each and a ``<tr>`` each."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = hashlib.sha256(script[1].encode()).digest()
    clips = ["<thead><tr>", *heads, "</tr></thead>", "<tbody>", *rows, "</tbody>"]
    return Template(template).substitute(
        script_hash=base64.b64encode(digest).decode(),
        title=text(title),
        before=before,
        heading=text(heading),
        notes=notes,
        order=text(order),
        clips="\n".join(clips),
        after=after,
    )


def text(value: str) -> str:
    """`value` as HTML that shows it, without what no file in UTF-8 may hold."""
    return escape(value.encode("utf-8", "backslashreplace").decode())


def small(notes: Iterable[str]) -> str:
    """A paragraph for each."""
    return "\n".join(f'<p class="small">{text(note)}</p>' for note in notes)


def summary(lines: Iterable[Sequence[str]], *, label: str, heads: Sequence[str] = ()) -> str:
    """A table of texts, each line with its title first."""
    html = [f'<div class="scroll" role="region" aria-label="{text(label)}" tabindex="0">']
    html.append('<table id="summary">')
    if heads:
        html += ["<thead><tr>", *(f'<th scope="col">{text(head)}</th>' for head in heads)]
        html.append("</tr></thead>")
    html.append("<tbody>")
    for title, *cells in lines:
        html += [f'<tr><th scope="row">{text(title)}</th>']
        html += [f"<td>{text(cell)}</td>" for cell in cells]
        html.append("</tr>")
    return "\n".join([*html, "</tbody>", "</table>", "</div>"])


def button(
    title: str, key: str, *, first: str, kind: str = "number", label: str | None = None
) -> str:
    """Sorts by ``data-key`` of the cells below it; the script of the page shows and obeys it.

    first: ascending or descending, which a second click turns round. kind: number or text."""
    return (
        f'<button type="button" hidden aria-pressed="false" data-key="{key}" data-kind="{kind}"'
        f' data-first="{first}" aria-label="{text(label or title)}">{text(title)}</button>'
    )


def player(audio: str | Path, *, label: str, folder: Path) -> str:
    """Of the clip `audio`. folder: where the page will lie."""
    link = os.path.relpath(os.path.realpath(audio), os.path.realpath(folder))
    return (
        f'<audio controls preload="none" src="{quote(os.fsencode(link))}"'
        f' aria-label="{text(label)}"></audio>'
    )
