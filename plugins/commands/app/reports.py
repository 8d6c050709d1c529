"""Listening pages of the workspace inside the page."""

from __future__ import annotations

import html
import os
from pathlib import Path
from urllib.parse import quote

from plugins.commands.app.workspace import Workspace


def framed(workspace: Workspace, report: Path) -> str:
    """HTML that shows `report`, and a link to it alone; empty if it is not there."""
    if not report.is_file() or not report.resolve().is_relative_to(workspace.root):
        return ""
    # Relative: behind a proxy the page may lie below another path. Changed each time, as browsers
    # would show the report of before.
    version = os.stat(report).st_mtime_ns
    address = html.escape(f"gradio_api/file={quote(str(report.resolve()))}?v={version}")
    name = html.escape(workspace.word(report.resolve()))
    link = f'<a href="{address}" target="_blank" rel="noopener">{name}</a>'
    frame = f'<iframe src="{address}" title="{name}" loading="lazy"'
    return f'<p>{link}</p>{frame} style="width: 100%; height: 640px; border: 0"></iframe>'
