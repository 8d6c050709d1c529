"""What a user can mend, said in one line. L0.

Every command prints such an error without a traceback and leaves nothing half written.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Wrong input, with the place, the value, the reason and the remedy in one line."""


def problem(where: str, field: str, value: object, reason: str, remedy: str) -> UserError:
    """A `UserError` for `field` at `where` (a file, or `file:line`).

    >>> str(problem("train.jsonl:17", "audios[0]", "a.wav", "not found", "mend the path"))
    "train.jsonl:17: audios[0]: 'a.wav' not found; mend the path"
    """
    shown = repr(value)
    if len(shown) > 120:
        shown = shown[:100] + "..." + shown[-15:]
    return UserError(f"{where}: {field}: {shown} {reason}; {remedy}")


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in `file`. Raises UserError with `remedy` if it cannot be read, is damaged or holds anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise problem(str(file), "file", file.name, f"cannot be read ({error.strerror})", remedy) from None
    except (ValueError, RecursionError) as error:
        raise problem(str(file), "line", str(error), "is no JSON", remedy) from None
    if not isinstance(found, dict):
        raise problem(str(file), "content", found, "is no JSON object", remedy)
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the closest known one, or the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names)}"
