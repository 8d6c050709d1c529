"""What a listener changes of a preparation: other words, clips left out, rejected ones taken.

x.jsonl              the rows that are trained on, replaced as a whole at each change
x.original.jsonl     as they were prepared, kept from the first change on
x.corrections.json   what was changed, clip by clip, and of which files

A row that nobody touched keeps its bytes. If the corpus is prepared again, the corrections that
still fit its rows are made anew; the others wait in their file. Knows no Gradio, opens no audio."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.commands.app.workspace import unused
from plugins.errors import problem
from plugins.files.disk import read_json, replace_when_done
from plugins.files.lines import NoJson, parse_json, text_lines
from plugins.prepare.outputs import clips_folder, rejected_path, transcripts_path

_REMEDY = "mend it, or move it away: corrections are then lost"
Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """of: the text that was there, so that another row of the same name is not changed."""

    of: str
    text: str
    keep: bool

    def to_json(self) -> dict[str, Any]:
        return {"of": self.of, "text": self.text, "keep": self.keep}


@dataclass(frozen=True)
class Clip:
    """A row, or a rejected clip, as it is now. was: its text as it was prepared."""

    key: str
    text: str
    was: str
    keep: bool
    audio: str | None
    speaker: str | None = None
    note: str = ""  # what is in doubt, or why it was rejected
    heard: str | None = None
    doubt: float = 0.0  # the higher, the sooner to be listened to
    is_rejected: bool = False
    can_edit: bool = True

    @property
    def is_changed(self) -> bool:
        return self.text != self.was or self.keep == self.is_rejected


@dataclass
class _Files:
    """What lies there: lines as they were prepared, with their rows, and what was changed."""

    lines: list[tuple[str, Row]]
    rejected: list[Row]
    changes: dict[str, Change] = field(default_factory=dict)
    is_behind: bool = False  # the rows, as they were prepared again or a write was cut short
    original: bytes = b""


class Corrected:
    """One file of rows. Several tabs, and pages, may change it at once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._original = file.with_stem(f"{file.stem}.original")
        self._notes = file.with_name(f"{file.stem}.corrections.json")
        self._lock = file.with_name(f".{file.stem}.corrections.lock")

    def clips(self) -> list[Clip]:
        """Rows in their order, then what was rejected. Raises UserError for a file that holds no
        rows."""
        with self._locked():
            files = self._read()
            if files.is_behind:
                self._write(files)
        doubts = _doubts(self.file)
        clips = []
        for number, (_, row) in enumerate(files.lines):
            clips.append(_clip(number, row, files.changes, doubts))
        known = {clip.key for clip in clips}
        for row in files.rejected:
            clip = _rejected(row, files.changes)
            if clip is not None and clip.key not in known:
                clips.append(clip)
        return clips

    def change(self, key: str, *, text: str, keep: bool) -> Clip:
        """Write what is to hold of a clip from now on. Raises UserError for an empty text, or a
        dialogue with another number of lines."""
        with self._locked():
            files = self._read()
            clip = self._named(files, key)
            text = text.strip() if clip.can_edit else clip.was
            if keep:
                _check(clip, text)
            files.changes[key] = Change(clip.was, text, keep)
            if text == clip.was and keep != clip.is_rejected:
                del files.changes[key]
            self._write(files)
            return self._named(files, key)

    def _named(self, files: _Files, key: str) -> Clip:
        for number, (_, row) in enumerate(files.lines):
            if _key(number, row) == key:
                return _clip(number, row, files.changes, {})
        for row in files.rejected:
            clip = _rejected(row, files.changes)
            if clip is not None and clip.key == key:
                return clip
        raise problem(
            source=str(self.file),
            field="clip",
            value=key,
            reason="is not there any more",
            remedy="load the rows again",
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> _Files:
        current = self.file.read_bytes()
        rejected = rejected_path(self.file)
        files = _Files([], [row for _, row in _rows(rejected)] if rejected.is_file() else [])
        if not self._notes.is_file():
            files.lines, files.original = _rows(self.file), current
            return files
        notes = read_json(self._notes, _REMEDY)
        for key, value in notes["changes"].items():
            files.changes[key] = Change(value["of"], value["text"], value["keep"])
        original = self._original.read_bytes() if self._original.is_file() else b""
        is_ours = _hash(current) in notes["written"] and _hash(original) == notes["original"]
        if is_ours:
            files.lines, files.original = _rows(self._original), original
            files.is_behind = _hash(current) != notes["written"][0]
        else:
            files.lines, files.original, files.is_behind = _rows(self.file), current, True
        return files

    def _write(self, files: _Files) -> None:
        """In this order, so that after a kill between two of them nothing is taken for new."""
        before = self.file.read_bytes()
        if not self._original.is_file() or self._original.read_bytes() != files.original:
            if self._original.exists():
                self._original.rename(unused(self._original))
            with replace_when_done(self._original) as temporary:
                temporary.write_bytes(files.original)
        content = "".join(f"{line}\n" for line in _corrected(files)).encode()
        notes = {
            "original": _hash(files.original),
            "written": [_hash(content), _hash(before), _hash(files.original)],
            "changes": {key: change.to_json() for key, change in files.changes.items()},
        }
        with replace_when_done(self._notes) as temporary:
            temporary.write_text(
                json.dumps(notes, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        with replace_when_done(self.file) as temporary:
            temporary.write_bytes(content)


def _corrected(files: _Files) -> Iterator[str]:
    """The lines of the rows that are kept, with their new texts."""
    changed: dict[str, Clip] = {}  # recording -> the clip that was changed
    for number, (_, row) in enumerate(files.lines):
        clip = _clip(number, row, files.changes, {})
        if clip.is_changed and clip.audio is not None:
            changed[clip.audio] = clip
    for number, (line, row) in enumerate(files.lines):
        clip = _clip(number, row, files.changes, {})
        if not clip.keep:
            continue
        new = _of_reference(_with_text(row, clip), changed)
        yield line if new == row else json.dumps(new, ensure_ascii=False)
    for row in files.rejected:
        taken = _rejected(row, files.changes)
        if taken is not None and taken.keep:
            yield json.dumps(_taken(taken), ensure_ascii=False)


def _with_text(row: Row, clip: Clip) -> Row:
    if clip.text == clip.was:
        return row
    texts = iter(clip.text.split("\n") if len(_user_turns(row)) > 1 else [clip.text])
    messages = []
    for message in row["messages"]:
        if message["role"] == "user":
            message = {**message, "content": next(texts)}
        messages.append(message)
    return {**row, "messages": messages}


def _of_reference(row: Row, changed: Mapping[str, Clip]) -> Row:
    """A clip that others are cloned from was left out, or says something else: so do they."""
    given = row.get("reference_audio")
    audio = given[0] if isinstance(given, list) and len(given) == 1 else given
    clip = changed.get(audio) if isinstance(audio, str) else None
    if clip is None:
        return row
    if not clip.keep:
        columns = {"reference_audio", "reference_text", "reference_codes"}
        return {name: value for name, value in row.items() if name not in columns}
    text = row.get("reference_text")
    if text == clip.was:
        return {**row, "reference_text": clip.text}
    return {**row, "reference_text": [clip.text]} if text == [clip.was] else row


def _taken(clip: Clip) -> Row:
    messages = [
        {"role": "user", "content": clip.text},
        {"role": "assistant", "content": ""},
    ]
    row: Row = {"messages": messages, "audios": [clip.audio]}
    if clip.speaker is not None:
        row["speaker"] = clip.speaker
    return row | {"id": clip.key}


def _clip(number: int, row: Row, changes: Mapping[str, Change], doubts: Mapping[str, Row]) -> Clip:
    turns = _user_turns(row)
    was = "\n".join(turns)
    audios = row.get("audios") or [None]
    key = _key(number, row)
    change = changes.get(key)
    text, keep = was, True
    if change is not None and change.of == was:
        text, keep = change.text, change.keep
    about = doubts.get(key, {})
    return Clip(
        key,
        text,
        was,
        keep,
        audio=audios[0] if isinstance(audios, list) and isinstance(audios[0], str) else None,
        speaker=row.get("speaker"),
        note="; ".join(about.get("doubts", [])),
        heard=about.get("heard"),
        doubt=about.get("doubt", 0.0),
        # A line end within a turn of several would be taken for the next turn.
        can_edit=bool(turns) and (len(turns) == 1 or was.count("\n") == len(turns) - 1),
    )


def _rejected(row: Row, changes: Mapping[str, Change]) -> Clip | None:
    """None for what has no recording that one could listen to, or is a duplicate."""
    audio, key = row.get("audio"), row.get("id")
    if not isinstance(audio, str) or not isinstance(key, str):
        return None
    was = str(row.get("written") or row.get("heard") or "")
    text, keep, change = was, False, changes.get(key)
    if change is not None and change.of == was:
        text, keep = change.text, change.keep
    speaker, heard = row.get("speaker"), row.get("heard")
    return Clip(key, text, was, keep, audio, speaker, f"rejected: {row.get('reason')}", heard,
                is_rejected=True)  # fmt: skip


def _check(clip: Clip, text: str) -> None:
    def wrong(reason: str, remedy: str) -> Exception:
        return problem(source=clip.key, field="text", value=text, reason=reason, remedy=remedy)

    if not text and clip.was:
        raise wrong("is empty", "write what is said, or leave the clip out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise wrong("holds half a character", "write the character itself") from None
    num_lines = clip.was.count("\n") + 1
    if num_lines > 1 and text.count("\n") + 1 != num_lines:
        raise wrong("has another number of lines", f"keep its {num_lines} lines, one per turn")


def _user_turns(row: Row) -> list[str]:
    """Empty for a row of another shape, which is kept as it is."""
    turns: list[str] = []
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and message.get("role") == "user":
            if not isinstance(message.get("content"), str):
                return []
            turns.append(message["content"])
    return turns


def _key(number: int, row: Row) -> str:
    id_ = row.get("id")
    return id_ if isinstance(id_, str) and id_ else f"row {number + 1}"


def _doubts(file: Path) -> dict[str, Row]:
    """Id -> what its preparation has doubted: of recordings, of checked transcripts."""
    found: dict[str, Row] = {}
    for path in (clips_folder(file) / "clips.jsonl", transcripts_path(file)):
        if not path.is_file():
            continue
        for _, row in _rows(path):
            doubts = list(row.get("doubts") or [])
            doubt = float(row.get("cer") or 0) + bool(doubts)
            if row.get("cer"):
                doubts.append(f"CER {100 * row['cer']:.0f} %")
            if row.get("confidence") is not None:
                doubts.append(f"confidence {100 * row['confidence']:.0f} %")
            about = {"doubts": doubts, "heard": row.get("heard"), "doubt": doubt}
            found[str(row.get("id"))] = about
    return found


def _rows(path: Path) -> list[tuple[str, Row]]:
    rows = []
    for place, line in text_lines(path):
        try:
            row = parse_json(line)
        except NoJson as error:
            raise problem(
                source=place, field="line", value=line[:60], reason=error.reason,
                remedy=error.remedy,
            ) from None  # fmt: skip
        if not isinstance(row, dict):
            raise problem(
                source=place, field="line", value=line[:60], reason="is no row",
                remedy="choose a file of rows",
            )  # fmt: skip
        rows.append((line, row))
    return rows


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
