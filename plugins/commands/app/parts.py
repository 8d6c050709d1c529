"""What the tabs have in common: one line for what a user can mend, fields that take uploads only.
Needs Gradio."""

from __future__ import annotations

import errno
import html
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from plugins.errors import UserError

Values = dict[Any, Any]  # component -> what it holds
# For listeners that no user waits for, and that are no interface of the server.
BESIDE: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
    "trigger_mode": "always_last",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def errors_in_page() -> Iterator[None]:
    """What the user can mend becomes one line in the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(_shown(str(error))), print_exception=False) from None
    except OSError as error:
        raise gr.Error(html.escape(in_words(error)), print_exception=False) from None


def in_words(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return _shown(str(error))
    if error.errno in _FULL:
        return "the disk is full: make room, then do it again; nothing is half written"
    return f"{Path(str(error.filename or 'disk')).name}: {error.strerror or error}"


def _shown(message: str) -> str:
    """Whatever names an upload names it by where uploads happen to lie; "..." stands for the middle
    of a long path."""
    folder = re.escape(os.environ["GRADIO_TEMP_DIR"])
    return re.sub(rf"{folder}/([0-9a-f.]+/)?", "", message)


def only_uploads(field: gr.Audio | gr.File) -> None:
    """Gradio downloads what a request calls a recording if it is a URL. On the instance, because
    Gradio writes a file beside the source of every class of components."""
    keep = field.async_move_resource_to_block_cache

    async def refusing(url_or_file_path: str | Path | None) -> str | None:
        if url_or_file_path is not None and not os.path.isabs(url_or_file_path):
            raise gr.Error("recordings are uploaded, not named", print_exception=False)
        return await keep(url_or_file_path)

    field.async_move_resource_to_block_cache = refusing  # type: ignore[method-assign]
