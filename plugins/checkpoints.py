"""Checkpoint folders on disk: which are whole, which is the newest, which may go. L3.

    checkpoint-N as MS-SWIFT wrote it --seal--> the same, on the disk, with a marker
    output folder --newest--> the checkpoint to resume from --damage--> None, or what is wrong with it

transformers writes a checkpoint file by file, so a run that is killed leaves one that looks like any other. The marker
comes last and at once, and holds size and SHA-256 of every other file: without it, or with a file that differs, a
checkpoint is not resumed from. This file knows no trainer; what is inside the files is `plugins.resume`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from plugins import audio
from plugins.errors import UserError, problem, read_json

MARKER = "higgs_audio_complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_VERSION = re.compile(r"v(\d+)-.*")  # what MS-SWIFT's --add_version appends to the output folder
_NUM_THREADS = 4  # hashing leaves the interpreter's lock alone


def seal(checkpoint: Path, *, resumable: bool) -> None:
    """Return once every file of `checkpoint` is on the disk, and then its marker; resumable: the optimizer is in it."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        hashes = list(threads.map(_synced_hash, files))
    names = [path.relative_to(checkpoint).as_posix() for path in files]
    marker = {
        "saved_at_s": time.time(),
        "resumable": resumable,
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256}
            for name, path, sha256 in zip(names, files, hashes, strict=True)
        },
    }
    for folder in {path.parent for path in files} | {checkpoint, checkpoint.parent}:
        _sync_folder(folder)
    with audio.replace_when_done(checkpoint / MARKER) as temporary:
        temporary.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    _sync_folder(checkpoint)


def discard(checkpoint: Path) -> None:
    """Remove it, marker first: killed in between, it is an incomplete one and not a damaged one."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def damage(checkpoint: Path) -> str | None:
    """Why `checkpoint` cannot be resumed from; None if every file is as it was saved. Reads all of it."""
    if not checkpoint.is_dir():
        return "is no folder"
    marker = _marker(checkpoint)
    if marker is None:
        return f"is incomplete (no valid {MARKER}: its saving was cut short, or something else saved it)"
    for name, saved in marker["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"is damaged ({name} is missing)"
        status = path.stat()
        if status.st_size != saved["bytes"]:
            return f"is damaged ({name} has {status.st_size} bytes instead of {saved['bytes']})"
        if _hash_once(str(path), status.st_size, status.st_mtime_ns) != saved["sha256"]:
            return f"is damaged ({name} has changed since it was saved)"
    if not marker["resumable"]:
        return "holds no optimizer (it was saved with save_only_model)"
    return None


def require_whole(checkpoint: Path) -> None:
    """Raise UserError if `checkpoint` cannot be resumed from."""
    if reason := damage(checkpoint):
        remedy = "name another checkpoint, or `auto` for the newest whole one"
        raise problem("options", "resume_from_checkpoint", str(checkpoint), reason, remedy)


def newest(output_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of `output_dir` and of the version folders in it; `warn` is told of newer others."""
    folders = [output_dir, *(path for path in output_dir.glob("v*-*") if _VERSION.fullmatch(path.name))]
    found = [(_version(folder), *_age(path), path) for folder in folders for path in _checkpoints(folder)]
    for *_, path in sorted(found, reverse=True):
        reason = damage(path)
        if reason is None:
            return path
        warn(f"{path} {reason}: not resumed from, left as it is")
    return None


def rotate(saved: Path, *, limit: int | None, best: str | None) -> None:
    """Keep `limit` whole checkpoints beside and with `saved`, which was just sealed, and the best one.

    Without a limit nothing is removed. `saved` is never removed; what an earlier removal has left is.
    """
    if not limit or limit <= 0:
        return
    protected = {saved} | ({Path(best)} if best else set())
    whole: list[Path] = []
    broken: list[Path] = []
    for path in sorted(_checkpoints(saved.parent), key=_age):
        (broken if _marker(path) is None else whole).append(path)
    surplus = len(whole) - max(limit, len(protected))
    removable = [path for path in whole if path not in protected]
    for path in broken + removable[: max(surplus, 0)]:
        discard(path)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]


def _version(folder: Path) -> int:
    match = _VERSION.fullmatch(folder.name)
    return int(match[1]) if match else -1


def _age(checkpoint: Path) -> tuple[float, int]:
    """Sorts checkpoints of one folder from old to new. Not by step: a run may have been started anew in the folder."""
    marker = _marker(checkpoint)
    return (marker["saved_at_s"] if marker else float("inf")), int(checkpoint.name.partition("-")[2])


def _marker(checkpoint: Path) -> dict[str, Any] | None:
    try:
        marker = read_json(checkpoint / MARKER, "")
        # Touched once, so that a damaged one is told from a valid one here and nowhere else.
        for name, saved in marker["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return None
            int(saved["bytes"]), str(saved["sha256"])
        return {**marker, "saved_at_s": float(marker["saved_at_s"]), "resumable": bool(marker["resumable"])}
    except (UserError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _synced_hash(path: Path) -> str:
    audio.sync(path)
    return audio.file_hash(path)


@lru_cache(maxsize=4096)
def _hash_once(path: str, num_bytes: int, mtime_ns: int) -> str:
    """Our entry looks before MS-SWIFT loads anything, the trainer looks again: gigabytes are read once."""
    return audio.file_hash(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
