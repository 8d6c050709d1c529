"""How a row names codes of a code cache: ``FOLDER#KEY``. Text only: touches no disk, needs no
torch, and knows nothing of what lies in the folder (`plugins.audio.code_cache`)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from plugins.errors import problem

_REFERENCE = re.compile(r"(.+)#([0-9a-f]{32})", re.DOTALL)


def format_reference(folder: Path, key: str, *, beside: Path) -> str:
    """``FOLDER#KEY``, relative to `beside`, the folder of the row's file."""
    return f"{os.path.relpath(folder.resolve(), beside.resolve())}#{key}"


def parse_reference(reference: str, *, beside: Path, where: str, field: str) -> tuple[Path, str]:
    """``FOLDER#KEY`` -> folder and key. Raises UserError, `field` at `where`."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or not _can_be_a_name(match[1]):
        reason = "is no FOLDER#KEY with a key of 32 hex digits"
        remedy = "write rows with prepare_dataset.py --encode_codes"
        raise problem(source=where, field=field, value=reference, reason=reason, remedy=remedy)
    return beside / match[1], match[2]


def _can_be_a_name(folder: str) -> bool:
    try:
        return b"\0" not in os.fsencode(folder)
    except UnicodeEncodeError:  # half a character
        return False
