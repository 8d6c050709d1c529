"""Files that appear whole or not at all, what their bytes are, and the JSON in them."""

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

from plugins.errors import UserError, problem
from plugins.files.lines import MAX_DEPTH, depth

MAX_JSON_BYTES = 64 << 20
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp", re.DOTALL)  # of `replace_when_done`


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in `file`. Raises UserError with `remedy` if it cannot be read, is damaged or
    holds anything else."""

    def wrong(field: str, value: object, reason: str) -> UserError:
        return problem(source=str(file), field=field, value=value, reason=reason, remedy=remedy)

    try:
        if (num_bytes := file.stat().st_size) > MAX_JSON_BYTES:
            raise wrong("file", file.name, f"has {num_bytes >> 20} MiB, which no such file needs")
        content = json.loads(file.read_text(encoding="utf-8"))
    except UserError:
        raise
    except OSError as error:
        raise wrong("file", file.name, f"cannot be read ({error.strerror})") from None
    # RecursionError: a hundred thousand brackets. ValueError: also bytes that are no UTF-8.
    except (ValueError, RecursionError) as error:
        raise wrong("line", str(error), "is no JSON") from None
    if not isinstance(content, dict):
        raise wrong("content", file.name, "is no JSON object")
    # Whoever reads it copies and prints it, level by level.
    if depth(content) > MAX_DEPTH:
        raise wrong("content", file.name, f"is nested more than {MAX_DEPTH} deep")
    return content


def file_hash(path: str | Path) -> str:
    """SHA-256 of the bytes of `path`, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # weights may be larger than the memory
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
    # Beside it, not in /tmp: only within a file system does a rename replace a file at once.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if synced:
            sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path, *, field: str) -> None:
    """Raise UserError, naming `field`, if no file can be written at `path`: asked before work that
    would be lost. Nothing is left behind."""

    def wrong(reason: str) -> UserError:
        remedy = "name another place"
        return problem(source="options", field=field, value=str(path), reason=reason, remedy=remedy)

    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise wrong("is a folder")
        if target.exists() and not target.is_file():
            raise wrong("is not a regular file")
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        # Under the name that `replace_when_done` writes to first, which is the longest.
        temporary = folder / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            temporary.touch()
        finally:
            temporary.unlink(missing_ok=True)
    # ValueError: a NUL, or half a character, in the name.
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise wrong(f"cannot be written ({reason})") from None


def remove_strays(paths: Iterable[str | Path]) -> None:
    """Remove what a killed `replace_when_done` left half written of `paths`, and nothing else.

    Only for a caller who knows that nobody else is writing them.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(os.path.realpath(path))
        names.setdefault(folder, set()).add(name)
    for folder, ours in names.items():
        if not os.path.isdir(folder):
            continue
        for entry in os.listdir(folder):
            match = _TEMPORARY.fullmatch(entry)
            if match and match[1] in ours:
                os.unlink(os.path.join(folder, entry))


def let_umask_decide(folder: Path) -> None:
    """Who may read the weights below `folder`: safetensors makes files that only their owner
    can."""
    umask = os.umask(0o077)  # it can be asked for only by setting it
    os.umask(umask)
    for file in folder.rglob("*.safetensors"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


def sync(path: str | Path) -> None:
    """Return once the file `path`, or the names in that folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
