"""Corpora whose folders say it all -> utterances: VCTK, LibriTTS and LibriSpeech, transcripts
beside clips.

Who speaks and what belongs together is read from the names of folders and files. With a root no
link that leads out of it is followed, to a recording, a transcript or a folder.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugins.audio.waveforms import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES, AudioError
from plugins.corpora.audio_folder import metadata_of, read_metadata
from plugins.corpora.kaldi import Line, read_lines
from plugins.corpora.leftovers import counted, remedy_for
from plugins.corpora.transcripts import NOTE_SUFFIX, read_note, read_transcript
from plugins.corpora.utterance import (
    Rejected,
    Utterance,
    collapse,
    folders_of,
    keep_inside,
    locate,
)
from plugins.errors import problem

logger = logging.getLogger(__name__)
# Of release 0.92, and of 0.80.
_VCTK_TREES = ("wav48_silence_trimmed", "wav48")
# The first wins.
_LIBRITTS_TEXTS = (".normalized.txt", ".original.txt")
_LIBRISPEECH_TEXTS = ".trans.txt"
_TRANSCRIPT_SUFFIXES = (".txt", ".lab")


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
    paths = _two_levels_below(tree, AUDIO_SUFFIXES, corpus)
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
    normalized text wins. Without either, LibriSpeech's ``SPEAKER-CHAPTER.trans.txt`` beside them
    (``ID TEXT`` per line).

    Takes one subset or a folder of several. The speaker is the number with which the id begins.
    """
    corpus = _Corpus(input_dir, root)
    for folder, names in folders_of(input_dir, root, skip=corpus.skip):
        audio = _by_stem(names, AUDIO_SUFFIXES)
        texts: dict[str, list[Path]] = {}
        for suffix in _LIBRITTS_TEXTS:
            for name in names:
                if name.lower().endswith(suffix):
                    texts.setdefault(name[: -len(suffix)], []).append(folder / name)
        listed = _librispeech_texts(folder, names, corpus)
        for id_ in sorted(audio.keys() | texts.keys() | listed.keys()):
            if id_ not in texts and id_ in listed:
                yield _listed(listed[id_], audio.get(id_, []), folder, corpus)
            elif id_ not in texts:
                missing = f"{id_}{_LIBRITTS_TEXTS[0]}"
                yield Rejected(str(folder / audio[id_][0]), id_, "no transcript", missing)
            elif id_ not in audio:
                yield Rejected(str(texts[id_][0]), id_, "no recording", f"{id_}.wav")
            else:
                recording, speaker = folder / audio[id_][0], id_.partition("_")[0]
                yield _paired(recording, texts[id_], corpus, id_=id_, speaker=speaker)
    yield from corpus.unread


def _librispeech_texts(folder: Path, names: Sequence[str], corpus: _Corpus) -> dict[str, Line]:
    """Id -> its line in one of the lists among the `names` in `folder`."""
    listed: dict[str, Line] = {}
    for name in names:
        if name.lower().endswith(_LIBRISPEECH_TEXTS):
            keep_inside(folder / name, corpus.input_dir, corpus.root)
            for line in read_lines(folder / name):
                # Of two lines with one id the first is taken, as everywhere.
                listed.setdefault(line.key, line)
    return listed


def _listed(
    line: Line, audio: Sequence[str], folder: Path, corpus: _Corpus
) -> Utterance | Rejected:
    """The utterance of a line of LibriSpeech, recorded in the first of the files `audio`."""
    if line.fault:
        return Rejected(line.place, line.key, line.fault, line.value[:200])
    if not audio:
        return Rejected(line.place, line.key, "no recording", f"{line.key}.flac")
    name = (folder / audio[0]).relative_to(corpus.input_dir).as_posix()
    return locate(
        line.place,
        [name],
        folder=corpus.input_dir,
        root=corpus.root,
        text=collapse(line.value),
        id_=line.key,
        speaker=line.key.partition("-")[0],
    )


