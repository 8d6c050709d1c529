"""How large the entries of a stranger's config may be: a hundred bytes of JSON can ask for a
hundred million layers, or for a pattern that is tried for years.

    content of a JSON file --check_sizes-->   nothing, or a UserError that names file and entry
    a pattern of peft      --check_pattern-->

Bounds are far above what any such model has. What fits the weights beside the config is found out
where these are read (`plugins.model.weights`, `plugins.audio.codec`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.errors import UserError, problem

MAX_NUMBER = 10**12
MAX_LAYERS = 1000  # also of labels and codebooks, each of which is built one by one
MAX_ENTRIES = 10_000  # of a list or an object
# A pattern tries every way to share a name out among its repeats.
MAX_REPEATS = 4
MAX_PATTERN = 4000

_COUNTS = ("num_labels", "n_codebooks", "num_codebooks", "n_q")
_REMEDY = "download the file again"


def check_sizes(file: Path, fields: dict[str, Any]) -> None:
    """Raise UserError for a number, list or object in `fields`, the content of `file`, that is
    larger than any model needs, and for a number that is none."""
    for path, name, value in entries(fields):
        if isinstance(value, dict | list) and len(value) > MAX_ENTRIES:
            reason = f"has {len(value)} entries, more than {MAX_ENTRIES}"
            raise _wrong(file, path, "...", reason)
        if isinstance(value, list) and name.endswith(("ratios", "strides", "dilations", "kernel")):
            _check_number(file, path, len(value), MAX_LAYERS)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                is_count = name in _COUNTS or name.endswith("_layers")
                _check_number(file, path, number, MAX_LAYERS if is_count else MAX_NUMBER)


def _check_number(file: Path, path: str, number: float, largest: int) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise _wrong(file, path, number, "is no finite number")
    if abs(number) > largest:
        # More digits than Python writes would raise an error of its own.
        shown = number if abs(number) < 10**100 else "a number of more than 100 digits"
        raise _wrong(file, path, shown, f"is more than {largest}")


def check_pattern(file: Path, path: str, pattern: object) -> None:
    """Raise UserError for a regular expression that could be tried for ever: repeats inside
    repeats, alternatives inside repeats, or more than `MAX_REPEATS` in a row."""
    if not isinstance(pattern, str):
        return
    if len(pattern) > MAX_PATTERN:
        raise _wrong(file, path, pattern, f"has more than {MAX_PATTERN} characters")
    try:
        parsed: Any = _parser().parse(pattern)
        num_repeats = _num_repeats(parsed, is_repeated=False)
    except (re.error, OverflowError, RecursionError) as error:
        raise _wrong(file, path, pattern, f"is no pattern ({error})") from None
    if num_repeats > MAX_REPEATS:
        reason = "takes too long to match: repeats in repeats, or too many of them"
        raise problem(
            source=str(file),
            field=path,
            value=pattern,
            reason=reason,
            remedy="list the names of the modules",
        )


def entries(fields: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Path with dots, name and value of each entry at any depth."""
    waiting: list[tuple[str, Any]] = [("", fields)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, dict):
            for name, entry in value.items():
                yield f"{prefix}{name}", name, entry
                waiting.append((f"{prefix}{name}.", entry))
        elif isinstance(value, list):
            waiting += [(f"{prefix}{i}.", entry) for i, entry in enumerate(value)]


def _parser() -> Any:
    """The parser of `re`, which went by another name before Python 3.11."""
    try:
        from re import _parser  # type: ignore[attr-defined]
    except ImportError:
        import sre_parse as _parser
    return _parser


def _num_repeats(parsed: Any, *, is_repeated: bool) -> float:
    """The most repeats on one way through a parsed pattern; infinite if one holds another."""
    total: float = 0
    for kind, argument in parsed:
        name = str(kind)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = argument
            if is_repeated:
                return math.inf
            total += _num_repeats(inner, is_repeated=int(most) > 1) + (least != most)
        elif name == "BRANCH":
            if is_repeated:
                return math.inf
            ways = [_num_repeats(way, is_repeated=False) for way in argument[1]]
            total += max(ways)
        elif name == "SUBPATTERN":
            total += _num_repeats(argument[-1], is_repeated=is_repeated)
        elif name in ("ASSERT", "ASSERT_NOT"):
            total += _num_repeats(argument[1], is_repeated=is_repeated)
        elif name == "ATOMIC_GROUP":
            total += _num_repeats(argument, is_repeated=is_repeated)
        elif name == "GROUPREF_EXISTS":
            for way in argument[1:]:
                total += _num_repeats(way or [], is_repeated=is_repeated)
    return total


def _wrong(file: Path, path: str, value: object, reason: str) -> UserError:
    return problem(source=str(file), field=path, value=value, reason=reason, remedy=_REMEDY)
