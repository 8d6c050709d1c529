"""The one folder that the page reads and writes by path, and names that are safe in it.

What a visitor types or uploads -> a path inside the workspace, or a UserError. Knows no Gradio."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from plugins.errors import UserError, problem
from plugins.files.disk import replace_when_done

_MAX_NAME_BYTES = 120  # file systems take 255; others append to a name
_RESERVED = re.compile(r'[<>:"|?*\\/\x00-\x1f]')
_MAX_ENTRIES = 20_000  # looked at for a list of choices: a home folder has millions


class Workspace:
    """root: absolute, without links."""

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(os.path.realpath(folder))
        if not self.root.is_dir():
            raise problem(
                source="options",
                field="workspace",
                value=str(folder),
                reason="is no folder",
                remedy="make it, or name another one",
            )

    def inside(self, typed: str, *, field: str) -> Path:
        """What `typed` names, absolute and without links; it need not exist. Raises UserError if it
        is empty, or leads out of the workspace: by "..", from the root, or through a link."""
        name = typed.strip()
        if not name:
            raise problem(
                source="page", field=field, value=None, reason="is missing", remedy="name one"
            )
        if "\0" in name or not _is_text(name):
            raise self._refused(field, name, "is no name of a file", "name another one")
        path = Path(os.path.realpath(self.root / name))
        if not path.is_relative_to(self.root):
            reason = f"leads out of the workspace {self.root}"
            raise self._refused(field, name, reason, "name a path inside of it")
        return path

    def existing(self, typed: str, *, field: str, folder: bool | None = None) -> Path:
        """As `inside`, of what is there. folder: whether it is to be one; None: either."""
        path = self.inside(typed, field=field)
        if not path.exists():
            raise self._refused(field, typed, "is not there", "name one of the workspace")
        if folder is not None and path.is_dir() != folder:
            reason = "is no folder" if folder else "is a folder"
            raise self._refused(field, typed, reason, "name another one")
        return path

    def word(self, path: Path) -> str:
        """`path` as a word of a command line that is given in the workspace."""
        name = os.path.relpath(path, self.root)
        # A name may look like a flag.
        return f"./{name}" if name.startswith("-") else name

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def keep(self, file: Path, *, folder: Path, name: str) -> Path:
        """A copy of the upload `file` in `folder`, under a safe name that nothing has there yet;
        whole or not at all. `name` is the visitor's."""
        folder.mkdir(parents=True, exist_ok=True)
        target = unused(folder / safe_name(name))
        with replace_when_done(target) as temporary:
            shutil.copyfile(file, temporary)
        return target

    def files(self, *suffixes: str) -> list[str]:
        """Files with these suffixes, as words, sorted; hidden folders and links left out."""
        found = []
        for entry in self._walk():
            if entry.is_file(follow_symlinks=False) and entry.name.endswith(suffixes):
                found.append(self.word(Path(entry.path)))
        return sorted(found)

    def folders(self, *holding: str) -> list[str]:
        """Folders that hold a file of one of these names, as words, sorted."""
        found = set()
        for entry in self._walk():
            if entry.name in holding and entry.is_file(follow_symlinks=False):
                found.add(self.word(Path(entry.path).parent))
        return sorted(found)

    def _walk(self) -> Iterator[os.DirEntry[str]]:
        waiting, num_entries = [self.root], 0
        while waiting:
            try:
                with os.scandir(waiting.pop(0)) as entries:
                    ordered = sorted(entries, key=lambda entry: entry.name)
            except OSError:
                continue  # may not be read, or gone
            for entry in ordered:
                num_entries += 1
                if num_entries > _MAX_ENTRIES:
                    return
                if entry.name.startswith(".") or not _is_text(entry.name):
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))

    @staticmethod
    def _refused(field: str, value: str, reason: str, remedy: str) -> UserError:
        return problem(source="page", field=field, value=value, reason=reason, remedy=remedy)


def safe_name(name: str) -> str:
    """`name` as that of one file anywhere: without folders, control characters and what hides it,
    and not too long. Raises UserError if nothing is left of it."""
    cleaned = unicodedata.normalize("NFC", re.split(r"[\\/]", name)[-1])
    kept = ""
    for character in _RESERVED.sub("_", cleaned):
        # C: control characters, marks that turn the direction of writing, half characters.
        kept += "" if unicodedata.category(character)[0] == "C" else character
    kept = re.sub(r"\s+", " ", kept).strip(" .").lstrip("-. ")
    stem, suffix = os.path.splitext(kept)
    room = _MAX_NAME_BYTES - len(suffix.encode())
    if not re.search(r"[^\W_]", stem) or room < 1:
        raise problem(
            source="page",
            field="file name",
            value=name,
            reason="has nothing that a name could be made of",
            remedy="rename the file: letters, digits, a short ending",
        )
    return stem.encode()[:room].decode(errors="ignore").rstrip(" .") + suffix


def unused(path: Path) -> Path:
    """`path`, or with a number behind its stem if something is there."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _is_text(name: str) -> bool:
    """No half characters, which stand for bytes that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
