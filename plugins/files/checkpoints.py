"""Checkpoints of a training on the disk: which are whole, and which is the newest.

    output folder --newest--> the checkpoint to resume from
    checkpoint    --damage--> None, or what is wrong with it
    what somebody gives as a model --checkpoint_in--> the same, or the newest checkpoint in it

A whole one has a marker that holds size and SHA-256 of every other file (`plugins.training.saves`
writes it last): without it, or with a file that differs, a checkpoint is not resumed from.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from plugins.errors import UserError, problem
from plugins.files import disk
from plugins.files.disk import read_json
from plugins.files.untrusted import ADAPTER_CONFIG

logger = logging.getLogger(__name__)

MARKER = "higgs_audio_complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_VERSION = re.compile(r"v(\d+)-.*")  # what MS-SWIFT's --add_version appends to the output folder
_MOST_NAMES = 5


def checkpoint_in(path: str, *, option: str) -> str:
    """`path`, or the newest whole checkpoint in it if it is the output folder of a training, which
    is said once.

    Only names and sizes are looked at: who speaks needs no optimizer. Raises UserError if none is
    whole."""
    run = Path(path)
    if not is_run(run):
        return path
    found = of_run(run)
    for checkpoint in found:
        if gap(checkpoint) is None:
            what = f"its newest whole checkpoint, {checkpoint}, is taken"
            _say(f"{path} is the folder of a training: {what}")
            return str(checkpoint)
    names = ", ".join(map(str, found[:_MOST_NAMES]))
    if len(found) > _MOST_NAMES:
        names += f" and {len(found) - _MOST_NAMES} older ones"
    raise problem(
        source="options",
        field=option,
        value=path,
        reason="is the folder of a training, and none of its checkpoints is known to be whole",
        remedy=f"give one of them: {names}",
    )


def is_run(folder: Path) -> bool:
    """Whether checkpoints lie in `folder`, which is none itself."""
    for name in ("config.json", ADAPTER_CONFIG, MARKER):
        if (folder / name).is_file():
            return False
    return bool(of_run(folder))


def of_run(output_dir: Path) -> list[Path]:
    """The checkpoints of `output_dir` and of the version folders in it, the newest first."""
    candidates: list[tuple[int, float, int, Path]] = []
    for folder in (output_dir, *output_dir.glob("v*-*")):
        version = _version(folder)
        if version >= 0 or folder == output_dir:
            candidates += [(version, *age(path), path) for path in checkpoints(folder)]
    return [path for *_, path in sorted(candidates, reverse=True)]


def damage(checkpoint: Path) -> str | None:
    """Why `checkpoint` cannot be resumed from; None if every file is as it was saved. Reads all of
    it."""
    reason = gap(checkpoint)
    if reason is not None:
        return reason
    marker = marker_of(checkpoint)
    assert marker is not None
    for name, saved in marker["files"].items():
        path = checkpoint / name
        try:
            status = path.stat()
            found = _hash_once(str(path), status.st_size, status.st_mtime_ns)
        except OSError as error:  # a run that still trains removes its older ones
            return f"is damaged ({name}: {error.strerror})"
        if found != saved["sha256"]:
            return f"is damaged ({name} has changed since it was saved)"
    if not marker["resumable"]:
        return "holds no optimizer (it was saved with save_only_model)"
    return None


def gap(checkpoint: Path) -> str | None:
    """What of `checkpoint` is missing or of another size; None if nothing. Opens no weights."""
    if not checkpoint.is_dir():
        return "is no folder"
    marker = marker_of(checkpoint)
    if marker is None:
        return (
            f"is incomplete (no valid {MARKER}: its saving was cut short, or something else saved"
            " it)"
        )
    for name, saved in marker["files"].items():
        try:
            num_bytes = (checkpoint / name).stat().st_size
        except OSError:
            return f"is damaged ({name} is missing)"
        if num_bytes != saved["bytes"]:
            return f"is damaged ({name} has {num_bytes} bytes instead of {saved['bytes']})"
    return None


def newest(output_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of `output_dir` and of the version folders in it; `warn` is told
    of newer others."""
    # A whole one ends the search, and is read once.
    for path in of_run(output_dir):
        reason = damage(path)
        if reason is None:
            return path
        warn(f"{path} {reason}: not resumed from, left as it is")
    return None


@lru_cache(maxsize=64)
def _say(line: str) -> None:
    logger.warning(line)


def checkpoints(folder: Path) -> Iterator[Path]:
    for path in folder.glob("checkpoint-*"):
        if _CHECKPOINT.fullmatch(path.name) and path.is_dir():
            yield path


def _version(folder: Path) -> int:
    match = _VERSION.fullmatch(folder.name)
    return int(match[1]) if match else -1


def age(checkpoint: Path) -> tuple[float, int]:
    """Sorts checkpoints of one folder from old to new. Not by step: a run may have been started
    anew in the folder."""
    marker = marker_of(checkpoint)
    step = int(checkpoint.name.partition("-")[2])
    if marker is None:
        return float("inf"), step  # perhaps being written
    return marker["saved_at_s"], step


def marker_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        marker = read_json(checkpoint / MARKER, "")
        # Touched once, so that a damaged one is told from a valid one here and nowhere else.
        for name, saved in marker["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return None
            int(saved["bytes"]), str(saved["sha256"])
        return {
            **marker,
            "saved_at_s": float(marker["saved_at_s"]),
            "resumable": bool(marker["resumable"]),
        }
    except (UserError, LookupError, TypeError, ValueError, AttributeError):
        return None


@lru_cache(maxsize=4096)
def _hash_once(path: str, num_bytes: int, mtime_ns: int) -> str:
    """Our entry looks before MS-SWIFT loads anything, the trainer looks again: gigabytes are read
    once."""
    return disk.file_hash(path)
