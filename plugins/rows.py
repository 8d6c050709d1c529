"""Rows of every accepted shape -> Dialogue. L2: knows JSON rows and audio paths, neither tokens nor MS-SWIFT.

A row goes two steps. `canonical_row` makes its types uniform and its paths absolute and refuses what cannot be meant;
`dialogue_from_row` reads a canonical row in the model's own terms and normalises the prompt:

    {"messages": [{"role": "system", "content": "<|scene_desc_start|> Indoor quiet <|scene_desc_end|>"},
                  {"role": "user", "content": "Please speak: Hello world"},
                  {"role": "assistant", "content": ""}],
     "audios": ["target.wav"], "reference_audio": "voice.wav"}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins import audio
from plugins.audio_tower import SAMPLE_RATE_HZ
from plugins.code_cache import CodeCache, parse_reference
from plugins.codec import FRAMES_PER_S, NUM_CODEBOOKS, NUM_CODES, Codec
from plugins.errors import UserError, did_you_mean, problem
from plugins.prompt import SCENE_TAGS, VOICE_IN_WORDS, AudioClip, Dialogue, Reference, Turn
from plugins.prompt_text import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.settings import HiggsAudioSettings
from plugins.tokens import SpecialTokens

ROW_SOURCE = "row_source"  # `file:line`, added when a file is read
COLUMNS = ("messages", "audios", "reference_audio", "reference_text", "audio_codes", "reference_codes", "raw_prompt")
# Codes that a row names (FOLDER#KEY, plugins.code_cache) stand in columns of their own once the row is canonical.
KEY_COLUMNS = {"audio_codes": "audio_code_keys", "reference_codes": "reference_code_keys"}
# Accepted and not read; `dataset` is what MS-SWIFT adds to the files that it writes itself.
METADATA_COLUMNS = ("id", "speaker", "language", "duration_s", "dataset")
AUDIO_TAG = "<audio>"  # MS-SWIFT's placeholder of one clip inside a content

_OLD_PREFIX = re.compile(r"^\s*please speak:\s*", re.IGNORECASE)
_SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")


def read_rows(
    path: str,
    settings: HiggsAudioSettings,
    *,
    check: Callable[[Dialogue], None],
    columns: Mapping[str, str] | None = None,
    max_problems: int = 20,
) -> list[dict[str, Any]]:
    """All rows of a JSONL file, canonical and each passed to `check`. `columns` renames columns first.

    Raises UserError with one line per faulty row, the first `max_problems` of them: nothing is dropped in silence.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for source, line in _numbered_lines(path):
        try:
            row = _parse(line, source, columns or {})
            row = canonical_row(row, source, settings, beside=Path(path).resolve().parent)
            check(dialogue_from_row(row, settings))
            rows.append(row)
        except UserError as error:
            problems.append(str(error))
    if problems:
        hidden = len(problems) - max_problems
        raise UserError("\n".join(problems[:max_problems] + ([f"... and {hidden} more"] if hidden > 0 else [])))
    if not rows:
        raise problem(path, "rows", 0, "the file has no row", "prepare it again with prepare_dataset.py")
    return rows


def canonical_row(
    row: Mapping[str, Any], source: str, settings: HiggsAudioSettings, *, beside: Path | None = None
) -> dict[str, Any]:
    """Uniform types and every column, so that rows of all shapes fit into one table; paths are absolute.

    Contents become texts with <audio> tags. Relative paths are looked for in `audio_root` if set, else `beside` the
    file of the row, then in the working folder.
    """
    first = Path(settings.audio_root) if settings.audio_root else beside
    folders = [folder for folder in (first, Path.cwd()) if folder is not None]
    messages, content_audios = _flatten_messages(row.get("messages"), source)
    audios = as_list(row.get("audios") or row.get("audio"))
    if audios and content_audios:
        reason = "are clips in addition to those in the contents"
        raise problem(source, "audios", audios, reason, "name each clip once, here or in the contents")
    raw_prompt = row.get("raw_prompt") or False
    if not isinstance(raw_prompt, bool):
        raise problem(source, "raw_prompt", raw_prompt, "is neither true nor false", "write true or false")
    references = as_list(row.get("reference_audio"))
    texts = [text or "" for text in as_list(row.get("reference_text"))]
    for text in texts:
        if not isinstance(text, str):
            raise problem(source, "reference_text", text, "is no text", "give the transcript of the reference")
    return {
        "messages": messages,
        "audios": [_absolute(path, folders, source, f"audios[{i}]") for i, path in enumerate(audios or content_audios)],
        "reference_audio": [_absolute(path, folders, source, "reference_audio") for path in references],
        "reference_text": texts,
        **_codes_columns(row, "audio_codes", beside or Path.cwd(), source),
        **_codes_columns(row, "reference_codes", beside or Path.cwd(), source),
        "raw_prompt": raw_prompt,
        ROW_SOURCE: source,
    }


