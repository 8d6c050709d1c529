"""Which files of the workspace a browser may fetch by their path: what listening pages are made of.

Gradio serves whatever lies below an allowed folder, and as a page of its own; this stands before
it. Knows no Gradio."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from plugins.audio.waveforms import AUDIO_SUFFIXES

_ROUTE = re.compile(r".*/file=(.*)", re.DOTALL)
_PAGE = re.compile(r"(.+\.)?report\.html")  # of `evaluate` and `prepare`
# As the pages say of themselves: a stranger's file of the same name runs nothing either. Only ours
# is let through by its own line, which holds the hash of its script.
_POLICY = (
    b"default-src 'none'; media-src 'self'; style-src 'unsafe-inline';"
    b" script-src 'sha256-%s'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_REFUSAL = b"only listening pages and what they play are served from the workspace\n"


class OnlyReports:
    """ASGI: other files of the folder `root` are answered with status 403."""

    def __init__(self, app: Callable[..., Awaitable[None]], root: Path) -> None:
        self._app, self._root = app, root
        self._policy = _POLICY % _script_hash()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        match = _ROUTE.fullmatch(scope.get("path", ""))
        if scope["type"] != "http" or match is None or not self._is_below(match[1]):
            await self._app(scope, receive, send)
        elif not self._is_served(match[1]):
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})
        else:
            await self._app(scope, receive, self._guarded(send, match[1]))

    def _is_below(self, path: str) -> bool:
        # As it is named, and as it is: uploads of Gradio may lie in a workspace too.
        names = (os.path.abspath(path), os.path.realpath(path))
        return any(Path(name).is_relative_to(self._root) for name in names) and not _is_upload(path)

    def _is_served(self, path: str) -> bool:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self._root):
            return False
        relative = real.relative_to(self._root)
        if any(part.startswith(".") for part in relative.parts):
            return False
        return real.suffix.lower() in AUDIO_SUFFIXES or bool(_PAGE.fullmatch(real.name))

    def _guarded(self, send: Any, path: str) -> Any:
        async def guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and path.endswith(".html"):
                headers = [*message["headers"], (b"content-security-policy", self._policy)]
                message = {**message, "headers": headers}
            await send(message)

        return guarded


def _is_upload(path: str) -> bool:
    folder = os.environ.get("GRADIO_TEMP_DIR")
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(folder)


def _script_hash() -> bytes:
    from plugins.hearing.page import page

    text = page(title="", before="", heading="", notes="", order="", heads=(), rows=())
    match = re.search(r"script-src 'sha256-([^']+)'", text)
    assert match is not None
    return match[1].encode()
