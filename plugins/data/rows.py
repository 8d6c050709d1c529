"""Rows of every accepted shape -> Dialogue. L2: knows JSON rows and audio paths, neither tokens nor
MS-SWIFT.

A row goes two steps. `canonical_row` makes its types uniform and its paths absolute and refuses
what cannot be meant; `dialogue_from_row` reads a canonical row in the model's own terms and
normalises the prompt:

    {"messages": [{"role": "system", "content": "<|scene_desc_start|> Indoor quiet <|scene_desc_end|>"},
                  {"role": "user", "content": "Please speak: Hello world"},
                  {"role": "assistant", "content": ""}],
     "audios": ["target.wav"], "reference_audio": "voice.wav"}

With `clean_text`, texts to speak (all user turns) are written as the original's example writes
them. What that takes as it stands, transcripts of references and the scene, is brought to one
Unicode form only, and so are the texts of assistant turns, which nobody speaks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

from plugins.audio import waveforms as audio
from plugins.audio.code_cache import CodeCache, parse_reference
from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES
from plugins.data.prompt import SCENE_TAGS, VOICE_IN_WORDS, AudioClip, Dialogue, Reference, Turn
from plugins.data.text import clean_transcript, unified
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.errors import UserError, problem
from plugins.settings import HiggsAudioSettings

ROW_SOURCE = "row_source"  # `file:line`, added when a file is read
COLUMNS = (
    "messages",
    "audios",
    "reference_audio",
    "reference_text",
    "audio_codes",
    "reference_codes",
    "raw_prompt",
)
# Codes that a row names (FOLDER#KEY, plugins.audio.code_cache) stand in columns of their own once
# the row is canonical.
KEY_COLUMNS = {"audio_codes": "audio_code_keys", "reference_codes": "reference_code_keys"}
LENGTHS = "lengths"  # MS-SWIFT's name: the positions that the row takes, in a list of one
SPEAKER = "speaker"  # counted only
# Accepted and not read; `dataset` and the lengths are in the files that MS-SWIFT writes itself.
METADATA_COLUMNS = ("id", SPEAKER, "language", "duration_s", "dataset", LENGTHS)
AUDIO_TAG = "<audio>"  # MS-SWIFT's placeholder of one clip inside a content

_OLD_PREFIX = re.compile(r"^\s*please speak:\s*", re.IGNORECASE)
_SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")


def canonical_row(
    row: Mapping[str, Any], source: str, settings: HiggsAudioSettings, *, beside: Path | None = None
) -> dict[str, Any]:
    """Uniform types and every column, so that rows of all shapes fit into one table; paths are
    absolute.

    Contents become texts with <audio> tags. Relative paths are looked for in `audio_root` if set,
    else `beside` the file of the row, then in the working folder. Rows may come from strangers:
    nothing outside of `audio_root` is read once it is set, but for code caches `beside` the file of
    the row; without it, any file of this user."""
    root = Path(os.path.abspath(settings.audio_root)) if settings.audio_root else None
    here = beside or Path.cwd()
    folders = [root] if root else [here, Path.cwd()]
    messages, content_audios = _flatten_messages(row.get("messages"), source)
    audios = as_list(row.get("audios") or row.get("audio"))
    if audios and content_audios:
        reason = "are clips in addition to those in the contents"
        raise problem(
            source=source,
            field="audios",
            value=audios,
            reason=reason,
            remedy="name each clip once, here or in the contents",
        )
    raw_prompt = row.get("raw_prompt") or False
    if not isinstance(raw_prompt, bool):
        raise problem(
            source=source,
            field="raw_prompt",
            value=raw_prompt,
            reason="is neither true nor false",
            remedy="write true or false",
        )
    references = as_list(row.get("reference_audio"))
    texts = [text or "" for text in as_list(row.get("reference_text"))]
    for text in texts:
        if not isinstance(text, str):
            raise problem(
                source=source,
                field="reference_text",
                value=text,
                reason="is no text",
                remedy="give the transcript of the reference",
            )
    return {
        "messages": messages,
        "audios": [
            _absolute(path, folders, root, source, f"audios[{i}]")
            for i, path in enumerate(audios or content_audios)
        ],
        "reference_audio": [
            _absolute(path, folders, root, source, "reference_audio") for path in references
        ],
        "reference_text": texts,
        **_codes_columns(row, "audio_codes", here, root, source),
        **_codes_columns(row, "reference_codes", here, root, source),
        "raw_prompt": raw_prompt,
        SPEAKER: "" if row.get(SPEAKER) is None else str(row[SPEAKER]),
        ROW_SOURCE: source,
    }


def dialogue_from_row(
    row: Mapping[str, Any], settings: HiggsAudioSettings, *, training: bool = True
) -> Dialogue:
    """A canonical row in the model's terms. Clips keep their path, and codes where the row brings
    them.

    training: assistant turns that the row does not mark with `"loss": false` are targets, and there
    must be one. Raises UserError for empty text, clips that do not match the assistant turns, codes
    of the wrong shape."""
    source = row[ROW_SOURCE]
    raw = row["raw_prompt"] or settings.raw_prompt
    clean = settings.clean_text and not raw
    messages = list(row["messages"])
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    if clean and system is not None:
        system = unified(system)
    references = _references(row, source, clean=clean)
    targets = _clips(row, "audios", "audio_codes", source)
    first_index = 0 if system is None else 1
    turns = tuple(
        _turns(messages, iter(targets), source, raw=raw, clean=clean, first_index=first_index)
    )
    num_used = sum(isinstance(part, AudioClip) for turn in turns for part in turn.parts)
    if num_used != len(targets):
        paths = [clip.path for clip in targets]
        reason = f"are {len(targets)} clips for {num_used} assistant turn(s) that take one"
        remedy = f'give each clip an assistant turn with empty content, or one "{AUDIO_TAG}" tag'
        raise problem(source=source, field="audios", value=paths, reason=reason, remedy=remedy)
    if training and not any(turn.trained for turn in turns):
        roles = [message["role"] for message in messages]
        raise problem(
            source=source,
            field="messages",
            value=roles,
            reason="has no turn to train on",
            remedy="add an assistant turn",
        )
    _check_references(references, targets, source)
    if not raw:
        instruction, scene = _normalise_system(system, turns, references, source)
        return Dialogue(turns, references, instruction, scene, source)
    if system is None and any(reference.text is None for reference in references):
        reason = "has no place in a raw prompt without system message"
        raise problem(
            source=source,
            field="reference_audio",
            value=row["reference_audio"],
            reason=reason,
            remedy="add reference_text or a system message",
        )
    return Dialogue(turns, references, system, None, source)


def text_to_say(text: str, *, raw: bool, clean: bool) -> str:
    """The text of a user turn as the model is shown it: the one place for training and for all that
    speak."""
    if raw:
        return text
    if not clean:
        return _OLD_PREFIX.sub("", text).strip()
    return clean_transcript(_OLD_PREFIX.sub("", unified(text)))


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _absolute(path: Any, folders: list[Path], root: Path | None, source: str, field: str) -> str:
    if not isinstance(path, str) or not path:
        raise problem(
            source=source,
            field=field,
            value=path,
            reason="is no path",
            remedy="give the path of an audio file",
        )
    try:
        return str(
            audio.resolve(path if root is None else _below(path, root), folders=folders, root=root)
        )
    except audio.AudioError as error:
        raise problem(
            source=source, field=field, value=path, reason=error.reason, remedy=error.remedy
        ) from None


def _below(path: str, root: Path) -> str:
    """`path` relative to `root` if it is absolute and leads there, as prepare_dataset.py writes it;
    else as it is."""
    if not os.path.isabs(path) or "\0" in path:
        return path  # for `audio.resolve` to find, or to refuse
    if ".." in Path(path).parts:
        raise audio.AudioError(
            path, 'holds "..", which the audio root forbids', f"write it relative to {root}"
        )
    # By its real path too: one of the two may be written through a link. As written first: links
    # inside stay links.
    for inside, of in (
        (Path(path), root),
        (Path(os.path.realpath(path)), Path(os.path.realpath(root))),
    ):
        if inside.is_relative_to(of):
            return f"./{inside.relative_to(of)}"  # not for a shell's eyes: a file may be called "~a.wav"
    raise audio.AudioError(path, "lies outside of the audio root", f"move it into {root}")


def _flatten_messages(messages: Any, source: str) -> tuple[list[dict[str, Any]], list[str]]:
    """MS-SWIFT content lists ([{"type": "text", ...}, {"type": "audio", ...}]) become texts with
    <audio> tags."""
    if not isinstance(messages, list) or not messages:
        raise problem(
            source=source,
            field="messages",
            value=messages,
            reason="is no list of messages",
            remedy="see README, Dataset format",
        )
    flat: list[dict[str, Any]] = []
    audios: list[str] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in {
            "system",
            "user",
            "assistant",
        }:
            raise problem(
                source=source,
                field=f"messages[{i}]",
                value=message,
                reason="has no role system, user or assistant",
                remedy="name the role",
            )
        role, loss = message["role"], message.get("loss")
        if role == "system" and i > 0:
            raise problem(
                source=source,
                field=f"messages[{i}].role",
                value="system",
                reason="is not the first message",
                remedy="put it first",
            )
        if loss not in (None, True, False) or (
            isinstance(loss, int) and not isinstance(loss, bool)
        ):
            raise problem(
                source=source,
                field=f"messages[{i}].loss",
                value=loss,
                reason="is neither true nor false",
                remedy="write true or false",
            )
        content = _flatten_content(message.get("content"), audios, source, f"messages[{i}].content")
        if AUDIO_TAG in content and role != "assistant":
            remedy = "put voices into reference_audio; only assistant turns hold clips"
            raise problem(
                source=source,
                field=f"messages[{i}].content",
                value=content,
                reason=f"has audio in a {role} turn",
                remedy=remedy,
            )
        flat.append({"role": role, "content": content, "loss": loss is not False})
    return flat, audios


def _flatten_content(content: Any, audios: list[str], source: str, field: str) -> str:
    """One content as text; the clips of a content list are appended to `audios`."""
    if content is None or isinstance(content, str):
        return content or ""
    remedy = 'give a text, or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": PATH}'
    if not isinstance(content, list):
        raise problem(source=source, field=field, value=content, reason="is no text", remedy=remedy)
    texts = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in {"text", "audio"} or not isinstance(item.get(kind), str):
            raise problem(
                source=source,
                field=field,
                value=item,
                reason="is neither a text nor an audio item",
                remedy=remedy,
            )
        if kind == "audio":
            audios.append(item["audio"])
        texts.append(AUDIO_TAG if kind == "audio" else item["text"])
    return "".join(texts)


def _turns(
    messages: list[dict[str, Any]],
    clips: Iterator[AudioClip],
    source: str,
    *,
    raw: bool,
    clean: bool,
    first_index: int,
) -> Iterator[Turn]:
    """Assistant turns take clips in order: one if their content is empty, else one per <audio>
    tag."""
    for i, message in enumerate(messages, start=first_index):
        content: str = message["content"]
        if message["role"] == "user":
            text = text_to_say(content, raw=raw, clean=clean)
            if not text.strip():
                raise problem(
                    source=source,
                    field=f"messages[{i}].content",
                    value=content,
                    reason="is empty",
                    remedy="give the text to speak",
                )
            yield Turn("user", (text,))
            continue
        parts: list[str | AudioClip] = []
        for j, text in enumerate(content.split(AUDIO_TAG) if content.strip() else ["", ""]):
            if j:
                clip = next(clips, None)
                if clip is None:
                    raise problem(
                        source=source,
                        field="audios",
                        value=None,
                        reason=f"has no clip for messages[{i}]",
                        remedy="give one clip per turn",
                    )
                parts.append(clip)
            if clean:
                text = unified(text)
            if text:
                parts.append(text)
        yield Turn("assistant", tuple(parts), trained=message["loss"])


def _references(row: Mapping[str, Any], source: str, *, clean: bool) -> tuple[Reference, ...]:
    clips = _clips(row, "reference_audio", "reference_codes", source)
    texts = row["reference_text"]
    if len(texts) > len(clips):
        reason = f"are {len(texts)} transcripts for {len(clips)} clips"
        raise problem(
            source=source,
            field="reference_text",
            value=texts,
            reason=reason,
            remedy="give one per clip",
        )
    if clean:
        texts = [unified(text) for text in texts]
    padded = [*texts, *[""] * (len(clips) - len(texts))]
    return tuple(
        Reference(clip, text.strip() or None) for clip, text in zip(clips, padded, strict=True)
    )


def _codes_columns(
    row: Mapping[str, Any], field: str, beside: Path, root: Path | None, source: str
) -> dict[str, list[Any]]:
    """Inline codes, and keys of cached ones with absolute folders; each column is empty or has all
    entries."""
    keys_field = KEY_COLUMNS[field]
    entries = as_list(row.get(keys_field)) or as_list(row.get(field))
    if not any(isinstance(entry, str) for entry in entries):
        return {field: entries, keys_field: []}
    keys = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise problem(
                source=source,
                field=f"{field}[{i}]",
                value=entry,
                reason="is inline beside cached codes",
                remedy="write all in one way",
            )
        folder, key = parse_reference(entry, beside=beside, where=source, field=f"{field}[{i}]")
        folder = folder.resolve()
        if root is not None and not any(
            folder.is_relative_to(inside.resolve()) for inside in (root, beside)
        ):
            reason = "lies neither in the audio root nor beside this file"
            raise problem(
                source=source,
                field=f"{field}[{i}]",
                value=entry,
                reason=reason,
                remedy=f"move the code cache into {root}",
            )
        keys.append(f"{folder}#{key}")
    return {field: [], keys_field: keys}


@lru_cache
def _cache(folder: Path) -> CodeCache:
    return CodeCache(folder)


def _cached(reference: str, source: str, field: str) -> AudioClip:
    """The codes (K, F) int64 of FOLDER#KEY."""
    folder, key = parse_reference(reference, beside=Path("/"), where=source, field=field)
    try:
        cache = _cache(folder)
        codes = torch.from_numpy(cache[key].astype("int64"))
    except UserError as error:
        raise UserError(f"{source}: {field}: {error}") from None
    _require_range(codes, source, field)
    return AudioClip(codes=codes, key=key, codec=cache.codec, encoded_ns=cache.written_ns)


