"""What a user can mend, said in one line.

Every command prints such an error without a traceback and leaves nothing half written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_NAMES = 40  # MS-SWIFT has five hundred flags


class UserError(ValueError):
    """Wrong input, with the place, the value, the reason and the remedy in one line."""


def problem(*, source: str, field: str, value: object, reason: str, remedy: str) -> UserError:
    """A `UserError` for `field` at `source` (a file, or `file:line`).

    For example ``train.jsonl:17: audios[0]: 'a.wav' not found; mend the path``. A value that is not
    there is not shown: ``command line: --model is missing; give it``.
    """
    if value is None:
        return UserError(f"{source}: {field} {reason}; {remedy}")
    shown = repr(value)
    # A value may be a whole message or a list of weights; both of its ends say which.
    if len(shown) > 120:
        shown = shown[:100] + "..." + shown[-15:]
    return UserError(f"{source}: {field}: {shown} {reason}; {remedy}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the closest known one, or the list, unless it is endless."""
    names = sorted(known)
    if not names:
        return "leave it out"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(names) > _MOST_NAMES:
        return "check its spelling"
    return f"use one of {', '.join(names)}"
