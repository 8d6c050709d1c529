"""The work of an evaluation, resumable: items and systems -> clips on disk -> what was heard in
them. Scores are computed elsewhere.

    FOLDER/progress.jsonl       the settings, and what is done (`plugins.evaluation.journal`)
    FOLDER/audio/SYSTEM/ID.wav  what was said

The settings are on disk before the first clip: a folder with files but without them is not an
evaluation's. A clip is on disk before its line is written, and a line that a kill cut off is none,
so that nothing counts as done that is not. Batches are the same in every run: what is spoken again
after a kill is what would have been spoken."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plugins.audio import marks
from plugins.audio import waveforms as audio
from plugins.audio.codec import Codec
from plugins.errors import UserError
from plugins.evaluation.items import Item
from plugins.evaluation.journal import Journal
from plugins.evaluation.speaking import System, seeded, speak_batch
from plugins.files import disk
from plugins.hearing.scorers import RATE_HZ, Scorer
from plugins.speaking.sampling import Sampling

AUDIO = "audio"
Heard = Mapping[str, Any]  # name of a scorer -> what it heard


@dataclass(frozen=True)
class Clip:
    """What one system said for one item. error: why it is not there, or cannot be heard."""

    path: Path | None = None
    stopped: bool | None = None  # None: nobody had to stop
    error: str | None = None
    takes: tuple[dict[str, Any], ...] = ()  # of several: what was heard in each


def say(
    system: System,
    items: Sequence[Item],
    folder: Path,
    journal: Journal,
    *,
    sampling: Sampling,
    seed: int,
    max_audio_s: float,
    batch_size: int,
    codec: str,
) -> list[Clip]:
    """Everything that `system` says, one clip per item. What it fails to say is told in the clip.
    codec: the identity of the one it speaks through."""
    # All that a clip depends on, but for the prompts.
    how = [system.name, system.depends_on, codec, repr(sampling), seed, max_audio_s]
    if sampling.best_of > 1:
        how.append(["best_of", sampling.best_of])

    def speak(batch: Sequence[Item]) -> list[Clip]:
        samplings = [seeded(sampling, seed, item.id) for item in batch]
        generator = system.generator()
        journal.begin()
        clips = []
        spoken = speak_batch(generator, [item.dialogue for item in batch], samplings, max_audio_s)
        for item, outcome in zip(batch, spoken, strict=True):
            if isinstance(outcome, UserError):
                clips.append(Clip(stopped=False, error=str(outcome)))
                continue
            path = _wav(folder, system.name, item)
            outcome.save(path)
            takes = tuple(asdict(take) for take in outcome.takes)
            clips.append(Clip(path, stopped=outcome.stopped, takes=takes))
        return clips

    keyed = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        # What one says may hang on who is padded beside it: the key is that of the whole batch.
        contents = [item.content() for item in batch]
        keyed.append((_key("said", *how, *contents), batch))
    return _do_missing(keyed, speak, folder, journal, system.name)


def round_trips(
    codec: Codec, identity: str, items: Sequence[Item], folder: Path, journal: Journal, *, name: str
) -> list[Clip]:
    """The truth through the codec, as long as it was: the best that any model can reach which
    speaks in its codes."""

    def decode(batch: Sequence[Item]) -> list[Clip]:
        (item,) = batch
        assert item.truth is not None
        rate = codec.sample_rate_hz
        try:
            samples = audio.load(item.truth, sample_rate_hz=rate)
        except audio.AudioError as error:
            return [_unreadable(error)]
        path = _wav(folder, name, item)
        journal.begin()
        # The codec's frames may end behind the recording.
        audio.save_wav(path, codec.decode(codec.encode(samples))[: len(samples)], rate)
        return [Clip(path)]

    keyed = []
    for item in items:
        if item.truth is not None:
            key = _key("round trip", identity, item.id, file_hash(item.truth))
            keyed.append((key, [item]))
    decoded = iter(_do_missing(keyed, decode, folder, journal, name))
    return [Clip() if item.truth is None else next(decoded) for item in items]


def beside(
    name: str, clips: Sequence[Clip], items: Sequence[Item], folder: Path, journal: Journal
) -> list[Clip]:
    """The clips of a column, all below `folder`: of recordings from elsewhere a copy in a format
    that every browser plays, marked as they are, so that `folder` may be moved and is whole."""
    lying = list(clips)
    sources: dict[str, Path] = {}
    numbers, keyed = [], []
    for number, (item, clip) in enumerate(zip(items, clips, strict=True)):
        if clip.path is None or _is_inside(clip.path, folder):
            continue
        try:
            keyed.append((_key("copy", name, item.id, file_hash(clip.path)), [item]))
        except audio.AudioError as error:
            lying[number] = _unreadable(error)
            continue
        sources[item.id] = clip.path
        numbers.append(number)

    def copy(batch: Sequence[Item]) -> list[Clip]:
        (item,) = batch
        try:
            samples = audio.load(sources[item.id])
        except audio.AudioError as error:
            return [_unreadable(error)]
        path = _wav(folder, name, item)
        journal.begin()
        with disk.replace_when_done(path) as temporary:
            marks.write(temporary, samples, audio.SAMPLE_RATE_HZ, marks.mark_in(sources[item.id]))
        return [Clip(path)]

    copied = _do_missing(keyed, copy, folder, journal, f"copy of {name}")
    for number, clip in zip(numbers, copied, strict=True):
        lying[number] = clip
    return lying


def hear(paths: Iterable[Path], scorers: Sequence[Scorer], journal: Journal) -> dict[Path, Heard]:
    """What each of `scorers` hears in each clip. A clip that cannot be read has an `error` instead.

    What was heard is kept by the clip's content and the scorer's identity, wherever the clip lies.
    """
    heard: dict[Path, Heard] = {}
    # One recording may be the truth of several items and the reference of others.
    for path in tqdm(list(dict.fromkeys(paths)), desc="hearing", unit="clip", disable=None):
        try:
            heard[path] = _hear(path, scorers, journal)
        except audio.AudioError as error:
            heard[path] = {"error": f"{path.name}: {error.reason}; {error.remedy}"}
    return heard


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file; read again only if its size or date changes. Raises AudioError if it
    cannot be read."""
    try:
        status = Path(path).stat()
        return _file_hash(str(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise audio.AudioError(path, reason, "mend the path") from None


def _hear(path: Path, scorers: Sequence[Scorer], journal: Journal) -> Heard:
    content = file_hash(path)
    heard: dict[str, Any] = {}
    samples = None
    for scorer in scorers:
        key = _key("heard", scorer.name, scorer.identity, content)
        if journal.get(key) is None:
            if samples is None:  # read at most once, and not at all if all have heard it
                samples = audio.load(path, sample_rate_hz=RATE_HZ)
            journal.put(key, scorer.hear(samples))
        heard[scorer.name] = journal.get(key)
    return heard


def _do_missing(
    keyed: Sequence[tuple[str, Sequence[Item]]],
    work: Callable[[Sequence[Item]], list[Clip]],
    folder: Path,
    journal: Journal,
    title: str,
) -> list[Clip]:
    """The clips of all batches in order; `work` only for those that are not there."""
    clips: list[Clip] = []
    total = sum(len(batch) for _, batch in keyed)
    with tqdm(total=total, desc=title, unit="clip", disable=None) as bar:
        for key, batch in keyed:
            done = _recall(journal.get(key), folder)
            if done is None:
                # The clips are on disk when their line is written, never after it.
                done = work(batch)
                journal.put(key, [_record(clip, folder) for clip in done])
            clips += done
            bar.update(len(batch))
    return clips


def _record(clip: Clip, folder: Path) -> dict[str, Any]:
    if clip.path is None:
        return {"stopped": clip.stopped, "error": clip.error}
    file = clip.path.relative_to(folder).as_posix()
    written: dict[str, Any] = {"file": file, "sha256": file_hash(clip.path)}
    if clip.takes:
        written["takes"] = list(clip.takes)
    return {**written, "stopped": clip.stopped}


def _recall(records: list[dict[str, Any]] | None, folder: Path) -> list[Clip] | None:
    """None if there is nothing, or if a clip is not the one that was written."""
    clips = []
    for record in records or ():
        if "error" in record:
            clips.append(Clip(stopped=record["stopped"], error=record["error"]))
            continue
        path = folder / record["file"]
        # The whole batch is made again: alone, a clip might come out otherwise.
        if not path.is_file() or file_hash(path) != record["sha256"]:
            return None
        takes = tuple(record.get("takes", ()))
        clips.append(Clip(path, stopped=record["stopped"], takes=takes))
    return clips or None


def _unreadable(error: audio.AudioError) -> Clip:
    """Without its path: what is kept by a recording's content holds wherever it lies."""
    return Clip(error=f"{error.reason}; {error.remedy}")


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _wav(folder: Path, system: str, item: Item) -> Path:
    return folder / AUDIO / system / f"{item.id}.wav"


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


# Size and date are arguments only to be part of the cache's key.
@lru_cache(maxsize=100_000)
def _file_hash(path: str, _size: int, _mtime_ns: int) -> str:
    return disk.file_hash(path)
