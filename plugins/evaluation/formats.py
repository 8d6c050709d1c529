"""Lists of other evaluation kits <-> rows of ours (L3).

Seed-TTS-eval, one line each, paths relative to the list:

    meta.lst    ID|PROMPT TEXT|PROMPT WAV|TEXT[|WAV]      also ID|TEXT|PROMPT WAV and ID|TEXT

VERSA (and Kaldi), two files that share their keys:

    wav.scp     KEY PATH
    text        KEY TEXT
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.audio import waveforms as audio
from plugins.corpora.utterance import collapse
from plugins.errors import problem
from plugins.files import disk

META, SCP, TEXT = "meta.lst", "wav.scp", "text"
Place = str
_META_REMEDY = "write ID|PROMPT TEXT|PROMPT WAV|TEXT"


def read_meta(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of Seed-TTS-eval's list, with an `id` each; the prompt is the voice to clone."""
    for place, line in _lines(path):
        fields = [field.strip() for field in line.split("|")]
        id_, prompt_text, prompt, text, wav = "", "", "", "", ""
        if len(fields) in (4, 5):
            id_, prompt_text, prompt, text, wav = [*fields, ""][:5]
        elif len(fields) in (2, 3):
            id_, text, prompt = [*fields, ""][:3]
        else:
            raise problem(
                source=place,
                field="line",
                value=line,
                reason=f"has {len(fields)} fields",
                remedy=_META_REMEDY,
            )
        if not id_ or not text:
            raise problem(
                source=place,
                field="line",
                value=line,
                reason="has no id or no text",
                remedy=_META_REMEDY,
            )
        # The public lists name the recordings; lists of others leave the suffix out, or keep it in
        # the id.
        yield place, _row(id_.removesuffix(".wav"), text, wav, prompt, prompt_text)


def read_kaldi(folder: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of `text`, with the recordings of `wav.scp`."""
    recordings = read_scp(folder / SCP)
    for place, line in _lines(folder / TEXT):
        key, _, text = line.strip().partition(" ")
        if not text.strip():
            raise problem(
                source=place,
                field="line",
                value=line,
                reason="has no text",
                remedy="write KEY TEXT",
            )
        if key not in recordings:
            raise problem(
                source=place,
                field="key",
                value=key,
                reason=f"is not in {folder / SCP}",
                remedy="list its recording there",
            )
        yield place, _row(key, text, recordings[key])


def read_scp(path: Path) -> dict[str, str]:
    """Key -> path as written. Raises UserError for a command in the place of a path: nothing is
    executed here."""
    found: dict[str, str] = {}
    for place, line in _lines(path):
        key, _, name = line.strip().partition(" ")
        name = name.strip()
        if not name:
            raise problem(
                source=place,
                field="line",
                value=line,
                reason="has no path",
                remedy="write KEY PATH",
            )
        if name.endswith("|"):
            raise problem(
                source=place,
                field="path",
                value=name,
                reason="is a command",
                remedy="run it and write down the file that it makes",
            )
        if key in found:
            raise problem(
                source=place,
                field="key",
                value=key,
                reason="is there twice",
                remedy="name each recording once",
            )
        found[key] = name
    return found


def read_generated(source: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Id -> recording, for those of `ids` that are there: of a folder of ID.wav (or .flac ...), a
    list wav.scp, or JSONL of `id` and `audio`. Paths in lists are absolute, or relative to the list
    or the working folder.

    Raises UserError if there is none at all.
    """
    if source.is_dir() and not (source / SCP).is_file():
        names = {id_: f"{id_}{suffix}" for suffix in reversed(audio.AUDIO_SUFFIXES) for id_ in ids
                 if (source / f"{id_}{suffix}").is_file()}  # fmt: skip
        folders = [source]
    else:
        listed = source / SCP if source.is_dir() else source
        names = _read_jsonl(listed) if listed.suffix == ".jsonl" else read_scp(listed)
        folders = [listed.resolve().parent, Path.cwd()]
    found = {id_: _resolve(names[id_], folders, str(source)) for id_ in ids if id_ in names}
    if not found:
        shown = ", ".join([*ids[:3], *(["..."] if len(ids) > 3 else [])])
        reason = f"holds none of the dataset's ids ({shown})"
        raise problem(
            source="options",
            field="generated",
            value=str(source),
            reason=reason,
            remedy="name recordings by the ids of the rows",
        )
    return found


def write_meta(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """rows: `id`, `text`, and if they have one `prompt`, `prompt_text`."""
    lines = (
        [row["id"], _field(row.get("prompt_text", "")), row["prompt"], _field(row["text"])]
        if row.get("prompt")
        else [row["id"], _field(row["text"])]
        for row in rows
    )
    _write(path, ("|".join(line) for line in lines))


def write_kaldi(path: Path, values: Mapping[str, str]) -> None:
    """One of both files."""
    _write(path, (f"{key} {collapse(value)}" for key, value in values.items()))


def _row(
    id_: str, text: str, wav: str = "", prompt: str = "", prompt_text: str = ""
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": id_, "messages": [{"role": "user", "content": text}]}
    if wav:
        row["messages"].append({"role": "assistant", "content": ""})
        row["audios"] = [wav]
    if prompt:
        row |= {"reference_audio": [prompt], "reference_text": [prompt_text]}
    return row


def _read_jsonl(path: Path) -> dict[str, str]:
    found = {}
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise problem(
                source=place,
                field="line",
                value=line.strip(),
                reason=f"is no JSON ({error})",
                remedy="mend or delete the line",
            ) from None
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), str) for name in ("id", "audio")
        ):
            raise problem(
                source=place,
                field="line",
                value=row,
                reason="lacks id or audio",
                remedy='write {"id": ..., "audio": ...}',
            )
        found[row["id"]] = row["audio"]
    return found


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


def _lines(path: Path) -> Iterator[tuple[Place, str]]:
    try:
        numbered = list(enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise problem(
            source="options",
            field="file",
            value=str(path),
            reason=f"cannot be read ({error})",
            remedy="name a UTF-8 text file",
        ) from None
    for number, line in numbered:
        if line.strip():
            yield f"{path}:{number}", line


def _field(text: str) -> str:
    return collapse(text.replace("|", " "))


def _write(path: Path, lines: Iterator[str]) -> None:
    with disk.replace_when_done(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
