"""Our own rows -> utterances (L1).

In: a JSONL of the seed document's shape. Out: one utterance per plain row (one text, one clip to
speak it), with the row itself: flat messages, absolute paths, references and all else kept. Every
other row is rejected by its reason. `plugins.data.rows` checks the same and more, down to prompt
and codes, but needs torch; training asks it for every row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.audio.waveforms import AudioError, resolve
from plugins.corpora.utterance import Rejected, Utterance, collapse, is_utf8, keep_inside, path_id
from plugins.errors import did_you_mean, problem

# As in `plugins.data.rows` (tests/corpora/test_corpora_jsonl.py holds both together).
COLUMNS = {
    *(
        "messages",
        "audios",
        "audio",
        "reference_audio",
        "reference_text",
        "audio_codes",
        "reference_codes",
    ),
    *("raw_prompt", "id", "speaker", "language", "duration_s", "dataset", "lengths", "row_source"),
}
AUDIO_TAG = "<audio>"
OLD_PREFIX = re.compile(r"^\s*please speak:\s*", re.IGNORECASE)

_ROLES = (["user", "assistant"], ["system", "user", "assistant"])


class _Unfit(Exception):
    """Why a row is rejected: the reason, and the value that shows it."""

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(reason, value)
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.reason, self.value = reason, shown[:200]


@dataclass(frozen=True)
class _Place:
    """Where the paths of a row are looked for."""

    folder: Path
    root: Path | None

    def find(self, path: object, field: str) -> Path:
        if not isinstance(path, str):
            raise _Unfit(f"{field} is no path", path)
        try:
            return resolve(path, folders=[self.folder], root=self.root)
        except AudioError as error:
            # Of a target it is said as every other reader says it.
            raise _Unfit(
                error.reason if field == "audios" else f"{field} {error.reason}", path
            ) from None


def read_jsonl(
    input_dir: Path, jsonl_file: Path, *, root: Path | None = None
) -> Iterator[Utterance | Rejected]:
    """Rows as training reads them; paths are absolute or relative to `input_dir`. Lines are judged
    one by one."""
    if not jsonl_file.is_file():
        raise problem(
            source="jsonl",
            field="jsonl_file",
            value=str(jsonl_file),
            reason="not found",
            remedy="name the file that holds the rows",
        )
    keep_inside(jsonl_file, input_dir, root)
    looked_for = _Place(input_dir, root)
    with jsonl_file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            place, id_ = f"{jsonl_file}:{number}", ""
            if not line.strip():
                continue
            try:
                row = _parse(line)
                id_ = _name(row, "id") or ""
                yield _utterance(row, place, id_, looked_for)
            except _Unfit as unfit:
                yield Rejected(place, id_, unfit.reason, unfit.value)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
        if b"\\u" in line:  # an escape may spell half a character, which no file could hold
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise _Unfit("line is not UTF-8", line.decode(errors="backslashreplace").strip()) from None
    except UnicodeEncodeError:
        raise _Unfit("line escapes half a character", line.decode().strip()) from None
    except (ValueError, RecursionError) as error:
        detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise _Unfit(f"line is no JSON ({detail})", line.decode().strip()) from None
    if not isinstance(row, dict):
        raise _Unfit("line is no JSON object", row)
    for column in row:
        if column not in COLUMNS:
            raise _Unfit(f"column is unknown ({did_you_mean(column, COLUMNS)})", column)
    return row


def _utterance(row: dict[str, Any], place: str, id_: str, looked_for: _Place) -> Utterance:
    messages, content_audios = _flat_messages(row)
    audios = _as_list(row.get("audios") or row.get("audio"))
    if audios and content_audios:
        raise _Unfit("audios are named twice", audios)
    audios = audios or content_audios
    if len(audios) != 1:
        raise _Unfit(f"is no plain text-to-speech row ({len(audios)} clips)", audios)
    found = looked_for.find(audios[0], "audios")
    kept = {
        name: value
        for name, value in row.items()
        if name not in ("audio", "row_source") and value is not None
    }
    audio = _real(found)
    kept |= {"messages": messages, "audios": [audio]}
    references = _references(row, audio, looked_for)
    if references:
        kept["reference_audio"] = (
            references if isinstance(row["reference_audio"], list) else references[0]
        )
    names = {"id": id_ or path_id(found, looked_for.folder)}
    names |= {name: value for name in ("speaker", "language") if (value := _name(row, name))}
    text = messages[-2]["content"]
    text = collapse(text if row.get("raw_prompt") else OLD_PREFIX.sub("", text))
    speaker, language = names.get("speaker"), names.get("language")
    return Utterance(place, names["id"], text, Path(audio), speaker, language, kept | names)


def _flat_messages(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages of a plain row with texts as contents, and the clips that MS-SWIFT's content
    lists named."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _Unfit("messages is no list of messages", messages)
    roles = [message.get("role") for message in messages]
    if roles not in _ROLES:
        raise _Unfit("is no plain text-to-speech row (roles)", roles)
    _require_flag(row, "raw_prompt")
    flat, audios = [], []
    for message in messages:
        content, clips = _flat_content(message.get("content"))
        audios += clips
        if AUDIO_TAG in content and message["role"] != "assistant":
            raise _Unfit(f"{message['role']} turn holds audio", content)
        _require_flag(message, "loss")
        loss = {} if message.get("loss") is None else {"loss": message["loss"]}
        flat.append({"role": message["role"], "content": content, **loss})
    if flat[-1]["content"].strip() not in ("", AUDIO_TAG):
        raise _Unfit("is no plain text-to-speech row (assistant text)", flat[-1]["content"])
    if flat[-1].get("loss") is False:
        raise _Unfit("has no turn to train on", roles)
    return flat, audios


def _flat_content(content: Any) -> tuple[str, list[Any]]:
    if content is None or isinstance(content, str):
        return content or "", []
    items = content if isinstance(content, list) else [content]
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in ("text", "audio") or not isinstance(item.get(kind), str):
            raise _Unfit("content is neither text nor audio", item)
    texts = [AUDIO_TAG if item["type"] == "audio" else item["text"] for item in items]
    return "".join(texts), [item["audio"] for item in items if item["type"] == "audio"]


def _references(row: Mapping[str, Any], target: str, looked_for: _Place) -> list[str]:
    """The paths of the reference clips, absolute."""
    paths = [
        _real(looked_for.find(path, "reference_audio"))
        for path in _as_list(row.get("reference_audio"))
    ]
    if target in paths:
        raise _Unfit("reference_audio is the target itself", target)
    texts = _as_list(row.get("reference_text"))
    if not all(isinstance(text, str) or text is None for text in texts):
        raise _Unfit("reference_text is no text", texts)
    if len(texts) > max(len(paths), len(_as_list(row.get("reference_codes")))):
        raise _Unfit("reference_text has no reference", texts)
    return paths


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


def _require_flag(row: Mapping[str, Any], column: str) -> None:
    if not isinstance(row.get(column), bool | None):
        raise _Unfit(f"{column} is neither true nor false", row[column])


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