def _require_range(codes: torch.Tensor, source: str, field: str) -> None:
    """Whatever made them: the model has 1024 and 1025 too, which begin and end a stream."""
    for code in (int(codes.min()), int(codes.max())):
        if not 0 <= code < NUM_CODES:
            remedy = "encode with the model's codec"
            raise problem(
                source=source,
                field=field,
                value=code,
                reason=f"is outside 0..{NUM_CODES - 1}",
                remedy=remedy,
            )


def _clips(
    row: Mapping[str, Any], path_field: str, codes_field: str, source: str
) -> list[AudioClip]:
    """One clip per path or per entry of codes, or per pair of both."""
    paths, keys = row[path_field], row.get(KEY_COLUMNS[codes_field]) or []
    codes_list = keys or as_list(row[codes_field])
    if paths and codes_list and len(paths) != len(codes_list):
        reason = f"entries for {len(paths)} clips in {path_field}"
        raise problem(
            source=source,
            field=codes_field,
            value=len(codes_list),
            reason=reason,
            remedy="give one entry per clip",
        )
    if not codes_list:
        return [AudioClip(path) for path in paths]
    read = _cached if keys else _inline
    clips = [read(entry, source, f"{codes_field}[{i}]") for i, entry in enumerate(codes_list)]
    return (
        [replace(clip, path=path) for clip, path in zip(clips, paths, strict=True)]
        if paths
        else clips
    )


