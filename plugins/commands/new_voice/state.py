"""Which steps of a voice are done, and with what: `new_voice.json` in its folder.

    step, its inputs --begin, finish--> the file, written whole
    step, its inputs --is_done, changes--> whether it must be done (again), and why

Inputs are names with JSON values, so that a change can be told. Of files it is their content that
counts, not their date."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plugins.errors import UserError, problem
from plugins.files import disk

FILE = "new_voice.json"
Inputs = Mapping[str, Any]


@dataclass
class Record:
    """Of one step."""

    inputs: dict[str, Any]
    done: bool = False
    seconds: float = 0.0  # of all its processes so far
    outcome: dict[str, Any] = field(default_factory=dict)  # what later steps and people ask for


class State:
    """Of the voice in `folder`. Raises UserError if the file there is another's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._records: dict[str, Record] = {}
        self._hashes: dict[str, list[Any]] = {}  # path -> size, date, SHA-256
        if not self.path.exists():
            return
        content = disk.read_json(self.path, "give another --output")
        try:
            for name, values in content["steps"].items():
                self._records[name] = Record(**values)
            self._hashes = dict(content["hashes"])
        except (LookupError, TypeError, ValueError, AttributeError):
            raise problem(
                source=str(self.path),
                field="content",
                value=FILE,
                reason="is not of this command",
                remedy="give another --output",
            ) from None

    def record(self, step: str) -> Record | None:
        return self._records.get(step)

    def is_done(self, step: str, inputs: Inputs, outputs: Iterable[Path]) -> bool:
        """With the same inputs, and its outputs are there."""
        record = self._records.get(step)
        if record is None or not record.done or record.inputs != dict(inputs):
            return False
        return all(path.exists() for path in outputs)

    def changes(self, step: str, inputs: Inputs) -> list[str]:
        """What is not as it was when `step` was begun, in words; nothing if it never was."""
        record = self._records.get(step)
        if record is None:
            return []
        lines = []
        for name in {**record.inputs, **inputs}:
            before, now = record.inputs.get(name), inputs.get(name)
            if before != now:
                lines.append(f"{name} {_change(before, now)}")
        return lines

    def begin(self, step: str, inputs: Inputs) -> None:
        """Note it before its process starts: what that leaves belongs to these inputs."""
        record = self._records.get(step)
        if record is None or record.inputs != dict(inputs):
            self._records[step] = Record(dict(inputs))
        self._records[step].done = False
        self._write()

    def spend(self, step: str, seconds: float) -> None:
        self._records[step].seconds += seconds
        self._write()

    def finish(self, step: str, outcome: Mapping[str, Any]) -> None:
        self._records[step].done = True
        self._records[step].outcome = dict(outcome)
        self._write()

    def forget(self, step: str) -> None:
        self._records.pop(step, None)
        self._write()

    def content_of(self, path: Path) -> str:
        """SHA-256 of a file; read again only if its size or date is another."""
        try:
            status = path.stat()
            key = [status.st_size, status.st_mtime_ns]
            known = self._hashes.get(str(path))
            if known is None or known[:2] != key:
                known = self._hashes[str(path)] = [*key, disk.file_hash(path)]
        except OSError as error:
            raise _unreadable(path, error) from None
        return str(known[2])

    def _write(self) -> None:
        steps = {name: asdict(record) for name, record in self._records.items()}
        content = {"steps": steps, "hashes": self._hashes}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        try:
            disk.remove_strays([self.path])
            with disk.replace_when_done(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise problem(
                source=str(self.path),
                field="file",
                value=FILE,
                reason=f"cannot be written ({error.strerror})",
                remedy="mend that and start the same command again",
            ) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    reason = f"may not be read ({error.strerror})"
    return problem(
        source=str(path), field="file", value=path.name, reason=reason, remedy="mend or remove it"
    )


def _change(before: Any, now: Any) -> str:
    if before is None:
        return "is new" if _is_hash(now) else f"is {now!r} now"
    if now is None:
        return "is gone" if _is_hash(before) else f"was {before!r}"
    if _is_hash(before):
        return "has changed"
    return f"was {before!r} and is {now!r}"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64
