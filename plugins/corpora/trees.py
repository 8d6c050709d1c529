"""Corpora whose folders say it all -> utterances: VCTK, LibriTTS, transcripts beside clips.

Who speaks and what belongs together is read from the names of folders and files. With a root no
link that leads out of it is followed, to a recording, a transcript or a folder.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugins.audio.waveforms import AudioError
from plugins.corpora.utterance import (
    AUDIO_SUFFIXES,
    Rejected,
    Utterance,
    collapse,
    folders_of,
    keep_inside,
    locate,
)
from plugins.errors import problem

# Of release 0.92, and of 0.80.
_VCTK_TREES = ("wav48_silence_trimmed", "wav48")
# The first wins.
_LIBRITTS_TEXTS = (".normalized.txt", ".original.txt")
_TRANSCRIPT_SUFFIXES = (".txt", ".lab")
# Hours of speech. A sparse file of gigabytes would take twice as much memory.
_MAX_TRANSCRIPT_BYTES = 1_000_000


@dataclass(frozen=True)
class _Corpus:
    """Where a corpus lies, outside of which folder nothing of it is read, and what could not be."""

    input_dir: Path
    root: Path | None
    unread: list[Rejected] = field(default_factory=list)

    def skip(self, folder: Path, error: OSError | AudioError) -> None:
        """Reject `folder`, which takes its clips along, but no others."""
        if isinstance(error, AudioError):
            raise error
        name = folder.relative_to(self.input_dir).as_posix()
        reason = f"folder may not be read ({error.strerror})"
        self.unread.append(Rejected(str(folder), name, reason, str(folder)))


def read_vctk(
    input_dir: Path, *, mic: int = 1, root: Path | None = None
) -> Iterator[Utterance | Rejected]:
    """``TREE/SPEAKER/ID[_mic1|_mic2].flac|wav`` with ``txt/SPEAKER/ID.txt``.

    mic: the microphone (1 or 2) to take; where it recorded nothing (p280 and p315 lack the second),
    the other."""
    assert mic in (1, 2), mic
    tree = next((input_dir / name for name in _VCTK_TREES if (input_dir / name).is_dir()), None)
    if tree is None:
        raise problem(
            source="vctk",
            field="input_dir",
            value=str(input_dir),
            reason="holds neither wav48_silence_trimmed/ nor wav48/",
            remedy="name the folder that holds one of them and txt/",
        )
    if not (input_dir / "txt").is_dir():
        raise problem(
            source="vctk",
            field="input_dir",
            value=str(input_dir),
            reason="holds no txt/",
            remedy="add the transcripts",
        )
    corpus = _Corpus(input_dir, root)
    text_files = _two_levels_below(input_dir / "txt", (".txt",), corpus)
    texts = {path.stem: path for path in text_files}
    recordings: dict[str, Path] = {}
    # Those of the wanted microphone first, so that they win.
    paths = _two_levels_below(tree, (".flac", ".wav"), corpus)
    for path in sorted(paths, key=lambda path: not path.stem.endswith(f"_mic{mic}")):
        recordings.setdefault(re.sub(r"_mic[12]$", "", path.stem), path)
    for id_ in sorted(texts.keys() | recordings.keys()):
        # As of speaker p315, whose transcripts were lost.
        if id_ not in texts:
            yield Rejected(str(recordings[id_]), id_, "no transcript", f"{id_}.txt")
        elif id_ not in recordings:
            yield Rejected(str(texts[id_]), id_, "no recording", id_)
        else:
            recording = recordings[id_]
            speaker = recording.parent.name
            yield _paired(recording, [texts[id_]], corpus, id_=id_, speaker=speaker)
    yield from corpus.unread


def read_libritts(input_dir: Path, *, root: Path | None = None) -> Iterator[Utterance | Rejected]:
    """``[SUBSET/]SPEAKER/CHAPTER/ID.wav|flac`` with ``ID.normalized.txt``, ``ID.original.txt``;
    normalized text wins.

    Takes one subset or a folder of several. The speaker is the number with which the id begins.
    """
    corpus = _Corpus(input_dir, root)
    for folder, names in folders_of(input_dir, root, skip=corpus.skip):
        audio = _by_stem(names, (".wav", ".flac"))
        texts: dict[str, list[Path]] = {}
        for suffix in _LIBRITTS_TEXTS:
            for name in names:
                if name.lower().endswith(suffix):
                    texts.setdefault(name[: -len(suffix)], []).append(folder / name)
        for id_ in sorted(audio.keys() | texts.keys()):
            if id_ not in texts:
                missing = f"{id_}{_LIBRITTS_TEXTS[0]}"
                yield Rejected(str(folder / audio[id_][0]), id_, "no transcript", missing)
            elif id_ not in audio:
                yield Rejected(str(texts[id_][0]), id_, "no recording", f"{id_}.wav")
            else:
                recording, speaker = folder / audio[id_][0], id_.partition("_")[0]
                yield _paired(recording, texts[id_], corpus, id_=id_, speaker=speaker)
    yield from corpus.unread


def read_folder(input_dir: Path, *, root: Path | None = None) -> Iterator[Utterance | Rejected]:
    """Audio files at any depth, each with its transcript beside it: ``x.txt``, else ``x.lab`` for
    ``x.wav``.

    The speaker is the first folder below `input_dir`; clips that lie in `input_dir` itself have
    none. The id is the path below `input_dir`. A transcript without recording is told too, so a
    ``README.txt`` counts as one."""
    corpus = _Corpus(input_dir, root)

    def rejected(path: Path, reason: str, value: str) -> Rejected:
        return Rejected(str(path), path.relative_to(input_dir).as_posix(), reason, value)

    for folder, names in folders_of(input_dir, root, skip=corpus.skip):
        speaker = next(iter(folder.relative_to(input_dir).parts), None)
        texts = _by_stem(names, _TRANSCRIPT_SUFFIXES)
        audio = _by_stem(names, AUDIO_SUFFIXES)
        for stem in sorted(texts.keys() | audio.keys()):
            if stem not in audio:
                yield rejected(folder / texts[stem][0], "no recording", f"{stem}.wav")
                continue
            first, *others = audio[stem]
            # Which of them it is a transcript of is not said: WAV goes before FLAC.
            for name in others:
                reason = "shares its transcript with another recording"
                yield rejected(folder / name, reason, first)
            if stem not in texts:
                yield rejected(folder / first, "no transcript", f"{stem}.txt")
            else:
                yield _paired(folder / first, [folder / texts[stem][0]], corpus, speaker=speaker)
    yield from corpus.unread


def _paired(
    recording: Path,
    text_files: Sequence[Path],
    corpus: _Corpus,
    *,
    id_: str = "",
    speaker: str | None = None,
) -> Utterance | Rejected:
    """The utterance of `recording`, with the first text of `text_files` that is not blank.

    Without another id it is the path in the corpus.
    """
    name = recording.relative_to(corpus.input_dir).as_posix()
    text = ""
    for path in text_files:
        try:
            text = _transcript(path, corpus)
        except AudioError as error:
            return Rejected(str(path), id_ or name, f"transcript {error.reason}", str(path))
        if text:
            break
    return locate(
        str(recording),
        [name],
        folder=corpus.input_dir,
        root=corpus.root,
        text=text,
        id_=id_,
        speaker=speaker,
    )


def _transcript(path: Path, corpus: _Corpus) -> str:
    """What `path` says. Raises `AudioError`."""
    keep_inside(path, corpus.input_dir, corpus.root)
    # Reading a pipe would wait for its writer forever.
    if not path.is_file():
        raise AudioError(path, "is not a regular file", "write a text file")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TRANSCRIPT_BYTES + 1)
        if len(content) > _MAX_TRANSCRIPT_BYTES:
            reason = f"is larger than {_MAX_TRANSCRIPT_BYTES:,} bytes"
            raise AudioError(path, reason, "write what the clip says, no more")
        return collapse(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise AudioError(path, "is not UTF-8", "save it as UTF-8") from None
    except OSError as error:
        reason = f"may not be read ({error.strerror})"
        raise AudioError(path, reason, "grant read permission") from None


def _by_stem(names: Sequence[str], suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Stem -> the `names` that have it, in the order of their `suffixes`, which may be written in
    capitals."""
    groups: dict[str, list[str]] = {}
    for suffix in suffixes:
        for name in names:
            stem, dot, end = name.rpartition(".")
            if (dot + end).lower() == suffix:
                # macOS takes accents apart: a clip and its text may differ in that alone.
                groups.setdefault(unicodedata.normalize("NFC", stem), []).append(name)
    return groups


def _two_levels_below(top: Path, suffixes: tuple[str, ...], corpus: _Corpus) -> list[Path]:
    """The files ``top/*/*``, in order, without the hidden ``._*`` twins that macOS archives
    bring."""
    paths = []
    for folder in sorted(top.iterdir()):
        if not os.path.isdir(folder):
            continue
        try:
            names = os.listdir(folder)
        except OSError as error:
            corpus.skip(folder, error)
            continue
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                paths.append(folder / name)
    return sorted(paths)