def _inline(codes: Any, source: str, field: str) -> AudioClip:
    """Codes [F][K] (MS-SWIFT's convention)."""
    remedy = f"give a list of F frames of {NUM_CODEBOOKS} codes each"
    try:
        codes_FxK = torch.tensor(codes)
    except (ValueError, TypeError, RuntimeError):
        raise problem(
            source=source,
            field=field,
            value=codes,
            reason="is no rectangular list of integers",
            remedy=remedy,
        ) from None
    if codes_FxK.dim() != 2 or codes_FxK.shape[1] != NUM_CODEBOOKS or not len(codes_FxK):
        raise problem(
            source=source,
            field=field,
            value=list(codes_FxK.shape),
            reason=f"is not [F][{NUM_CODEBOOKS}]",
            remedy=remedy,
        )
    if codes_FxK.is_floating_point():
        raise problem(
            source=source,
            field=field,
            value=float(codes_FxK[0, 0]),
            reason="is no integer",
            remedy=remedy,
        )
    _require_range(codes_FxK, source, field)
    return AudioClip(codes=codes_FxK.long().T.contiguous())


def _check_references(
    references: tuple[Reference, ...], targets: list[AudioClip], source: str
) -> None:
    """A target that is its own reference teaches copying: the loss looks perfect and cloning
    fails."""
    target_paths = {os.path.realpath(clip.path) for clip in targets if clip.path}
    for reference in references:
        if (
            reference.clip.path is not None
            and os.path.realpath(reference.clip.path) in target_paths
        ):
            remedy = "give another utterance of the same speaker"
            raise problem(
                source=source,
                field="reference_audio",
                value=reference.clip.path,
                reason="is the target itself",
                remedy=remedy,
            )


