"""Files that appear whole or not at all, what their bytes are, and the JSON in them. L0: the
standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plugins.errors import problem

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp", re.DOTALL)  # of `replace_when_done`


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in `file`. Raises UserError with `remedy` if it cannot be read, is damaged or
    holds anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise problem(
            source=str(file),
            field="file",
            value=file.name,
            reason=f"cannot be read ({error.strerror})",
            remedy=remedy,
        ) from None
    except (ValueError, RecursionError) as error:
        raise problem(
            source=str(file), field="line", value=str(error), reason="is no JSON", remedy=remedy
        ) from None
    if not isinstance(found, dict):
        raise problem(
            source=str(file),
            field="content",
            value=found,
            reason="is no JSON object",
            remedy=remedy,
        )
    return found


def file_hash(path: str | Path) -> str:
    """SHA-256 of the bytes of `path`, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replace_when_done(path: str | Path, *, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is synced to disk and takes the place of
    `path`.

    synced=False leaves `sync` to the caller, before anything relies on the file: another may be
    written meanwhile. On an error the old file stays untouched and nothing is left behind. Raises
    `UserError` if `path` is there and is no regular file: replacing ``/dev/null`` by a file would
    break the machine."""
    target = Path(os.path.realpath(path))  # write through a link instead of replacing it
    if target.exists() and not target.is_file():
        raise problem(
            source="output",
            field="path",
            value=str(path),
            reason="is not a regular file",
            remedy="name a file",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if synced:
            sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_strays(paths: Iterable[str | Path]) -> None:
    """Remove what a killed `replace_when_done` left half written of `paths`, and nothing else.

    Only for a caller who knows that nobody else is writing them.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(os.path.realpath(path))
        names.setdefault(folder, set()).add(name)
    for folder, ours in names.items():
        for entry in os.listdir(folder) if os.path.isdir(folder) else ():
            match = _TEMPORARY.fullmatch(entry)
            if match and match[1] in ours:
                os.unlink(os.path.join(folder, entry))


def sync(path: str | Path) -> None:
    """Return once the file `path`, or the names in that folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
