"""A row as somebody wrote it -> one shape for all rows: the step that every reader of rows shares.

In: the text of a JSONL line, or the mapping it holds. Out, in three steps:

    parse_row       columns that are known, whoever wrote the row (`plugins.corpora.shapes`)
    flat_row        contents as texts with <audio> tags, and the clips they name (`FlatRow`)
    canonical_row   every column, paths and folders absolute, ready for one table:

        messages                               {"role", "content", "loss"} each
        audios, reference_audio                absolute paths
        reference_text                         texts
        audio_codes, reference_codes           inline codes [F][K] each
        audio_code_keys, reference_code_keys   FOLDER#KEY each
        raw_prompt, speaker, row_source

It knows no prompt and no token, opens no recording, and needs no torch: corpora are prepared
without. What a canonical row says to the model: `plugins.data.rows`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from plugins.audio.code_references import parse_reference
from plugins.audio.waveforms import AudioError, resolve
from plugins.corpora.shapes import RowError, in_our_shape
from plugins.errors import did_you_mean, problem
from plugins.files.lines import NoJson, parse_json
from plugins.settings import HiggsAudioSettings

# `file:line`, added when a file is read.
ROW_SOURCE = "row_source"
COLUMNS = (
    "messages",
    "audios",
    "reference_audio",
    "reference_text",
    "audio_codes",
    "reference_codes",
    "raw_prompt",
)
# Codes that a row names (FOLDER#KEY) stand in columns of their own once the row is canonical.
KEY_COLUMNS = {"audio_codes": "audio_code_keys", "reference_codes": "reference_code_keys"}
# Of a row with two answers (`plugins.corpora.pairs`).
PAIR_COLUMNS = (
    "rejected_messages",
    "rejected_audios",
    "rejected_audio_codes",
    "rejected_audio_code_keys",
)
# MS-SWIFT's name: the positions that the row takes, in a list of one, or of a pair in two.
LENGTHS = "lengths"
# Counted only.
SPEAKER = "speaker"
# Accepted and not read; `dataset` and the lengths are in the files that MS-SWIFT writes itself.
_METADATA_COLUMNS = ("id", SPEAKER, "language", "duration_s", "dataset", LENGTHS)
KNOWN_COLUMNS = {
    *COLUMNS,
    *KEY_COLUMNS.values(),
    *PAIR_COLUMNS,
    *_METADATA_COLUMNS,
    ROW_SOURCE,
    "audio",
}
# MS-SWIFT's placeholder of one clip inside a content.
AUDIO_TAG = "<audio>"

_ROLES = ("system", "user", "assistant")
_OLD_PREFIX = re.compile(r"^\s*please speak:\s*", re.IGNORECASE)
_CONTENT_REMEDY = (
    'give a text, or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": PATH}'
)


@dataclass(frozen=True)
class FlatRow:
    """What a row says, in plain types; paths as they were written."""

    messages: list[dict[str, Any]]  # {"role", "content": text with <audio> tags, "loss": bool}
    audios: list[Any]  # of the clips to speak, in the order of the turns
    references: list[Any]  # of the voices to clone
    reference_texts: list[str]  # of the first references; "" for one without
    raw_prompt: bool


def parse_row(line: str, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row of a JSONL line. `columns` renames columns first. Raises RowError."""
    try:
        row = parse_json(line)
    except NoJson as error:
        raise RowError(
            field="line", value=line.strip(), reason=error.reason, remedy=error.remedy
        ) from None
    if not isinstance(row, dict):
        remedy = "write one object per line"
        raise RowError(field="line", value=row, reason="is no JSON object", remedy=remedy)
    if columns:
        row = {columns.get(name, name): value for name, value in row.items()}
    row = in_our_shape(row)
    for column in row:
        # A mistyped `reference_audio` would train without one.
        if column not in KNOWN_COLUMNS:
            # Those that people write, without the ones in which we keep what we made of them.
            remedy = did_you_mean(
                column, {*COLUMNS, *PAIR_COLUMNS[:-1], *_METADATA_COLUMNS, "audio"}
            )
            raise RowError(field="column", value=column, reason="is unknown", remedy=remedy)
    return row


def flat_row(row: Mapping[str, Any]) -> FlatRow:
    """`row` with texts as contents and every clip in a list. Raises RowError."""
    messages, content_audios = _flat_messages(row.get("messages"))
    audios = as_list(row.get("audios") or row.get("audio"))
    if audios and content_audios:
        reason = "are clips in addition to those in the contents"
        remedy = "name each clip once, here or in the contents"
        raise RowError(field="audios", value=audios, reason=reason, remedy=remedy)
    raw_prompt = row.get("raw_prompt")
    if raw_prompt is None:
        raw_prompt = False
    _require_flag(raw_prompt, "raw_prompt")
    references, texts = _references(row)
    return FlatRow(messages, audios or content_audios, references, texts, raw_prompt)


