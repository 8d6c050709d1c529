"""Our own rows -> utterances.

In: a JSONL of the seed document's shape. Out: one utterance per plain row (one text, one clip to
speak it) and per dialogue (several such pairs), with the row itself: flat messages, absolute paths,
references and all else kept. Every other row is rejected by its reason. How a row is read, and what
is a fault in it, is said in `canonical.py`, for training too, which then asks more: down to prompt
and codes (`plugins.data.rows`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.audio.waveforms import AudioError, resolve
from plugins.corpora.canonical import (
    AUDIO_TAG,
    PAIR_COLUMNS,
    ROW_SOURCE,
    FlatRow,
    RowError,
    flat_row,
    parse_row,
    require_other_recordings,
    require_path,
    without_old_prefix,
)
from plugins.corpora.utterance import Rejected, Utterance, collapse, is_utf8, path_id, require_list
from plugins.files.lines import byte_lines

# Who speaks; the clip does not say it.
_SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")
_INDEX = re.compile(r"\[\d+\]")


class _Unfit(Exception):
    """Why a row is no utterance: the reason, and the value that shows it."""

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(reason, value)
        self.reason, self.value = reason, value

    @classmethod
    def of(cls, fault: RowError) -> _Unfit:
        # Without the number of a message or clip, to be counted by kind.
        reason = f"{_INDEX.sub('', fault.field)} {fault.reason}"
        if "(" not in reason:
            reason += f" ({fault.remedy})"
        return cls(reason, fault.value)


@dataclass(frozen=True)
class _Place:
    """Where the paths of a row are looked for."""

    folder: Path
    root: Path | None

    def find(self, path: Any, field: str) -> Path:
        require_path(path, field)
        try:
            return resolve(path, folders=[self.folder], root=self.root)
        except AudioError as error:
            # Of a target it is said as every other reader says it.
            reason = error.reason if field == "audios" else f"{field} {error.reason}"
            raise _Unfit(reason, path) from None


def read_jsonl(
    input_dir: Path, jsonl_file: Path, *, root: Path | None = None
) -> Iterator[Utterance | Rejected]:
    """Rows as training reads them; paths are absolute or relative to `input_dir`. Lines are judged
    one by one."""
    remedy = "name the file that holds the rows"
    require_list(jsonl_file, "jsonl", "jsonl_file", remedy, input_dir, root)
    # In bytes: one line that is not UTF-8 must not end the reading.
    for place, line in byte_lines(jsonl_file):
        yield _read_line(line, place, _Place(input_dir, root))


def _read_line(line: bytes, place: str, looked_for: _Place) -> Utterance | Rejected:
    id_ = ""
    try:
        try:
            row = parse_row(_decoded(line))
            id_ = _name(row, "id") or ""
            return _utterance(row, place, id_, looked_for)
        except RowError as fault:
            raise _Unfit.of(fault) from None
    except _Unfit as unfit:
        value = unfit.value
        if not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        return Rejected(place, id_, unfit.reason, value[:200])


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise _Unfit("line is not UTF-8", line.decode(errors="backslashreplace").strip()) from None


def _utterance(row: dict[str, Any], place: str, id_: str, looked_for: _Place) -> Utterance:
    flat = flat_row(row)
    texts = _texts_to_speak(flat)
    for column in PAIR_COLUMNS:
        if row.get(column):
            raise _Unfit("is no plain text-to-speech row (a pair of answers)", row[column])
    found = [looked_for.find(path, "audios") for path in flat.audios]
    audios = list(map(_real, found))
    references = [_real(looked_for.find(path, "reference_audio")) for path in flat.references]
    require_other_recordings(references, audios)
    speaker, language = _name(row, "speaker"), _name(row, "language")
    # Dialogues may begin alike.
    id_ = id_ or "+".join(path_id(path, looked_for.folder) for path in found)

    kept = {name: value for name, value in row.items() if value is not None}
    kept.pop("audio", None)
    # Said anew by whoever reads the rows that are written.
    kept.pop(ROW_SOURCE, None)
    kept |= {"messages": _as_given(flat, row["messages"]), "audios": audios, "id": id_}
    if references:
        is_list = isinstance(row["reference_audio"], list)
        kept["reference_audio"] = references if is_list else references[0]
    else:
        kept.pop("reference_audio", None)
    # Without those of references that are absent.
    if not flat.reference_texts:
        kept.pop("reference_text", None)
    elif isinstance(row["reference_text"], list):
        kept["reference_text"] = flat.reference_texts
    for name, value in (("speaker", speaker), ("language", language)):
        if value is not None:
            kept[name] = value

    turns = []
    for i, (text, audio) in enumerate(zip(texts, audios, strict=True)):
        turns.append(Utterance(f"{place}[{i}]", f"{id_}-turn{i}", text, Path(audio), speaker))
    is_dialogue = len(turns) > 1
    return Utterance(
        place,
        id_,
        " ".join(texts),
        Path(audios[0]),
        speaker,
        language,
        kept,
        tuple(turns) if is_dialogue else (),
    )


def _texts_to_speak(flat: FlatRow) -> list[str]:
    """Of each pair of a text and a clip that speaks it, which is all that the row may hold."""
    roles = [message["role"] for message in flat.messages]
    turns = flat.messages[1:] if roles[0] == "system" else flat.messages
    questions, answers = turns[::2], turns[1::2]
    if not turns or roles[-len(turns) :] != ["user", "assistant"] * len(answers):
        raise _Unfit("is no plain text-to-speech row (roles)", roles)
    for answer in answers:
        if answer["content"].strip() not in ("", AUDIO_TAG):
            raise _Unfit("is no plain text-to-speech row (assistant text)", answer["content"])
    if not any(answer["loss"] for answer in answers):
        raise _Unfit("has no turn to train on", roles)
    if len(flat.audios) != len(answers):
        raise _Unfit(f"is no plain text-to-speech row ({len(flat.audios)} clips)", flat.audios)
    texts = []
    for question in questions:
        text = question["content"]
        if len(answers) > 1:
            text = _SPEAKER_TAG.sub("", text)
        texts.append(collapse(text if flat.raw_prompt else without_old_prefix(text)))
    return texts


def _as_given(flat: FlatRow, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The flat messages; `loss` only where the row has one, so that our own rows stay the same."""
    kept = []
    for message, given in zip(flat.messages, messages, strict=True):
        plain = {"role": message["role"], "content": message["content"]}
        if given.get("loss") is not None:
            plain["loss"] = given["loss"]
        kept.append(plain)
    return kept


def _real(found: Path) -> str:
    """Links followed, so that a recording has one name."""
    path = str(found.resolve())
    if not is_utf8(path):
        raise _Unfit("name is not UTF-8", path)
    return path


def _name(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise _Unfit(f"{column} is no text", value)
    return None if value in (None, "") else str(value)
