"""Folder or Hub id -> folder; and new folders, which appear only when they are complete. L1."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugins.errors import problem


def local_folder(path: str, *, option: str = "model") -> str:
    """`path` if it is a folder, else the local snapshot of that Hub id. Raises UserError if it is neither."""
    if Path(path).is_dir():
        return path
    if os.path.lexists(path):
        raise problem("options", option, path, "is no folder", "give the folder that holds config.json")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(path))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = f"is neither a folder nor a Hub id that can be downloaded ({type(error).__name__})"
        raise problem("options", option, path, reason, f"give the folder of a {option}") from error


def check_new_folder(target: Path, source: Path) -> None:
    """Raises UserError if `target` exists, if only as a dangling link, or lies in `source`."""
    if os.path.lexists(target):
        raise problem(str(target), "folder", target.name, "exists already", "name a new folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise problem(str(target), "folder", target.name, f"lies in the source, {source}", "name a folder outside it")


@contextmanager
def new_folder(target: Path, source: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into: it becomes `target` at the end, and is removed on any error."""
    check_new_folder(target, source)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        reason = f"cannot be created ({error.strerror})"
        raise problem(str(target), "folder", target.name, reason, "name a folder that you may write to") from None
    try:
        yield unfinished
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # there is none any more if all went well
