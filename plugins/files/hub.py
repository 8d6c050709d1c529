"""Folder or Hub id -> folder; and new folders, which appear only when they are complete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugins.errors import UserError, problem
from plugins.files import disk, lock
from plugins.files.untrusted import NamedByCheckpoint

# The repository was renamed; both names resolve, on the Hub and on ModelScope.
MODELS_3B = ("bosonai/higgs-audio-v2-generation-3B-base", "bosonai/higgs-tts-2-3b-base")
DEFAULT_CODEC = "bosonai/higgs-audio-v2-tokenizer"
_PUBLISHED = (*MODELS_3B, DEFAULT_CODEC)
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial", re.DOTALL)  # of `new_folder`
_SURELY_BEGUN_S = 3600


def local_folder(path: str, *, option: str = "model") -> str:
    """`path` if it is a folder, else the local snapshot of that Hub id, downloaded unless only a
    checkpoint names it.

    Raises UserError if it is neither.
    """
    if Path(path).is_dir():
        return path
    # A file of that name is meant, whatever the Hub has under it.
    if os.path.lexists(path):
        raise problem(
            source="options",
            field=option,
            value=path,
            reason="is no folder",
            remedy="give the folder that holds config.json",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Nobody typed it: a download would let a stranger's file choose what is fetched.
    is_cached_only = isinstance(path, NamedByCheckpoint) and path not in _PUBLISHED
    try:
        return str(snapshot_download(path, local_files_only=is_cached_only))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if is_cached_only:
            where = "neither a folder here nor in the cache of the Hub"
            reason = f"is what the checkpoint names, but {where}"
            remedy = f"if you trust it, give it yourself with --{option}"
        else:
            kind = type(error).__name__
            reason = f"is neither a folder nor a Hub id that can be downloaded ({kind})"
            remedy = "give its folder, or check the id and the connection"
        raise problem(
            source="options", field=option, value=path, reason=reason, remedy=remedy
        ) from error


def check_new_folder(target: Path, source: Path) -> None:
    """Raises UserError if `target` exists, if only as a dangling link, or lies in `source`."""
    if os.path.lexists(target):
        raise _wrong_target(target, "exists already", "name a new folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise _wrong_target(target, f"lies in the source, {source}", "name a folder outside it")


@contextmanager
def new_folder(target: Path, source: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into: it becomes `target` at the end, and is removed
    on any error. What a process that was killed has left of others is removed first."""
    check_new_folder(target, source)
    _sweep(target)
    # Hidden and beside it: only within a file system a folder can be renamed.
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        unfinished.mkdir(parents=True)
        lock.take(unfinished / lock.NAME)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = f"cannot be created ({error.strerror})"
        raise _wrong_target(target, reason, "name a folder that you may write to") from None
    try:
        yield unfinished
        disk.let_umask_decide(unfinished)
        lock.release(unfinished / lock.NAME)
        unfinished.rename(target)
    finally:
        lock.release(unfinished / lock.NAME)
        shutil.rmtree(unfinished, ignore_errors=True)  # there is none any more if all went well


def _sweep(target: Path) -> None:
    """Remove the unfinished folders beside `target` whose processes have ended."""
    for path in target.parent.glob(".*.partial"):
        match = _UNFINISHED.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        file = path / lock.NAME
        with contextlib.suppress(OSError):  # another user's, or removed by another sweep
            if file.exists():
                is_dead = lock.take(file) is None
            else:
                # Begun this moment, or by a version of this kit that had no locks.
                age_s = time.time() - path.stat().st_mtime
                is_dead = match[1] == target.name and age_s > _SURELY_BEGUN_S
            if is_dead:
                shutil.rmtree(path, ignore_errors=True)
                lock.release(file)


def _wrong_target(target: Path, reason: str, remedy: str) -> UserError:
    return problem(
        source=str(target), field="folder", value=target.name, reason=reason, remedy=remedy
    )
