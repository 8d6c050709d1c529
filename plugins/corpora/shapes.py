"""Rows as other programs write them -> rows of ours.

In: the mapping that a line of JSONL holds. Out: the same with our columns:

    {"audio", "text", "ref_audio"}          flat rows, also NeMo's (`audio_filepath`, `duration`)
    {"messages", "start_index", "misc"}     Boson's ChatML, with `audio_url` in its contents

What has no equal here is a `RowError`, never left out. It opens no file and judges nothing that
our own rows have too: that is the matter of `plugins.corpora.canonical`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plugins.errors import UserError, problem

# Our column -> what others call it, the commonest first.
REFERENCE_NAMES = {
    "reference_audio": ("ref_audio", "ref_audio_path", "prompt_audio"),
    "reference_text": ("ref_text", "ref_transcript", "prompt_text"),
}
# In rows without messages.
_FLAT_NAMES = {
    "audio": ("audio_path", "audio_file", "audio_filepath", "file_name", "wav"),
    "text": ("transcript", "transcription", "sentence"),
    "speaker": ("speaker_id", "speaker_name"),
    "language": ("lang",),
    "duration_s": ("duration",),
}
TEXT_NAMES = ("text", *_FLAT_NAMES["text"])
SPEAKER_NAMES = ("speaker", *_FLAT_NAMES["speaker"])


@dataclass(eq=False, kw_only=True)
class RowError(Exception):
    """A fault of a row. Whoever knows where the row stands says so with `at`.

    `reason` is constant per kind of fault, but for a detail in parentheses at its end.
    """

    field: str
    value: object
    reason: str
    remedy: str

    def at(self, source: str) -> UserError:
        """The fault in one line, of the row at `source`."""
        return problem(
            source=source,
            field=self.field,
            value=self.value,
            reason=self.reason,
            remedy=self.remedy,
        )


def in_our_shape(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with our columns; one of ours comes back equal. Raises RowError."""
    row = _renamed(row, REFERENCE_NAMES)
    if "messages" in row:
        return _from_chatml(row)
    named = _renamed(row, _FLAT_NAMES)
    return _from_flat(named) if "text" in named else row


def called(columns: Iterable[str], name: str) -> str | None:
    """Which of `columns` is our `name`, by that name or another one's; None if there is none."""
    present = set(columns)
    for candidate in (name, *REFERENCE_NAMES[name]):
        if candidate in present:
            return candidate
    return None


def _renamed(row: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    ours = {other: name for name, others in names.items() for other in others}
    renamed: dict[str, Any] = {}
    for column, value in row.items():
        name = ours.get(column, column)
        if name in renamed or (name != column and name in row):
            raise RowError(
                field="column",
                value=column,
                reason=f"means {name}, which the row has too",
                remedy="leave one of the two out",
            )
        renamed[name] = value
    return renamed


def _from_flat(row: dict[str, Any]) -> dict[str, Any]:
    if row["text"] is None:
        remedy = "give the transcript of the recording, or leave the row out"
        raise RowError(field="row", value=row, reason="has no text", remedy=remedy)
    text = row.pop("text")
    if not isinstance(text, str):
        remedy = "give the transcript of the recording"
        raise RowError(field="text", value=text, reason="is no text", remedy=remedy)
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    return {"messages": turns, **row}


def _from_chatml(row: dict[str, Any]) -> dict[str, Any]:
    row.pop("misc", None)  # what others note beside a row
    start = row.pop("start_index", None)
    messages = row["messages"]
    if not isinstance(messages, list):
        return row
    # Not bool, which Python takes for 0 and 1.
    if start is not None and (type(start) is not int or not 0 <= start < len(messages)):
        reason = "is no index of a message"
        remedy = "give the number of the first message to train on, counted from 0"
        raise RowError(field="start_index", value=start, reason=reason, remedy=remedy)
    row["messages"] = []
    for i, message in enumerate(messages):
        if isinstance(message, dict):
            message = _message(message, f"messages[{i}].content")
            if start is not None and i < start and message.get("role") == "assistant":
                message["loss"] = False
        row["messages"].append(message)
    return row


def _message(message: dict[str, Any], field: str) -> dict[str, Any]:
    """`message` with its content as MS-SWIFT writes it."""
    content = message.get("content")
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_item(item, field) for item in content]}


def _item(item: Any, field: str) -> Any:
    if not isinstance(item, dict) or item.get("type") != "audio":
        return item
    path = item.get("audio_url")
    if path is None and not item.get("raw_audio"):
        return item

    def wrong(name: str, reason: str, remedy: str) -> RowError:
        return RowError(field=f"{field}.{name}", value=item.get(name), reason=reason, remedy=remedy)

    if not path:
        remedy = "write it to a file and name that in audio_url"
        raise wrong("raw_audio", "is the recording itself", remedy)
    if "audio" in item:
        raise wrong("audio_url", "stands beside audio", "leave one of the two out")
    # A part of a recording: the whole would be trained in its place.
    for name in ("offset", "duration"):
        if item.get(name):
            remedy = (
                "cut it out (ffmpeg -ss OFFSET -t DURATION), or leave both out to take it whole"
            )
            raise wrong(name, "names a part of the recording", remedy)
    return {"type": "audio", "audio": path}