def check_columns(row: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a column that nothing reads: a mistyped `reference_audio` would train without reference."""
    known = {*COLUMNS, *KEY_COLUMNS.values(), *METADATA_COLUMNS, ROW_SOURCE, "audio"}
    for column in row:
        if column not in known:
            raise problem(source, "column", column, "is unknown", did_you_mean(column, known))


def dialogue_from_row(row: Mapping[str, Any], settings: HiggsAudioSettings, *, training: bool = True) -> Dialogue:
    """A canonical row in the model's terms. Clips keep their path, and codes where the row brings them.

    training: assistant turns that the row does not mark with `"loss": false` are targets, and there must be one.
    Raises UserError for empty text, clips that do not match the assistant turns, codes of the wrong shape.
    """
    source = row[ROW_SOURCE]
    raw = row["raw_prompt"] or settings.raw_prompt
    messages = list(row["messages"])
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    references = _references(row, source)
    targets = _clips(row, "audios", "audio_codes", source)
    turns = tuple(_turns(messages, iter(targets), source, raw=raw, first_index=0 if system is None else 1))
    num_used = sum(isinstance(part, AudioClip) for turn in turns for part in turn.parts)
    if num_used != len(targets):
        paths = [clip.path for clip in targets]
        reason = f"are {len(targets)} clips for {num_used} assistant turn(s) that take one"
        remedy = f'give each clip an assistant turn with empty content, or one "{AUDIO_TAG}" tag'
        raise problem(source, "audios", paths, reason, remedy)
    if training and not any(turn.trained for turn in turns):
        roles = [message["role"] for message in messages]
        raise problem(source, "messages", roles, "has no turn to train on", "add an assistant turn")
    _check_references(references, targets, source)
    if not raw:
        instruction, scene = _normalise_system(system, turns, references, source)
        return Dialogue(turns, references, instruction, scene, source)
    if system is None and any(reference.text is None for reference in references):
        reason = "has no place in a raw prompt without system message"
        raise problem(
            source, "reference_audio", row["reference_audio"], reason, "add reference_text or a system message"
        )
    return Dialogue(turns, references, system, None, source)


def num_frames(clip: AudioClip, source: str) -> int:
    """Codec frames of a clip, from its codes or the header of its file. Raises UserError if it cannot be read."""
    if clip.codes is not None:
        return clip.codes.shape[1]
    assert clip.path is not None
    try:
        return math.ceil(audio.probe(clip.path).duration_s * FRAMES_PER_S)
    except audio.AudioError as error:
        raise problem(source, "audio", clip.path, error.reason, error.remedy) from None


def with_clips(dialogue: Dialogue, codec: Codec, tokens: SpecialTokens) -> Dialogue:
    """`dialogue` with the codes of every clip, encoded where it has none, and with waveforms for an audio tower.

    Raises UserError naming the row if a file cannot be decoded.
    """

    def encoded(clip: AudioClip) -> AudioClip:
        if clip.codes is not None:
            return clip
        assert clip.path is not None
        try:
            return replace(clip, codes=codec.encode_file(clip.path))
        except audio.AudioError as error:
            raise problem(dialogue.source, "audio", clip.path, error.reason, error.remedy) from None

    coded = dialogue.map_clips(encoded)
    return coded if tokens.tower is None else coded.map_heard(lambda clip: _with_waveform(clip, dialogue.source))


def stand_ins(dialogue: Dialogue, tokens: SpecialTokens) -> Dialogue:
    """`dialogue` with silence of the same lengths, from headers: enough to count the positions of a row."""

    def silent(clip: AudioClip) -> AudioClip:
        codes = torch.zeros(tokens.num_codebooks, num_frames(clip, dialogue.source), dtype=torch.long)
        return AudioClip(clip.path, codes)

    def heard(clip: AudioClip) -> AudioClip:
        assert clip.codes is not None
        num_samples = clip.codes.shape[1] * SAMPLE_RATE_HZ // FRAMES_PER_S
        return replace(clip, waveform=torch.zeros(1).expand(num_samples))

    coded = dialogue.map_clips(silent)
    return coded if tokens.tower is None else coded.map_heard(heard)


def _with_waveform(clip: AudioClip, source: str) -> AudioClip:
    if clip.path is None:
        reason = "is not enough: this model hears references through its audio tower"
        raise problem(source, "reference_codes", "codes", reason, "give reference_audio")
    try:
        waveform = audio.load(clip.path, sample_rate_hz=SAMPLE_RATE_HZ)
    except audio.AudioError as error:
        raise problem(source, "reference_audio", clip.path, error.reason, error.remedy) from None
    return replace(clip, waveform=torch.from_numpy(waveform))


def check_clips(dialogue: Dialogue, settings: HiggsAudioSettings) -> None:
    """Raise UserError for clips that cannot be read or are longer than `max_audio_length`, from their headers only."""
    for clip in dialogue.clips():
        frames = num_frames(clip, dialogue.source)
        if frames > settings.max_audio_length:
            reason = f"has {frames} codec frames, more than max_audio_length {settings.max_audio_length}"
            raise problem(dialogue.source, "audio", clip.path, reason, "cut the clip or raise MAX_AUDIO_LENGTH")
        if clip.codes is not None and clip.path is not None:
            of_audio = num_frames(AudioClip(clip.path), dialogue.source)
            if abs(frames - of_audio) > 1:
                reason = f"are {frames} frames for a clip of {of_audio} ({FRAMES_PER_S} per second)"
                remedy = "encode the clip itself, resampled to 24 kHz"
                raise problem(dialogue.source, "audio_codes", f"codes of {clip.path}", reason, remedy)


def _numbered_lines(path: str) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise problem(path, "file", Path(path).name, f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError as error:
        raise problem(f"{path}:{number + 1}", "line", error.reason, "is not UTF-8", "save the file as UTF-8") from None


def _parse(line: str, source: str, columns: Mapping[str, str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise problem(source, "line", line.strip(), f"is no JSON ({error.msg})", "mend or delete the line") from None
    if not isinstance(row, dict):
        raise problem(source, "line", row, "is no JSON object", "write one object per line")
    row = {columns.get(name, name): value for name, value in row.items()}
    check_columns(row, source)
    return row


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _absolute(path: Any, folders: list[Path], source: str, field: str) -> str:
    if not isinstance(path, str) or not path:
        raise problem(source, field, path, "is no path", "give the path of an audio file")
    try:
        return str(audio.resolve(path, folders=folders))
    except audio.AudioError as error:
        raise problem(source, field, path, error.reason, error.remedy) from None


def _flatten_messages(messages: Any, source: str) -> tuple[list[dict[str, Any]], list[str]]:
    """MS-SWIFT content lists ([{"type": "text", ...}, {"type": "audio", ...}]) become texts with <audio> tags."""
    if not isinstance(messages, list) or not messages:
        raise problem(source, "messages", messages, "is no list of messages", "see README, Dataset format")
    flat: list[dict[str, Any]] = []
    audios: list[str] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in {"system", "user", "assistant"}:
            raise problem(source, f"messages[{i}]", message, "has no role system, user or assistant", "name the role")
        role, loss = message["role"], message.get("loss")
        if role == "system" and i > 0:
            raise problem(source, f"messages[{i}].role", "system", "is not the first message", "put it first")
        if loss not in (None, True, False) or (isinstance(loss, int) and not isinstance(loss, bool)):
            raise problem(source, f"messages[{i}].loss", loss, "is neither true nor false", "write true or false")
        content = _flatten_content(message.get("content"), audios, source, f"messages[{i}].content")
        if AUDIO_TAG in content and role != "assistant":
            remedy = "put voices into reference_audio; only assistant turns hold clips"
            raise problem(source, f"messages[{i}].content", content, f"has audio in a {role} turn", remedy)
        flat.append({"role": role, "content": content, "loss": loss is not False})
    return flat, audios


def _flatten_content(content: Any, audios: list[str], source: str, field: str) -> str:
    """One content as text; the clips of a content list are appended to `audios`."""
    if content is None or isinstance(content, str):
        return content or ""
    remedy = 'give a text, or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": PATH}'
    if not isinstance(content, list):
        raise problem(source, field, content, "is no text", remedy)
    texts = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in {"text", "audio"} or not isinstance(item.get(kind), str):
            raise problem(source, field, item, "is neither a text nor an audio item", remedy)
        if kind == "audio":
            audios.append(item["audio"])
        texts.append(AUDIO_TAG if kind == "audio" else item["text"])
    return "".join(texts)


def _turns(
    messages: list[dict[str, Any]], clips: Iterator[AudioClip], source: str, *, raw: bool, first_index: int
) -> Iterator[Turn]:
    """Assistant turns take clips in order: one if their content is empty, else one per <audio> tag."""
    for i, message in enumerate(messages, start=first_index):
        content: str = message["content"]
        if message["role"] == "user":
            text = content if raw else _OLD_PREFIX.sub("", content).strip()
            if not text.strip():
                raise problem(source, f"messages[{i}].content", content, "is empty", "give the text to speak")
            yield Turn("user", (text,))
            continue
        parts: list[str | AudioClip] = []
        for j, text in enumerate(content.split(AUDIO_TAG) if content.strip() else ["", ""]):
            if j:
                clip = next(clips, None)
                if clip is None:
                    raise problem(source, "audios", None, f"has no clip for messages[{i}]", "give one clip per turn")
                parts.append(clip)
            if text:
                parts.append(text)
        yield Turn("assistant", tuple(parts), trained=message["loss"])


def _references(row: Mapping[str, Any], source: str) -> tuple[Reference, ...]:
    clips = _clips(row, "reference_audio", "reference_codes", source)
    texts = row["reference_text"]
    if len(texts) > len(clips):
        reason = f"are {len(texts)} transcripts for {len(clips)} clips"
        raise problem(source, "reference_text", texts, reason, "give one per clip")
    padded = [*texts, *[""] * (len(clips) - len(texts))]
    return tuple(Reference(clip, text.strip() or None) for clip, text in zip(clips, padded, strict=True))


def _codes_columns(row: Mapping[str, Any], field: str, beside: Path, source: str) -> dict[str, list[Any]]:
    """Inline codes, and keys of cached ones with absolute folders; each column is empty or has all entries."""
    entries, keys_field = as_list(row.get(field)), KEY_COLUMNS[field]
    if row.get(keys_field) or not any(isinstance(entry, str) for entry in entries):
        return {field: entries, keys_field: row.get(keys_field) or []}
    keys = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise problem(source, f"{field}[{i}]", entry, "is inline beside cached codes", "write all in one way")
        folder, key = parse_reference(entry, beside=beside, where=source, field=f"{field}[{i}]")
        keys.append(f"{folder.resolve()}#{key}")
    return {field: [], keys_field: keys}


@lru_cache
def _cache(folder: Path) -> CodeCache:
    return CodeCache(folder)


def _cached(reference: str, source: str, field: str) -> Tensor:
    """Codes (K, F) int64 of FOLDER#KEY."""
    folder, key = parse_reference(reference, beside=Path("/"), where=source, field=field)
    try:
        return torch.from_numpy(_cache(folder)[key].astype("int64"))
    except UserError as error:
        raise UserError(f"{source}: {field}: {error}") from None


def _clips(row: Mapping[str, Any], path_field: str, codes_field: str, source: str) -> list[AudioClip]:
    """One clip per path or per entry of codes, or per pair of both."""
    paths, keys = row[path_field], row.get(KEY_COLUMNS[codes_field]) or []
    codes_list = keys or as_list(row[codes_field])
    if paths and codes_list and len(paths) != len(codes_list):
        reason = f"entries for {len(paths)} clips in {path_field}"
        raise problem(source, codes_field, len(codes_list), reason, "give one entry per clip")
    if not codes_list:
        return [AudioClip(path) for path in paths]
    named: list[str | None] = [*paths] or [None] * len(codes_list)
    read = _cached if keys else _codes_tensor
    fields = [f"{codes_field}[{i}]" for i in range(len(codes_list))]
    tensors = [read(entry, source, field) for entry, field in zip(codes_list, fields, strict=True)]
    cached = [key.rpartition("#")[2] for key in keys] or [None] * len(tensors)
    return [AudioClip(path, codes, key=key) for path, codes, key in zip(named, tensors, cached, strict=True)]


def _codes_tensor(codes: Any, source: str, field: str) -> Tensor:
    """Inline codes [F][K] (MS-SWIFT's convention) -> (K, F) int64."""
    remedy = f"give a list of F frames of {NUM_CODEBOOKS} codes each"
    try:
        codes_FxK = torch.tensor(codes)
    except (ValueError, TypeError, RuntimeError):
        raise problem(source, field, codes, "is no rectangular list of integers", remedy) from None
    if codes_FxK.dim() != 2 or codes_FxK.shape[1] != NUM_CODEBOOKS or not len(codes_FxK):
        raise problem(source, field, list(codes_FxK.shape), f"is not [F][{NUM_CODEBOOKS}]", remedy)
    if codes_FxK.is_floating_point():
        raise problem(source, field, float(codes_FxK[0, 0]), "is no integer", remedy)
    if codes_FxK.min() < 0 or codes_FxK.max() >= NUM_CODES:
        worst = int(codes_FxK.max() if codes_FxK.min() >= 0 else codes_FxK.min())
        raise problem(source, field, worst, f"is outside 0..{NUM_CODES - 1}", "encode with the model's codec")
    return codes_FxK.long().T.contiguous()


def _check_references(references: tuple[Reference, ...], targets: list[AudioClip], source: str) -> None:
    """A target that is its own reference teaches copying: the loss looks perfect and cloning fails."""
    target_paths = {clip.path for clip in targets if clip.path}
    for reference in references:
        if reference.clip.path in target_paths:
            remedy = "give another utterance of the same speaker"
            raise problem(source, "reference_audio", reference.clip.path, "is the target itself", remedy)


def _normalise_system(
    system: str | None, turns: tuple[Turn, ...], references: tuple[Reference, ...], source: str
) -> tuple[str | None, str | None]:
    """Instruction and scene of a system message, however loosely its scene tags are set; None: no system turn."""
    before, *rest = SCENE_TAGS.split(system or "")
    # Either no tag at all, or: start tag, scene, end tag, nothing more.
    if rest and (len(rest) != 4 or rest[0] == rest[2] or rest[3].strip()):
        remedy = "write the instruction first, then one <|scene_desc_start|> SCENE <|scene_desc_end|>"
        raise problem(source, "messages[0].content", system, "has scene tags or text out of place", remedy)
    tags = {tag for turn in turns for part in turn.parts if isinstance(part, str) for tag in _SPEAKER_TAG.findall(part)}
    instruction, scene = before.strip(), (rest[1].strip() or None) if rest else None
    _check_voices(scene, tags, references, source)
    if instruction:
        return instruction, scene
    if len(tags) > 1 and not references:
        return MULTI_SPEAKER_INSTRUCTION, _with_voices(scene, sorted(tag[1:-1] for tag in tags))
    if references and scene is None and all(reference.text for reference in references):
        return None, None  # the finished turns say it all: the original writes no system turn here
    return INSTRUCTION, scene


def _check_voices(scene: str | None, tags: set[str], references: tuple[Reference, ...], source: str) -> None:
    """A clip takes the first number that the scene does not describe: the text must name it, or it means nobody."""
    described = {int(line[1]) for line in VOICE_IN_WORDS.finditer(scene or "")}
    if not described or all(reference.text is not None for reference in references):
        return
    free = (number for number in count() if number not in described)
    for reference in references:
        number = next(free)
        if reference.text is None and f"[SPEAKER{number}]" not in tags:
            reason = f"would be SPEAKER{number}, whom the text does not name: the scene describes the others in words"
            remedy = "leave the voice out of the scene, or tag the text"
            raise problem(source, "reference_audio", reference.clip.path or "codes", reason, remedy)


def _with_voices(scene: str | None, tags: list[str]) -> str:
    """The original's default where nobody says who speaks: feminine and masculine voices in turn."""
    if scene is not None and VOICE_IN_WORDS.search(scene):
        return scene
    voices = "\n".join(f"{tag}: {('feminine', 'masculine')[i % 2]}" for i, tag in enumerate(tags))
    return f"{scene}\n\n{voices}" if scene else voices
