"""A folder of recordings -> the utterances cut from them.

In: the folder, what to cut and by whom it is heard. Out: an `Utterance` per clip, whose audio is a
FLAC file below `clips_dir`, and a `Rejected` for each recording or clip that will not do.

    talk.mp3 -> clips_dir/talk-1a2b3c4d/0001.flac ... and, last of all, clips.json
    all      -> clips_dir/clips.jsonl: every clip with its measures and doubts, for people

`clips.json` says what is in the folder and of which recording and settings it was made: where it
is true, nothing is heard again. The recordings themselves are only read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plugins import __version__
from plugins.audio.tracks import Track
from plugins.audio.waveforms import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES, AudioError
from plugins.corpora import Rejected, Utterance
from plugins.corpora.utterance import (
    Moment,
    Transcription,
    folders_of,
    is_utf8,
    keep_inside,
    path_id,
)
from plugins.errors import problem
from plugins.files.disk import replace_when_done
from plugins.prepare.clips import file_name
from plugins.prepare.slicing.channels import MIXED, Voice, voices_of
from plugins.prepare.slicing.diarising import Turn, diarised
from plugins.prepare.slicing.hearing import WordListener
from plugins.prepare.slicing.joining import joined
from plugins.prepare.slicing.judging import NOT_UNDERSTOOD
from plugins.prepare.slicing.memory import Memory
from plugins.prepare.slicing.pieces import NOT_ALONE, Piece, pieces
from plugins.prepare.slicing.progress import Progress
from plugins.prepare.slicing.scripts import Written, read_script, script_beside, written_in
from plugins.prepare.slicing.settings import Slicing
from plugins.prepare.slicing.sliced import SlicedClip, kept, note, written

logger = logging.getLogger(__name__)
_LIST = "clips.jsonl"
_AGREES, _DISAGREES = 0.85, 0.6  # a script with what is heard, in letters


@dataclass(frozen=True)
class Recording:
    """A file of the corpus that may hold speech."""

    id: str  # its path below the corpus
    path: Path
    speaker: str | None


def recordings_of(
    input_dir: Path, root: Path | None = None, *, without: Sequence[Path] = ()
) -> list[Recording | Rejected]:
    """All recordings at any depth, and what cannot be one. The speaker is the first folder below
    `input_dir`, as for ``--dataset_type folder``. root: refuse links that lead out of it. without:
    folders of ours."""
    found: list[Recording | Rejected] = []

    def skip(folder: Path, error: OSError | AudioError) -> None:
        if isinstance(error, AudioError):
            raise error
        reason = f"folder may not be read ({error.strerror})"
        found.append(Rejected(str(folder), path_id(folder, input_dir), reason, str(folder)))

    ours = [folder.resolve() for folder in without]
    for folder, names in folders_of(input_dir, root, skip=skip):
        if any(map(folder.resolve().is_relative_to, ours)):
            continue
        speaker = next(iter(folder.relative_to(input_dir).parts), None)
        for name in names:
            if name.lower().endswith((*AUDIO_SUFFIXES, *CONVERTIBLE_SUFFIXES)):
                path = folder / name
                keep_inside(path, input_dir, root)
                id_ = path_id(path, input_dir)
                if is_utf8(f"{id_}{os.path.realpath(path)}"):
                    found.append(Recording(id_, path, speaker))
                else:
                    found.append(Rejected(str(path), id_, "name is not UTF-8", str(path)))
    return found


class Slicer:
    """Cuts recordings into clips below `clips_dir`.

    A text or subtitles beside a recording give the clips their words. journal: of the run.
    input_dir, root: out of which no text is read. number: of the speakers that are told apart; 0:
    as many as there are; None: they are not told apart. dialogues: a clip is a turn of one; where
    speakers are not told apart, each has a channel."""

    def __init__(
        self,
        clips_dir: Path,
        slicing: Slicing,
        listener: WordListener,
        *,
        journal: Path,
        input_dir: Path,
        root: Path | None,
        number: int | None = None,
        dialogues: bool = False,
    ) -> None:
        self._clips_dir, self._slicing, self._listener = clips_dir, slicing, listener
        self._input_dir, self._root, self._number = input_dir, root, number
        self._dialogues = dialogues
        self._turns: dict[str, list[Turn]] = {}
        self._memory = Memory(listener, journal)

    def utterances(
        self, recordings: Sequence[Recording | Rejected]
    ) -> Iterator[Utterance | Rejected]:
        """Of all `recordings`, in their order. Shows how far it is, in seconds of sound; at the end
        it lists all clips and says how many are doubtful."""
        listed: list[dict[str, Any]] = []
        readable = [entry for entry in recordings if isinstance(entry, Recording)]
        if self._number is not None:
            self._turns = diarised(
                {recording.id: recording.path for recording in readable},
                number=self._number or None,
                kept_in=lambda id_: self._clips_dir / f"{file_name(id_)}.voices.npz",
            )
        with Progress("recordings", [recording.path for recording in readable]) as progress:
            for recording in recordings:
                if isinstance(recording, Rejected):
                    yield recording
                    continue
                try:
                    clips = self._clips(recording, progress)
                except AudioError as error:
                    progress.next()
                    place = str(recording.path)
                    yield Rejected(place, recording.id, error.reason, str(error.path))
                    continue
                for clip in clips:
                    listed.append({"recording": str(recording.path)} | asdict(clip))
                yield from self._entries(recording, clips)
        self._list(listed)

    def _list(self, clips: Sequence[dict[str, Any]]) -> None:
        path = self._clips_dir / _LIST
        with replace_when_done(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for clip in clips:
                file.write(json.dumps(clip, ensure_ascii=False) + "\n")
        doubtful = [clip for clip in clips if clip["doubts"] and not clip["fault"]]
        if doubtful:
            doubts = Counter(doubt for clip in doubtful for doubt in clip["doubts"])
            counts = ", ".join(f"{count} {doubt}" for doubt, count in doubts.most_common())
            logger.warning(
                "%d clips are kept but doubtful: %s; listen to them, see %s",
                len(doubtful),
                counts,
                path,
            )

    def folder_of(self, recording: Recording) -> Path:
        """Where its clips go."""
        return self._clips_dir / file_name(recording.id)

    def _entries(
        self, recording: Recording, clips: Sequence[SlicedClip]
    ) -> Iterator[Utterance | Rejected]:
        if not clips:
            yield Rejected(str(recording.path), recording.id, "no speech found", recording.id)
        folder = self.folder_of(recording).resolve()
        for clip in clips:
            place = f"{recording.path}:{clip.start_s:.2f}-{clip.end_s:.2f}"
            audio = folder / clip.file
            if clip.fault:
                details: dict[str, Any] = {"heard": clip.heard, "audio": str(audio)}
                if clip.agreement is not None:
                    details["written"] = clip.text
                details |= {"confidence": clip.confidence, "snr_db": clip.snr_db}
                yield Rejected(place, clip.id, clip.fault, clip.heard, details)
                continue
            yield Utterance(
                place,
                clip.id,
                clip.text,
                audio,
                clip.speaker or recording.speaker,
                clip.language,
                transcription=Transcription(clip.heard, clip.confidence, clip.doubts),
                moment=Moment(recording.id, *clip.said, is_clear=_is_clear(clip)),
            )

    def _clips(self, recording: Recording, progress: Progress) -> list[SlicedClip]:
        folder = self.folder_of(recording)
        key = self._key(recording)
        clips = kept(folder, key)
        if clips is not None:
            progress.next(kept=True)
            return clips
        # What is there was made otherwise, or by a run that was killed.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            clips = self._sliced(recording, folder, progress)
            note(folder, key, clips)
        except OSError as error:
            raise problem(
                source="recordings",
                field="clips",
                value=str(folder),
                reason=f"cannot be written ({error.strerror})",
                remedy="is the disk full? mend that and start the same command again",
            ) from None
        progress.next()
        return clips

    def _key(self, recording: Recording) -> str:
        """Of everything that the clips depend on. Raises `AudioError` for a link to nowhere."""
        try:
            status = recording.path.stat()
        except OSError as error:
            reason = f"may not be read ({error.strerror})"
            raise AudioError(recording.path, reason, "mend the link or delete it") from None
        parts = [recording.id, status.st_size, status.st_mtime_ns, repr(self._slicing)]
        script = script_beside(recording.path)
        if script is not None:
            status = script.stat()
            parts += [script.name, status.st_size, status.st_mtime_ns]
        for turn in self._turns.get(recording.id, ()):
            parts += [round(turn.start_s, 2), turn.speaker, turn.is_shared]
        parts += ["dialogues"] * self._dialogues
        parts += [self._listener.identity, self._listener.language, __version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _sliced(self, recording: Recording, folder: Path, progress: Progress) -> list[SlicedClip]:
        script = self._script(recording)
        clips: list[tuple[SlicedClip, list[str]]] = []
        voices = self._voices(recording, progress)
        # Of two channels both have been listened to once by now.
        laps = len(voices) if voices == [MIXED] else 2 * len(voices)
        for lap, voice in enumerate(voices, start=laps - len(voices)):
            begin = len(clips)
            for piece, position_s in self._pieces(recording, voice):
                if piece is not None:
                    name = f"{voice.name}{len(clips) - begin + 1:04}"
                    clip = written(f"{recording.id}-{name}", folder / f"{name}.flac", piece)
                    clips.append((clip, [word.text for word in piece.words]))
                progress.at(position_s, lap=lap, laps=laps)
        clips.sort(key=lambda pair: pair[0].start_s)
        if script is None:
            return [clip for clip, _ in clips]
        texts = written_in(script, [words for _, words in clips])
        return [_as_written(clip, text) for (clip, _), text in zip(clips, texts, strict=True)]

    def _voices(self, recording: Recording, progress: Progress) -> list[Voice]:
        if self._dialogues and self._number is None:
            return voices_of(recording.path, recording.id, progress)
        return [MIXED]

    def _pieces(self, recording: Recording, voice: Voice) -> Iterator[tuple[Piece | None, float]]:
        """Those of one voice, each with how far the recording has been heard; None: up to there
        there are no more."""
        language, turns = self._listener.language, self._turns.get(recording.id, ())
        with Track(recording.path) as track:
            batches = pieces(
                track,
                self._memory.hear,
                self._slicing,
                language=language,
                turns=turns,
                voice=voice,
            )
            if self._dialogues:
                batches = joined(batches, self._slicing, voice.others)
            for found, position_s in batches:
                for piece in found:
                    yield piece, position_s
                yield None, position_s

    def _script(self, recording: Recording) -> list[str] | None:
        """The words written beside it; None if there is no such file."""
        path = script_beside(recording.path)
        if path is None:
            return None
        try:
            words = read_script(path, self._input_dir, self._root)
        except AudioError as error:
            raise AudioError(path, f"script {error.reason}", error.remedy) from None
        if not words:
            raise AudioError(path, "script says nothing", "fill it or move it away")
        return words


def _is_clear(clip: SlicedClip) -> bool:
    return clip.speaker is not None and not any(doubt in clip.doubts for doubt in NOT_ALONE)


def _as_written(clip: SlicedClip, written: Written) -> SlicedClip:
    """`clip` with the text of a script in the place of what was heard, which judges it now."""
    fault, doubts = clip.fault, clip.doubts
    if fault.startswith(NOT_UNDERSTOOD) and written.agreement >= _AGREES:
        fault = ""
    if not fault and written.agreement < _DISAGREES:
        fault = f"script does not say what is heard (agreement {written.agreement:.2f})"
    elif written.agreement < _AGREES:
        doubts = (*doubts, "script says it otherwise")
    return replace(
        clip,
        text=written.text or clip.text,
        agreement=written.agreement,
        fault=fault,
        doubts=doubts,
    )