def canonical_row(
    row: Mapping[str, Any], source: str, settings: HiggsAudioSettings, *, beside: Path | None = None
) -> dict[str, Any]:
    """Uniform types and every column, so that rows of all shapes fit into one table; paths are
    absolute.

    Relative paths are looked for in `audio_root` if set, else `beside` the file of the row, then in
    the working folder. Rows may come from strangers: nothing outside of `audio_root` is read once
    it is set, but for code caches `beside` the file of the row; without it, any file of this user.
    Raises UserError, the row at `source`, for what cannot be meant. A canonical row comes back as
    it is."""
    root = Path(os.path.abspath(settings.audio_root)) if settings.audio_root else None
    here = beside or Path.cwd()
    folders = [root] if root else [here, Path.cwd()]
    try:
        flat = flat_row(row)
        audios = [
            _absolute(path, f"audios[{i}]", folders, root) for i, path in enumerate(flat.audios)
        ]
        references = [_absolute(path, "reference_audio", folders, root) for path in flat.references]
    except RowError as error:
        raise error.at(source) from None
    return {
        "messages": flat.messages,
        "audios": audios,
        "reference_audio": references,
        "reference_text": flat.reference_texts,
        **_codes_columns(row, "audio_codes", here, root, source),
        **_codes_columns(row, "reference_codes", here, root, source),
        "raw_prompt": flat.raw_prompt,
        SPEAKER: "" if row.get(SPEAKER) is None else str(row[SPEAKER]),
        ROW_SOURCE: source,
    }


def without_old_prefix(text: str) -> str:
    """The text of a user turn without the seed document's "Please speak: "."""
    return _OLD_PREFIX.sub("", text)


def as_list(value: Any) -> list[Any]:
    """A list as it is, None as an empty one, anything else as a list of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def require_path(path: Any, field: str) -> None:
    """Raises RowError for what is no text, or an empty one."""
    # Empty: it would be joined to a folder, and be that folder.
    if not isinstance(path, str) or not path:
        remedy = "give the path of an audio file"
        raise RowError(field=field, value=path, reason="is no path", remedy=remedy)


def require_other_recordings(references: Iterable[str], targets: Iterable[str]) -> None:
    """A target that is its own reference teaches copying: the loss looks perfect and cloning fails.

    By where links lead. Raises RowError."""
    recordings = set(map(os.path.realpath, targets))
    for path in references:
        if os.path.realpath(path) in recordings:
            reason, remedy = "is the target itself", "give another utterance of the same speaker"
            raise RowError(field="reference_audio", value=path, reason=reason, remedy=remedy)


def _flat_messages(messages: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages with texts as contents, and the clips that MS-SWIFT's content lists named."""
    if not isinstance(messages, list) or not messages:
        reason, remedy = "is no list of messages", "see docs/data-format.md"
        raise RowError(field="messages", value=messages, reason=reason, remedy=remedy)
    flat: list[dict[str, Any]] = []
    audios: list[str] = []
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            reason, remedy = "has no role system, user or assistant", "name the role"
            raise RowError(field=field, value=message, reason=reason, remedy=remedy)
        role, loss = message["role"], message.get("loss")
        if role == "system" and i > 0:
            reason, remedy = "is not the first message", "put it first"
            raise RowError(field=f"{field}.role", value=role, reason=reason, remedy=remedy)
        if loss is not None:
            _require_flag(loss, f"{field}.loss")
        content, clips = _flat_content(message.get("content"), f"{field}.content")
        if AUDIO_TAG in content and role != "assistant":
            reason = f"has audio in a {role} turn"
            remedy = "put voices into reference_audio; only assistant turns hold clips"
            raise RowError(field=f"{field}.content", value=content, reason=reason, remedy=remedy)
        audios += clips
        flat.append({"role": role, "content": content, "loss": loss is not False})
    return flat, audios


