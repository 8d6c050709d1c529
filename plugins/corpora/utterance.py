"""What every reader yields, and how the files that a corpus names are found.

In: a name, as a list or a folder has it. Out: `Utterance`, with the file that it means, or
`Rejected`, with the reason. Looks at files, opens none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from plugins.audio.waveforms import AudioError, require_inside, resolve
from plugins.errors import problem


@dataclass(frozen=True)
class Utterance:
    """One recording with its transcript; or a dialogue of several."""

    place: str  # where it is named: a file, or file:line
    # The same on every machine: resumed runs and the lists of the rejected go by it.
    id: str
    text: str  # whitespace collapsed; may be empty
    audio: Path  # an existing regular file, absolute, links followed
    speaker: str | None
    language: str | None = None
    # The row that it came in, if any: flat messages, absolute paths.
    row: Mapping[str, Any] | None = None
    # Of a dialogue: each clip with its own text. `audio` is the first one's, `text` that of all.
    turns: tuple[Utterance, ...] = ()
    # If its reader has listened.
    transcription: Transcription | None = None
    # Of a part of a recording.
    moment: Moment | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", _printable(self.place))

    def to_row(self) -> dict[str, Any]:
        """The row that it came in, else one of the seed document's shape: an empty assistant turn
        is its audio's place.

        Without system message: training writes the one that speaking writes (`plugins.data.rows`).
        """
        if self.row is not None:
            return dict(self.row)
        messages = [{"role": "user", "content": self.text}, {"role": "assistant", "content": ""}]
        return {"messages": messages, "audios": [str(self.audio)]}


@dataclass(frozen=True)
class Transcription:
    """What a reader has heard in a recording, whether or not the text is made of it."""

    heard: str
    confidence: float  # in its words, from 0 to 1
    doubts: tuple[str, ...]  # why people should listen


@dataclass(frozen=True)
class Moment:
    """When something was said in a longer recording, in seconds from its beginning."""

    recording: str
    start_s: float
    end_s: float
    is_clear: bool  # who says it, and nobody else meanwhile


@dataclass(frozen=True)
class Rejected:
    """One utterance that cannot be trained on."""

    place: str
    id: str
    reason: str  # constant per kind of fault, but for a detail in parentheses at its end
    value: str | float
    # What else the list of the rejected says of it, by the names it has there.
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if isinstance(value, str):
                object.__setattr__(self, attribute.name, _printable(value))

    @property
    def kind(self) -> str:
        """The reason without its detail, to count by."""
        return self.reason.partition(" (")[0]


def locate(
    place: str,
    names: Sequence[str],
    *,
    folder: Path,
    text: str,
    root: Path | None = None,
    id_: str = "",
    speaker: str | None = None,
    language: str | None = None,
) -> Utterance | Rejected:
    """The utterance recorded in the first of `names` that is found in `folder`; without an id, its
    path is the id.

    root: refuse what lies outside of it (`plugins.audio.waveforms.resolve`).
    """
    errors = []
    for name in names:
        try:
            found = resolve(name, folders=[folder], root=root)
        except AudioError as error:
            errors.append(error)
            continue
        return utterance_of(
            place,
            found,
            folder=folder,
            text=text,
            id_=id_,
            speaker=speaker,
            language=language,
        )
    # Of the tried names one may be there and unfit; that says more than the absence of the others.
    unfit = (error for error in errors if not error.reason.startswith("not found"))
    fault = next(unfit, errors[0])
    return Rejected(place, id_ or names[0], fault.reason, str(fault.path))


def utterance_of(
    place: str,
    found: Path,
    *,
    folder: Path,
    text: str,
    id_: str,
    speaker: str | None,
    language: str | None,
) -> Utterance | Rejected:
    """The utterance recorded in the file `found` of the corpus `folder`; without an id, its path
    is the id."""
    id_ = id_ or path_id(found, folder)
    utterance = Utterance(place, id_, text, found.resolve(), speaker, language)
    if not is_utf8(f"{utterance.id}{utterance.audio}{speaker}"):
        return Rejected(place, utterance.id, "name is not UTF-8", str(found))
    return utterance


def with_reference(
    entry: Utterance | Rejected, voice: Utterance | Rejected | None, text: str
) -> Utterance | Rejected:
    """`entry` with the `voice` to clone, as it was found, and its transcript `text`, which may be
    empty. Without a voice it is as before."""
    if isinstance(entry, Rejected):
        return entry
    if voice is None:
        if text:
            return Rejected(entry.place, entry.id, "reference_text has no reference", text)
        return entry
    if isinstance(voice, Rejected):
        return Rejected(entry.place, entry.id, f"reference_audio {voice.reason}", voice.value)
    # It would teach copying: the loss looks perfect and cloning fails.
    if voice.audio == entry.audio:
        reason = "reference_audio is the target itself"
        return Rejected(entry.place, entry.id, reason, str(voice.audio))
    row = entry.to_row() | {"reference_audio": str(voice.audio)}
    if text:
        row["reference_text"] = text
    return replace(entry, row=row)


def require_list(
    list_file: Path, source: str, field: str, remedy: str, input_dir: Path, root: Path | None
) -> None:
    """Raise UserError unless the list of the corpus in `input_dir` is a file that may be read
    (`keep_inside`). source, field, remedy: of the line that says so; the field "input_dir" means
    that only the folder was named."""
    if not list_file.is_file():
        value, reason = list_file, "not found"
        if field == "input_dir":
            value, reason = input_dir, f"holds no {list_file.name}"
        raise problem(source=source, field=field, value=str(value), reason=reason, remedy=remedy)
    keep_inside(list_file, input_dir, root)


def keep_inside(path: Path, input_dir: Path, root: Path | None) -> None:
    """Raise `AudioError` for a file of the corpus in `input_dir` that leads out of it and of
    `root`.

    Without root, links may lead anywhere. A list that lies elsewhere as written is the user's own.
    """
    if root is None:
        return
    folders = (Path(os.path.abspath(input_dir)), Path(os.path.abspath(root)))
    # As written, before any link is followed.
    if any(map(Path(os.path.abspath(path)).is_relative_to, folders)):
        require_inside(path, *folders)


Skip = Callable[[Path, OSError | AudioError], None]


def folders_of(
    top: Path, root: Path | None = None, *, skip: Skip | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """`top` and every folder below it, in order, each with the names of its files; nothing hidden.

    Links are followed, but a folder that two paths lead to is read once, under its own name where
    it has one beside the link: a link to a folder above would never end. skip: told of each folder
    that cannot be read or leads out (`keep_inside`), with the error; None: the error is raised.
    """
    return _folders(top, top, root, set(), skip)


def _folders(
    folder: Path, top: Path, root: Path | None, visited: set[str], skip: Skip | None
) -> Iterator[tuple[Path, list[str]]]:
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    try:
        keep_inside(folder, top, root)
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except (OSError, AudioError) as error:
        # Of the whole corpus nothing would be left.
        if skip is None or folder == top:
            raise
        skip(folder, error)
        return
    names: list[str] = []
    below: list[tuple[bool, str]] = []
    for entry in visible:
        # Not `DirEntry.is_dir`: it raises for a link to itself.
        if os.path.isdir(entry.path):
            below.append((entry.is_symlink(), entry.name))
        else:
            names.append(entry.name)
    yield folder, sorted(names)
    # Links last: a folder is visited under its own name.
    for _, name in sorted(below):
        yield from _folders(folder / name, top, root, visited, skip)


def path_id(audio: Path, input_dir: Path) -> str:
    """`audio` relative to `input_dir` if it lies there, so that the id survives a move of the
    corpus."""
    path, root = Path(os.path.abspath(audio)), Path(os.path.abspath(input_dir))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def collapse(text: str) -> str:
    """`text` stripped, every inner run of whitespace one space: a row is one line, and so is what
    is spoken."""
    return " ".join(text.split())


def _printable(text: str) -> str:
    """`text` with what no file could hold as an escape: the list of the rejected is written in any
    case."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_utf8(text: str) -> bool:
    """Whether `text` can be written as it is: Python reads foreign bytes in a file name as lone
    surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
