"""The folder of a speech corpus -> its utterances, one by one (L4).

In: LJSpeech, VCTK (both trees) or a CSV with audio files. Out: `Utterance`, or `Rejected` where text or recording is
missing. A fault of the whole corpus (no metadata, no such column, a ragged line) raises `UserError`.
Opens transcripts only, never audio; knows nothing about rows.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.audio import AudioError, resolve
from plugins.errors import did_you_mean, problem

_VCTK_TREES = ("wav48_silence_trimmed", "wav48")  # release 0.92, release 0.80
_SUFFIXES = ("", ".wav", ".flac", ".mp3", ".ogg")


@dataclass(frozen=True)
class Utterance:
    """One recording with its transcript."""

    place: str  # where it is named: a file, or file:line
    id: str  # the same on every machine
    text: str  # whitespace collapsed; may be empty
    audio: Path  # an existing regular file, absolute, links followed
    speaker: str | None


@dataclass(frozen=True)
class Rejected:
    """One utterance that cannot be trained on."""

    place: str
    id: str
    reason: str  # constant per kind of fault, but for a detail in parentheses at its end
    value: str | float

    @property
    def kind(self) -> str:
        """The reason without its detail, to count by."""
        return self.reason.partition(" (")[0]


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read from a CSV."""

    text: str = "text"
    audio: str = "audio"
    speaker: str | None = None


def read_ljspeech(input_dir: Path) -> Iterator[Utterance | Rejected]:
    """``metadata.csv`` (``id|text|normalized text``) with ``wavs/ID.wav`` or ``.flac``; normalized text wins."""
    metadata = input_dir / "metadata.csv"
    if not metadata.is_file():
        raise problem("ljspeech", "input_dir", str(input_dir), "holds no metadata.csv", "name the folder that holds it")
    # A quote in LJSpeech is part of the text, even an unpaired one.
    for line, fields in _records(metadata, delimiter="|", quoting=csv.QUOTE_NONE):
        place = f"{metadata}:{line}"
        if len(fields) not in (2, 3):
            raise problem(place, "fields", len(fields), "are not 2 or 3", "write id|text|normalized text")
        id_ = fields[0].strip()
        text = _collapse(fields[-1]) or _collapse(fields[1])
        names = [f"wavs/{id_}{suffix}" for suffix in (".wav", ".flac")]
        yield _utterance(place, names, folder=input_dir, id_=id_, text=text)


def read_vctk(input_dir: Path) -> Iterator[Utterance | Rejected]:
    """``TREE/SPEAKER/ID[_mic1|_mic2].flac|wav`` with ``txt/SPEAKER/ID.txt``; the first microphone wins."""
    tree = next((input_dir / name for name in _VCTK_TREES if (input_dir / name).is_dir()), None)
    if tree is None:
        reason = "holds neither wav48_silence_trimmed/ nor wav48/"
        raise problem("vctk", "input_dir", str(input_dir), reason, "name the folder that holds one of them and txt/")
    if not (input_dir / "txt").is_dir():
        raise problem("vctk", "input_dir", str(input_dir), "holds no txt/", "add the transcripts")
    texts = {path.stem: path for path in _visible(input_dir / "txt", (".txt",))}
    recordings: dict[str, Path] = {}
    for path in _visible(tree, (".flac", ".wav")):
        recordings.setdefault(re.sub(r"_mic[12]$", "", path.stem), path)
    for id_ in sorted(texts.keys() | recordings.keys()):
        if id_ not in texts:  # speaker p315, whose transcripts were lost
            yield Rejected(str(recordings[id_]), id_, "no transcript", f"{id_}.txt")
        elif id_ not in recordings:
            yield Rejected(str(texts[id_]), id_, "no recording", id_)
        else:
            yield _vctk_utterance(id_, texts[id_], recordings[id_])