def _normalise_system(
    system: str | None, turns: tuple[Turn, ...], references: tuple[Reference, ...], source: str
) -> tuple[str | None, str | None]:
    """Instruction and scene of a system message, however loosely its scene tags are set; None: no
    system turn."""
    before, *rest = SCENE_TAGS.split(system or "")
    # Either no tag at all, or: start tag, scene, end tag, nothing more.
    if rest and (len(rest) != 4 or rest[0] == rest[2] or rest[3].strip()):
        remedy = (
            "write the instruction first, then one <|scene_desc_start|> SCENE <|scene_desc_end|>"
        )
        raise problem(
            source=source,
            field="messages[0].content",
            value=system,
            reason="has scene tags or text out of place",
            remedy=remedy,
        )
    tags = {
        tag
        for turn in turns
        for part in turn.parts
        if isinstance(part, str)
        for tag in _SPEAKER_TAG.findall(part)
    }
    instruction, scene = before.strip(), (rest[1].strip() or None) if rest else None
    _check_voices(scene, tags, references, source)
    if instruction:
        return instruction, scene
    if len(tags) > 1 and not references:
        return MULTI_SPEAKER_INSTRUCTION, _with_voices(scene, sorted(tag[1:-1] for tag in tags))
    if references and scene is None and all(reference.text for reference in references):
        return None, None  # the finished turns say it all: the original writes no system turn here
    return INSTRUCTION, scene


def _check_voices(
    scene: str | None, tags: set[str], references: tuple[Reference, ...], source: str
) -> None:
    """A clip takes the first number that the scene does not describe: the text must name it, or it
    means nobody."""
    described = {int(line[1]) for line in VOICE_IN_WORDS.finditer(scene or "")}
    if not described or all(reference.text is not None for reference in references):
        return
    free = (number for number in count() if number not in described)
    for reference in references:
        number = next(free)
        if reference.text is None and f"[SPEAKER{number}]" not in tags:
            reason = f"would be SPEAKER{number}, whom the text does not name: the scene describes the others in words"
            remedy = "leave the voice out of the scene, or tag the text"
            raise problem(
                source=source,
                field="reference_audio",
                value=reference.clip.path or "codes",
                reason=reason,
                remedy=remedy,
            )


def _with_voices(scene: str | None, tags: list[str]) -> str:
    """The original's default where nobody says who speaks: feminine and masculine voices in
    turn."""
    if scene is not None and VOICE_IN_WORDS.search(scene):
        return scene
    voices = "\n".join(f"{tag}: {('feminine', 'masculine')[i % 2]}" for i, tag in enumerate(tags))
    return f"{scene}\n\n{voices}" if scene else voices