def read_folder(input_dir: Path, *, root: Path | None = None) -> Iterator[Utterance | Rejected]:
    """Audio files at any depth, each with its transcript beside it: ``x.txt``, else ``x.lab``, else
    the `text` in ``x.json``, for ``x.wav``; and what the ``metadata.csv`` of an AudioFolder says of
    the files beside and below it (`plugins.corpora.audio_folder`).

    The speaker is the first folder below `input_dir`; clips that lie in `input_dir` itself have
    none. The id is the path below `input_dir`. A transcript without recording is told too, so a
    ``README.txt`` counts as one; files that are neither are counted in a warning. Raises UserError
    for a folder of nothing but such files, which another reader may know."""
    corpus = _Corpus(input_dir, root)
    listed: set[str] = set()  # recordings of which a table has spoken
    others: list[str] = []
    num_entries = num_utterances = 0
    for folder, names in folders_of(input_dir, root, skip=corpus.skip):
        table = metadata_of(folder, names, input_dir, root)
        entries = list(read_metadata(folder, table, input_dir, root)) if table else []
        for entry in entries:
            named = entry.audio if isinstance(entry, Utterance) else input_dir / entry.id
            if "\0" not in str(named):  # of which no file has a name
                listed.add(os.path.realpath(named))
        free = []
        for name in names:
            if name != table and os.path.realpath(folder / name) not in listed:
                free.append(name)
        paired, unpaired = _pairs(folder, free, corpus)
        others += unpaired
        entries += paired
        num_entries += len(entries)
        num_utterances += sum(isinstance(entry, Utterance) for entry in entries)
        yield from entries
    yield from corpus.unread
    remedy = "" if num_utterances else remedy_for(others)
    if remedy and not num_entries and not corpus.unread:
        raise problem(
            source="folder",
            field="input_dir",
            value=str(input_dir),
            reason=f"holds no recording with a text, but {counted(others)}",
            remedy=remedy,
        )
    if others:
        hint = f"; {remedy}" if remedy else ""
        what = "left alone, as neither recordings nor their texts"
        logger.warning("%s: %s: %s%s", input_dir, what, counted(others), hint)


def _pairs(
    folder: Path, names: Sequence[str], corpus: _Corpus
) -> tuple[list[Utterance | Rejected], list[str]]:
    """The recordings and transcripts among the files `names` in `folder`, and the other files."""
    top = corpus.input_dir
    speaker = next(iter(folder.relative_to(top).parts), None)
    transcripts = [name for name in names if not name.lower().endswith(_LIBRISPEECH_TEXTS)]
    texts = _by_stem(transcripts, _TRANSCRIPT_SUFFIXES)
    notes = _by_stem(names, (NOTE_SUFFIX,))
    audio = _by_stem(names, (*AUDIO_SUFFIXES, *CONVERTIBLE_SUFFIXES))
    entries: list[Utterance | Rejected] = []
    told: set[str] = set()

    def reject(name: str, reason: str, value: str) -> None:
        told.add(name)
        path = folder / name
        entries.append(Rejected(str(path), path.relative_to(top).as_posix(), reason, value))

    for stem in sorted(texts.keys() | audio.keys()):
        if stem not in audio:
            reject(texts[stem][0], "no recording", f"{stem}.wav")
            continue
        first, *rest = audio[stem]
        # Which of them it is a transcript of is not said: WAV goes before FLAC. One that was
        # converted is no other recording.
        for name in rest:
            if not _is_convertible(name) or _is_convertible(first):
                reject(name, "shares its transcript with another recording", first)
        if stem not in texts and stem in notes:
            told |= {first, notes[stem][0]}
            entries.append(_noted(folder / first, folder / notes[stem][0], corpus, speaker))
            continue
        if stem not in texts:
            reject(first, "no transcript", f"{stem}.txt")
            continue
        told |= {first, texts[stem][0]}
        entries.append(_paired(folder / first, [folder / texts[stem][0]], corpus, speaker=speaker))
    below = folder.relative_to(top)
    return entries, [(below / name).as_posix() for name in names if name not in told]


def _noted(
    recording: Path, note: Path, corpus: _Corpus, speaker: str | None
) -> Utterance | Rejected:
    """The utterance of a clip with its text in a `note`, which may name another `speaker`."""
    name = recording.relative_to(corpus.input_dir).as_posix()
    try:
        said = read_note(note, corpus.input_dir, corpus.root)
    except AudioError as error:
        return Rejected(str(note), name, f"transcript {error.reason}", str(note))
    return locate(
        str(recording),
        [name],
        folder=corpus.input_dir,
        root=corpus.root,
        text=said["text"] or "",
        speaker=said["speaker"] or speaker,
        language=said["language"],
    )


def _is_convertible(name: str) -> bool:
    return name.lower().endswith(CONVERTIBLE_SUFFIXES)


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
            text = read_transcript(path, corpus.input_dir, corpus.root)
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