def _flat_content(content: Any, field: str) -> tuple[str, list[str]]:
    """One content as text, and its clips. ``[{"type": "text", "text": "so: "}, {"type": "audio",
    "audio": "a.wav"}]`` -> ``"so: <audio>"``, ``["a.wav"]``."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise RowError(field=field, value=content, reason="is no text", remedy=_CONTENT_REMEDY)
    texts: list[str] = []
    clips: list[str] = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in ("text", "audio") or not isinstance(item.get(kind), str):
            reason = "is neither a text nor an audio item"
            raise RowError(field=field, value=item, reason=reason, remedy=_CONTENT_REMEDY)
        if kind == "audio":
            texts.append(AUDIO_TAG)
            clips.append(item["audio"])
        else:
            texts.append(item["text"])
    return "".join(texts), clips


def _references(row: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """Clips and their texts. Programs write a reference that is absent as null or "", and its text
    likewise: such a pair is none."""
    clips, texts = as_list(row.get("reference_audio")), _reference_texts(row)
    # Codes, or their keys, stand beside the clips one by one, or in their place.
    names = ("reference_codes", KEY_COLUMNS["reference_codes"])
    num_codes = max(len(_present(row.get(name))) for name in names)
    if num_codes == 0:
        present: list[Any] = []
        texts_of_them: list[str] = []
        is_text_alone = False
        for clip, text in zip_longest(clips, texts):
            if not _is_absent(clip):
                present.append(clip)
                if text is not None:  # the list of texts may be shorter
                    texts_of_them.append(text)
            elif text:
                is_text_alone = True
        if is_text_alone:
            raise _text_without_clip(texts, len(present))
        return present, texts_of_them
    clips = _present(clips)
    num_clips = max(len(clips), num_codes)
    if any(texts[num_clips:]):
        raise _text_without_clip(texts, num_clips)
    return clips, texts[:num_clips]


def _is_absent(value: Any) -> bool:
    return value is None or value == ""


def _present(value: Any) -> list[Any]:
    """`value` as a list; an empty one if nothing in it is there."""
    entries = as_list(value)
    return [] if all(map(_is_absent, entries)) else entries


def _reference_texts(row: Mapping[str, Any]) -> list[str]:
    texts = []
    for text in as_list(row.get("reference_text")):
        text = "" if text is None else text
        if not isinstance(text, str):
            remedy = "give the transcript of the reference"
            raise RowError(field="reference_text", value=text, reason="is no text", remedy=remedy)
        texts.append(text if text.strip() else "")
    return texts


def _text_without_clip(texts: list[str], num_clips: int) -> RowError:
    num_texts = len(list(filter(None, texts)))
    reason = f"has no reference ({num_texts} transcripts for {num_clips} clips)"
    return RowError(field="reference_text", value=texts, reason=reason, remedy="give one per clip")


def _require_flag(value: Any, field: str) -> None:
    # No guess at what 0 means, or "false", which Python takes for true.
    if not isinstance(value, bool):
        reason, remedy = "is neither true nor false", "write true or false"
        raise RowError(field=field, value=value, reason=reason, remedy=remedy)


def _absolute(path: Any, field: str, folders: list[Path], root: Path | None) -> str:
    """The file that `path` means: of those in `root` if there is one, else of `folders`."""
    require_path(path, field)
    try:
        written = path if root is None else _below(path, root)
        return str(resolve(written, folders=folders, root=root))
    except AudioError as error:
        raise RowError(field=field, value=path, reason=error.reason, remedy=error.remedy) from None


def _below(path: str, root: Path) -> str:
    """`path` relative to `root` if it is absolute and leads there, as prepare_dataset.py writes it;
    else as it is."""
    if not os.path.isabs(path) or "\0" in path:
        return path  # for `resolve` to find, or to refuse
    if ".." in Path(path).parts:
        reason = 'holds "..", which the audio root forbids'
        raise AudioError(path, reason, f"write it relative to {root}")
    # As written first: links inside stay links. Then by the real paths, since one of the two may
    # be written through a link.
    real_path, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    for inside, outer in ((Path(path), root), (real_path, real_root)):
        if inside.is_relative_to(outer):
            return f"./{inside.relative_to(outer)}"  # "./": a file may be called "~a.wav"
    raise AudioError(path, "lies outside of the audio root", f"move it into {root}")


def _codes_columns(
    row: Mapping[str, Any], field: str, beside: Path, root: Path | None, source: str
) -> dict[str, list[Any]]:
    """Inline codes, and keys of cached ones with absolute folders; each column is empty or has all
    entries."""
    keys_field = KEY_COLUMNS[field]
    # A canonical row has keys in their own column, any other row in that of the codes.
    entries = _present(row.get(keys_field)) or _present(row.get(field))
    if not any(isinstance(entry, str) for entry in entries):
        return {field: entries, keys_field: []}
    keys = []
    for i, entry in enumerate(entries):
        name = f"{field}[{i}]"
        if not isinstance(entry, str):
            reason, remedy = "is inline beside cached codes", "write all in one way"
            raise problem(source=source, field=name, value=entry, reason=reason, remedy=remedy)
        folder, key = parse_reference(entry, beside=beside, where=source, field=name)
        folder = folder.resolve()
        # Beside the file of the row too: its owner chose that folder, no row can.
        allowed = [] if root is None else [root.resolve(), beside.resolve()]
        if allowed and not any(map(folder.is_relative_to, allowed)):
            reason = "lies neither in the audio root nor beside this file"
            remedy = f"move the code cache into {root}"
            raise problem(source=source, field=name, value=entry, reason=reason, remedy=remedy)
        keys.append(f"{folder}#{key}")
    return {field: [], keys_field: keys}
