"""What is done of a long piece of work, on disk as it comes: the same command goes on after a kill.

First the settings: another model or seed needs another folder. Then what is done, one line each:
key of everything that it depends on, and its outcome. A line that a kill cut off is none. Knows not
what the work is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from plugins.errors import UserError, problem

PROGRESS = "progress.jsonl"
_SETTINGS = "settings"
_BEGINNING = f'["{_SETTINGS}", '.encode()  # of every journal


class Journal:
    """Key -> value, both JSON, on disk as soon as they are put; before the first of them the
    settings that they hold under. `with` closes it.

    Raises UserError if the journal at `path` was begun with other `settings`: clips of two models
    must not be compared as those of one."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._done, num_whole_bytes = _read(path, settings)
        # Last, for a journal that was refused is not touched. What a kill left of a line goes.
        self._settings = settings
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(num_whole_bytes)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, key: str) -> Any:
        return self._done.get(key)

    def begin(self) -> None:
        """Write the settings, if they are not there. Not at once: a model that does not load begins
        no evaluation."""
        if not self._done:
            self.put(_SETTINGS, self._settings)

    def put(self, key: str, value: Any) -> None:
        if key != _SETTINGS:
            self.begin()
        self._file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        # To the system, which outlives a kill; only a power cut could lose the last lines.
        self._file.flush()
        self._done[key] = value


def read_journal(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What another process has put into its journal until now. Raises UserError as `Journal`."""
    done, _ = _read(path, settings)
    done.pop(_SETTINGS, None)
    return done


def _read(path: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Its entries, the settings among them, and how many of its bytes are whole lines."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]  # the last line may have been cut off
    done: dict[str, Any] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            key, value = json.loads(line)
            done[key] = value
        except (ValueError, TypeError, RecursionError):
            raise problem(
                source=f"{path}:{number}",
                field="line",
                value=line.decode(errors="replace"),
                reason="is damaged",
                remedy="delete the line",
            ) from None
    held = done.get(_SETTINGS, None if whole else {})
    # A kill may have cut off the very first line: of that, too, the beginning is ours.
    is_ours = content[: len(_BEGINNING)] == _BEGINNING[: len(content)]
    if not is_ours or not isinstance(held, Mapping):
        raise problem(
            source=str(path),
            field="file",
            value=path.name,
            reason="does not begin with the settings of such work",
            remedy="give another --output",
        )
    if done:
        _compare(held, settings, str(path))
    return done, len(whole)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError if `folder` is no folder, or holds files but no evaluation; overwrite: that
    it may."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise _output_problem(folder, "is no folder", "name a new one")
    others = sorted(set(os.listdir(folder)) - {PROGRESS})
    if others and not overwrite and not _is_begun(folder / PROGRESS):
        shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise _output_problem(
            folder,
            f"holds files, but no evaluation ({shown})",
            "name a new folder, or write beside these files and over those of the same names with"
            " --overwrite",
        )


def _output_problem(folder: Path, reason: str, remedy: str) -> UserError:
    return problem(
        source="options", field="output", value=str(folder), reason=reason, remedy=remedy
    )


def _is_begun(journal: Path) -> bool:
    try:
        with journal.open("rb") as file:
            # The rest may be long, and is checked when the journal is opened.
            key, _ = json.loads(file.readline())
    except (OSError, ValueError, TypeError, RecursionError):
        return False
    return bool(key == _SETTINGS)


def _compare(held: Mapping[str, Any], asked: Mapping[str, Any], place: str) -> None:
    old, new = flat(held), flat(asked)
    for name in old | new:  # in the order of the journal
        if old.get(name) != new.get(name):
            raise problem(
                source=place,
                field=name,
                value=old.get(name),
                reason=f"is what it was begun with, not {new.get(name)!r}",
                remedy="give another --output, or delete this one",
            )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"tuned": {"model": ...}}` -> `{"tuned.model": ...}`."""
    entries: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            entries |= flat(value, f"{prefix}{name}.")
        else:
            entries[f"{prefix}{name}"] = value
    return entries