def read_custom(input_dir: Path, csv_file: Path, columns: Columns) -> Iterator[Utterance | Rejected]:
    """A CSV with a header; audio paths are absolute or relative to `input_dir` and may lack their extension."""
    if not csv_file.is_file():
        raise problem("custom", "csv_file", str(csv_file), "not found", "name the CSV with the transcripts")
    wanted = [name for name in (columns.text, columns.audio, columns.speaker) if name is not None]
    records = _records(csv_file, delimiter=_delimiter(csv_file, wanted), strict=True, skipinitialspace=True)
    line, fields = next(records, (1, []))
    header = [name.strip() for name in fields]
    if not header:
        raise problem("custom", "csv_file", str(csv_file), "is empty", "write a header line and one line per recording")
    for name in wanted:
        if name not in header:
            raise problem(f"{csv_file}:{line}", "column", name, "not found", did_you_mean(name, header))
        if header.count(name) > 1:
            raise problem(f"{csv_file}:{line}", "column", name, "occurs twice", "rename one of the two")
    for line, fields in records:
        if len(fields) != len(header):
            reason = f"where the header has {len(header)}"
            raise problem(f"{csv_file}:{line}", "fields", len(fields), reason, "quote a text that holds the delimiter")
        row = dict(zip(header, fields, strict=True))
        audio = row[columns.audio].strip()
        speaker = row[columns.speaker].strip() if columns.speaker else ""
        names = [audio + suffix for suffix in _SUFFIXES] if audio else [""]
        place, text = f"{csv_file}:{line}", _collapse(row[columns.text])
        yield _utterance(place, names, folder=input_dir, text=text, speaker=speaker or None)


def _utterance(
    place: str, names: Sequence[str], *, folder: Path, text: str, id_: str = "", speaker: str | None = None
) -> Utterance | Rejected:
    """The utterance recorded in the first of `names` that is found in `folder`; without an id, its path is the id."""
    errors = []
    for name in names:
        try:
            found = resolve(name, folders=[folder])
        except AudioError as error:
            errors.append(error)
            continue
        return Utterance(place, id_ or _path_id(found, folder), text, found.resolve(), speaker)
    # Of the tried names one may be there and unfit; that says more than the absence of the others.
    told = next((error for error in errors if not error.reason.startswith("not found")), errors[0])
    return Rejected(place, id_ or names[0], told.reason, str(told.path))


def _vctk_utterance(id_: str, text_file: Path, recording: Path) -> Utterance | Rejected:
    try:
        text = _collapse(text_file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        return Rejected(str(text_file), id_, "transcript is not UTF-8", str(text_file))
    folder = recording.parent
    return _utterance(str(recording), [recording.name], folder=folder, text=text, id_=id_, speaker=folder.name)


def _path_id(audio: Path, input_dir: Path) -> str:
    """`audio` relative to `input_dir` if it lies there, so that the id survives a move of the corpus."""
    path, root = Path(os.path.abspath(audio)), Path(os.path.abspath(input_dir))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _collapse(text: str) -> str:
    """`text` stripped, every inner run of whitespace one space: a row is one line, and so is what is spoken."""
    return " ".join(text.split())


def _visible(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files two levels below `root`, in order, without the hidden ``._*`` twins that macOS archives bring."""
    return sorted(path for path in root.glob("*/*") if path.suffix in suffixes and not path.name.startswith("."))


def _records(path: Path, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """Each non-blank record of a CSV with the number of the line on which it begins."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **dialect)
            for fields in reader:
                if len(fields) > 1 or "".join(fields).strip():
                    yield line, fields
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise problem("metadata", "encoding", str(path), "is not UTF-8", "save it as UTF-8") from None
    except csv.Error as error:
        raise problem(f"{path}:{line}", "CSV", str(error), "stops the reading", "mend the quotes there") from None


def _delimiter(path: Path, wanted: list[str]) -> str:
    """The one of ``, ; | tab`` under which the header has most of the `wanted` columns, then most columns at all.

    csv.Sniffer guesses from the letters of the texts and is often wrong.
    """

    def fit(delimiter: str) -> tuple[int, int]:
        _, fields = next(_records(path, delimiter=delimiter, skipinitialspace=True), (1, []))
        return len({name.strip() for name in fields} & set(wanted)), len(fields)

    return max(",;|\t", key=fit)
