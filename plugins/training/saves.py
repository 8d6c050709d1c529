"""Checkpoint folders as a run writes and removes them; `plugins.files.checkpoints` reads them.

    checkpoint-N as MS-SWIFT wrote it --seal--> the same, on the disk, with a marker

transformers writes a checkpoint file by file, so a run that is killed leaves one that looks like
any other. The marker comes last and at once, and vouches for every other file. A note comes first
and says which run is writing: what has none, or another run's, is never removed, whoever put it
there.
This file knows no trainer; what is inside the files is `plugins.training.resume`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plugins.errors import UserError, problem
from plugins.files import disk
from plugins.files.checkpoints import MARKER, age, checkpoints, damage, marker_of
from plugins.files.disk import read_json

NOTE = "higgs_audio_owner.json"
# A checkpoint that only we can see: not begun yet, or being removed.
_HIDDEN = re.compile(r"\.checkpoint-\d+\.[0-9a-f]{32}\.(new|old)")
_NUM_THREADS = 4  # hashing leaves the interpreter's lock alone


@dataclass(frozen=True)
class Owner:
    """Who writes a checkpoint."""

    run: str  # of one training and of those that resume it
    trained: str  # hash of what is trained and how: the same command has the same


def owner(fingerprint: dict[str, Any], resumed: Path | None) -> Owner:
    """Of a run of that fingerprint, which goes on from the checkpoint `resumed`; None: it starts
    anew."""
    forerunner = None if resumed is None else _note(resumed)
    run = uuid.uuid4().hex if forerunner is None else forerunner.run
    content = json.dumps(fingerprint, sort_keys=True)
    return Owner(run, hashlib.sha256(content.encode()).hexdigest())


def is_own(checkpoint: Path, owner: Owner) -> bool:
    """Whether the run of `owner` wrote `checkpoint`.

    One that was cut short is also its own if it is of the same command: that was killed before it
    had a whole one to be resumed from."""
    note = None if checkpoint.is_symlink() else _note(checkpoint)
    if note is None:
        return False
    is_cut_short = not (checkpoint / MARKER).exists()
    return note.run == owner.run or (is_cut_short and note.trained == owner.trained)


def reserve(checkpoint: Path, owner: Owner, warn: Callable[[str], None]) -> None:
    """Make `checkpoint` a folder that holds the note of `owner` and nothing else.

    What is there already goes if it is the owner's, else aside; `warn` is told.
    """
    if is_own(checkpoint, owner):
        discard(checkpoint)
    elif os.path.lexists(checkpoint):
        moved = set_aside(checkpoint)
        warn(f"{checkpoint} is not of this run: it is {moved} from now on")
    new = _hidden(checkpoint, "new")
    new.mkdir(parents=True)
    (new / NOTE).write_text(json.dumps(asdict(owner)) + "\n", encoding="utf-8")
    disk.sync(new / NOTE)
    new.rename(checkpoint)


def set_aside(path: Path) -> Path:
    """Rename `path`, a file or folder: ``log.jsonl`` -> ``log.1.jsonl``, or the next number that is
    free."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not os.path.lexists(target):
            return path.rename(target)
    raise AssertionError("numbers have no end")


def seal(checkpoint: Path, *, resumable: bool) -> None:
    """Return once every file of `checkpoint` is on the disk, and then its marker; resumable: the
    optimizer is in it."""
    disk.let_umask_decide(checkpoint)
    files = sorted(filter(Path.is_file, checkpoint.rglob("*")))
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        hashes = list(threads.map(_synced_hash, files))
    saved = {}
    for path, sha256 in zip(files, hashes, strict=True):
        name = path.relative_to(checkpoint).as_posix()
        saved[name] = {"bytes": path.stat().st_size, "sha256": sha256}
    marker = {"saved_at_s": time.time(), "resumable": resumable, "files": saved}
    # The names of the files must be on the disk too, or the marker would vouch for nothing.
    for folder in {path.parent for path in files} | {checkpoint, checkpoint.parent}:
        _sync_folder(folder)
    with disk.replace_when_done(checkpoint / MARKER) as temporary:
        temporary.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    _sync_folder(checkpoint)


def discard(checkpoint: Path) -> None:
    """Remove it. It is out of sight at once, and the next `rotate` ends what a kill has
    interrupted."""
    old = _hidden(checkpoint, "old")
    with contextlib.suppress(OSError):
        checkpoint.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def require_whole(checkpoint: Path) -> None:
    """Raise UserError if `checkpoint` cannot be resumed from."""
    if reason := damage(checkpoint):
        raise problem(
            source="options",
            field="resume_from_checkpoint",
            value=str(checkpoint),
            reason=reason,
            remedy="name another checkpoint, or `auto` for the newest whole one",
        )


def owned(folder: Path, owner: Owner) -> list[Path]:
    """The owner's checkpoints in `folder`, the newest last."""
    return [path for path in sorted(checkpoints(folder), key=age) if is_own(path, owner)]


def rotate(saved: Path, owner: Owner, *, limit: int | None, best: str | None) -> None:
    """Of the owner's checkpoints keep `limit` whole ones with `saved`, which was just sealed, and
    the best one.

    Without a limit none is removed. `saved` is never removed, nor what the owner did not write;
    what an earlier removal has left is."""
    for path in saved.parent.glob(".checkpoint-*"):
        if _HIDDEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    if not limit or limit <= 0:
        return
    # A path that is both counts once.
    protected = {saved} | ({Path(best)} if best else set())
    whole: list[Path] = []
    broken: list[Path] = []
    for path in owned(saved.parent, owner):
        if marker_of(path) is None:
            broken.append(path)
        else:
            whole.append(path)
    surplus = max(0, len(whole) - max(limit, len(protected)))
    removable = [path for path in whole if path not in protected]  # the oldest first
    for path in broken + removable[:surplus]:
        discard(path)


def _hidden(checkpoint: Path, state: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{uuid.uuid4().hex}.{state}")


def _note(checkpoint: Path) -> Owner | None:
    try:
        note = read_json(checkpoint / NOTE, "")
        return Owner(str(note["run"]), str(note["trained"]))
    except (UserError, LookupError):
        return None


def _synced_hash(path: Path) -> str:
    disk.sync(path)
    return disk.file_hash(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
