"""Lists of other evaluation kits <-> rows of ours. Knows neither clips nor scores.

Seed-TTS-eval, one line each, paths relative to the list:

    meta.lst    ID|PROMPT TEXT|PROMPT WAV|TEXT[|WAV]      also ID|TEXT|PROMPT WAV and ID|TEXT

VERSA (and Kaldi), two files that share their keys:

    wav.scp     KEY PATH
    text        KEY TEXT
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.audio import waveforms as audio
from plugins.corpora.kaldi import SCP, TEXT, Line, path_fault, read_lines
from plugins.corpora.utterance import collapse
from plugins.errors import UserError, problem
from plugins.files import disk
from plugins.files.lines import NoJson, parse_json, text_lines

META = "meta.lst"
_META_REMEDY = "write ID|PROMPT TEXT|PROMPT WAV|TEXT"


def read_meta(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of each line of Seed-TTS-eval's list, with an `id`; the prompt is the voice to
    clone."""
    for place, line in text_lines(path):
        fields = list(map(str.strip, line.split("|")))
        id_, prompt_text, prompt, text, wav = "", "", "", "", ""
        if len(fields) in (4, 5):
            id_, prompt_text, prompt, text, wav = [*fields, ""][:5]
        elif len(fields) in (2, 3):
            # Without the prompt's words the text comes second.
            id_, text, prompt = [*fields, ""][:3]
        else:
            raise _bad_line(place, line, f"has {len(fields)} fields", _META_REMEDY)
        if not id_ or not text:
            raise _bad_line(place, line, "has no id or no text", _META_REMEDY)
        # The public lists name the recordings; others leave the suffix out, or keep it in the id.
        yield place, _row(id_.removesuffix(".wav"), text, wav, prompt, prompt_text)


def read_kaldi(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of each line of `text`, with the recordings of `wav.scp`."""
    recordings = read_scp(folder / SCP)
    for line in _kaldi_lines(folder / TEXT):
        if not line.value:
            raise _bad_line(line.place, line.key, "has no text", "write KEY TEXT")
        if line.key not in recordings:
            reason = f"is not in {folder / SCP}"
            remedy = "list its recording there"
            raise problem(
                source=line.place, field="key", value=line.key, reason=reason, remedy=remedy
            )
        yield line.place, _row(line.key, line.value, recordings[line.key])


def read_scp(path: Path) -> dict[str, str]:
    """Key -> path as written. Raises UserError for a command in the place of a path: nothing is
    executed here."""
    names: dict[str, str] = {}
    for line in _kaldi_lines(path):
        if fault := path_fault(line.value):
            reason, remedy = fault
            raise problem(
                source=line.place, field="path", value=line.value, reason=reason, remedy=remedy
            )
        if line.key in names:
            reason, remedy = "is there twice", "name each recording once"
            raise problem(
                source=line.place, field="key", value=line.key, reason=reason, remedy=remedy
            )
        names[line.key] = line.value
    return names


def _kaldi_lines(path: Path) -> Iterator[Line]:
    for line in read_lines(path):
        if line.fault:
            reason = line.fault.removeprefix("line ")
            raise _bad_line(line.place, line.key, reason, "save the file as UTF-8, a line each")
        yield line


def read_generated(source: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Id -> recording, for those of `ids` that are there: of a folder of ID.wav (or .flac ...), a
    list wav.scp, or JSONL of `id` and `audio`. Paths in lists are absolute, or relative to the list
    or the working folder.

    Raises UserError if there is none at all.
    """
    # In Kaldi's folders the list decides, not the names of the files.
    if source.is_dir() and not (source / SCP).is_file():
        names = _in_folder(source, ids)
        folders = [source]
    else:
        listed = source / SCP if source.is_dir() else source
        names = _read_jsonl(listed) if listed.suffix == ".jsonl" else read_scp(listed)
        folders = [listed.resolve().parent, Path.cwd()]
    recordings = {}
    for id_ in ids:
        if id_ in names:
            recordings[id_] = _resolve(names[id_], folders, str(source))
    if not recordings:
        shown = [*ids[:3], "..."] if len(ids) > 3 else ids
        raise problem(
            source="options",
            field="generated",
            value=str(source),
            reason=f"holds none of the dataset's ids ({', '.join(shown)})",
            remedy="name recordings by the ids of the rows",
        )
    return recordings


def write_meta(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """rows: `id`, `text`, and if they have one `prompt`, `prompt_text`."""
    lines = []
    for row in rows:
        fields = [row["id"]]
        if row.get("prompt"):
            fields += [_field(row.get("prompt_text", "")), row["prompt"]]
        lines.append("|".join([*fields, _field(row["text"])]))
    _write(path, lines)


def write_kaldi(path: Path, values: Mapping[str, str]) -> None:
    """One of both files."""
    _write(path, (f"{key} {collapse(value)}" for key, value in values.items()))


def _row(
    id_: str, text: str, wav: str = "", prompt: str = "", prompt_text: str = ""
) -> dict[str, Any]:
    # Lists hold one text and one clip each: a dialogue of two turns.
    row: dict[str, Any] = {"id": id_, "messages": [{"role": "user", "content": text}]}
    if wav:
        row["messages"].append({"role": "assistant", "content": ""})
        row["audios"] = [wav]
    if prompt:
        row |= {"reference_audio": [prompt], "reference_text": [prompt_text]}
    return row


def _in_folder(folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """Of an id's recordings in several formats, the one whose suffix is named first."""
    names = {}
    for id_ in ids:
        for suffix in audio.AUDIO_SUFFIXES:
            if (folder / f"{id_}{suffix}").is_file():
                names[id_] = f"{id_}{suffix}"
                break
    return names


def _read_jsonl(path: Path) -> dict[str, str]:
    names = {}
    for place, line in text_lines(path):
        try:
            row = parse_json(line)
        except NoJson as error:
            raise _bad_line(place, line.strip(), error.reason, error.remedy) from None
        fields = row if isinstance(row, dict) else {}
        id_, recording = fields.get("id"), fields.get("audio")
        if not isinstance(id_, str) or not isinstance(recording, str):
            raise _bad_line(place, row, "lacks id or audio", 'write {"id": ..., "audio": ...}')
        names[id_] = recording
    return names


def _resolve(name: str, folders: list[Path], source: str) -> Path:
    """A file that is listed but not there is a failure of that item, told when it is heard."""
    try:
        return audio.resolve(name, folders=folders).absolute()
    except audio.AudioError as error:
        if error.reason.startswith("not found"):
            return (folders[0] / name).absolute()
        raise problem(
            source=source, field="audio", value=name, reason=error.reason, remedy=error.remedy
        ) from None


def _bad_line(place: str, line: object, reason: str, remedy: str) -> UserError:
    return problem(source=place, field="line", value=line, reason=reason, remedy=remedy)


def _field(text: str) -> str:
    # A bar would begin the next field.
    return collapse(text.replace("|", " "))


def _write(path: Path, lines: Iterable[str]) -> None:
    with disk.replace_when_done(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
