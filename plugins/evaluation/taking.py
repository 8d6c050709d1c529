"""Texts -> takes of each, on disk as they come: resumable, and by several processes at a time.

    FOLDER/progress.jsonl            settings, and what was heard in each take
    FOLDER/progress-2-of-4.jsonl     of the second of four processes
    FOLDER/ID.npz                    codes of a text's takes, (K, F) int16 each, by their number

A text's codes are on disk before its line is written. Batches are the same in every run and for any
number of processes, which take them in turn: what one of them has done counts for all, also if
there are more or fewer of them the next time. Which take is the best is decided elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from plugins.errors import UserError, problem
from plugins.evaluation.items import Item
from plugins.evaluation.journal import PROGRESS, Journal, read_journal
from plugins.evaluation.speaking import seeded
from plugins.files import disk, lock
from plugins.hearing.takes import Take
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.takes import Takes

_KIND = PROGRESS.replace(".", "*.")  # of all processes
_LOCK = ".lock"


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` processes, from 1."""

    number: int = 1
    count: int = 1

    @property
    def journal(self) -> str:
        if self.count == 1:
            return PROGRESS
        return PROGRESS.replace(".", f"-{self.number}-of-{self.count}.")

    @property
    def lock(self) -> str:
        return f".{self.journal}{_LOCK}"


@dataclass(frozen=True)
class Taken:
    """What there is of one text. error: why it cannot be spoken at all."""

    takes: list[Take]
    file: Path | None = None
    error: str | None = None

    def codes(self, number: int) -> Tensor:
        """(K, F) of one of its takes."""
        assert self.file is not None
        with np.load(self.file, allow_pickle=False) as file:
            return torch.from_numpy(file[str(number)].astype("int64"))


class Taking:
    """The takes of `items` in `folder`. settings: JSON of all that they depend on, besides
    the prompts.

    Raises UserError for a folder of others, or of other settings."""

    def __init__(
        self,
        items: Sequence[Item],
        folder: Path,
        settings: Mapping[str, Any],
        *,
        batch_size: int,
    ) -> None:
        self._folder, self._settings = folder, settings
        self._batches: list[tuple[str, Sequence[Item]]] = []
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            # What one says may hang on who is padded beside it: the key is that of the whole batch.
            key = _key([item.content() for item in batch])
            self._batches.append((key, batch))
        names = os.listdir(folder) if folder.is_dir() else []
        # Another process may have its lock already, but no journal.
        is_strange = any(not name.endswith(_LOCK) for name in names)
        if is_strange and not list(folder.glob(_KIND)):
            raise problem(
                source="options",
                field="output",
                value=str(folder),
                reason="holds files, but no takes",
                remedy="name another file, or move the folder",
            )

    def waiting(self, shard: Shard) -> list[tuple[str, Sequence[Item]]]:
        """Keys and batches of `shard` that nobody has done."""
        done = self._done()
        mine = self._batches[shard.number - 1 :: shard.count]
        return [(key, batch) for key, batch in mine if self._recall(done.get(key), batch) is None]

    def speak(
        self,
        generator: HiggsAudioGenerator,
        shard: Shard,
        *,
        sampling: Sampling,
        seed: int,
        max_audio_s: float,
    ) -> None:
        """All that `waiting` names. Raises UserError if the shard is being done already, or is one
        of another number than those that are."""
        self._folder.mkdir(parents=True, exist_ok=True)
        held = self._folder / shard.lock
        if (holder := lock.take(held)) is not None:
            raise self._refused(holder, "wait for its end, or give each process its --shard")
        try:
            self._require_same_count(shard)
            waiting = self.waiting(shard)
            items = chain.from_iterable(batch for _, batch in waiting)
            disk.remove_strays(map(self._file, items))  # half a file that a kill has left
            title = f"shard {shard.number} of {shard.count}" if shard.count > 1 else "takes"
            total = sum(len(batch) for _, batch in waiting)
            with (
                Journal(self._folder / shard.journal, self._settings) as journal,
                tqdm(total=total, desc=title, unit="text", disable=None) as bar,
            ):
                journal.begin()
                for key, batch in waiting:
                    samplings = [seeded(sampling, seed, item.id) for item in batch]
                    outcomes = _speak(generator, batch, samplings, max_audio_s)
                    records = []
                    for item, outcome in zip(batch, outcomes, strict=True):
                        records.append(self._kept(item, outcome))
                    journal.put(key, records)
                    bar.update(len(batch))
        finally:
            lock.release(held)

    def _require_same_count(self, shard: Shard) -> None:
        """Two that divide the texts otherwise would write the same files."""
        ours = {replace(shard, number=number + 1).lock for number in range(shard.count)}
        for file in self._folder.glob(f".{_KIND}{_LOCK}"):
            if file.name in ours:
                continue
            if (holder := lock.take(file)) is not None:
                raise self._refused(holder, "wait for its end, or take its number of shards")
            lock.release(file)  # one that was killed has left it

    def _refused(self, holder: object, remedy: str) -> UserError:
        return problem(
            source="options",
            field="output",
            value=str(self._folder),
            reason=f"is being filled by {holder}",
            remedy=remedy,
        )

    def taken(self) -> dict[str, Taken]:
        """Id -> what there is, of all processes."""
        done = self._done()
        found: dict[str, Taken] = {}
        for key, batch in self._batches:
            taken = self._recall(done.get(key), batch) or []
            found |= {item.id: of_item for item, of_item in zip(batch, taken, strict=False)}
        return found

    def _file(self, item: Item) -> Path:
        return self._folder / f"{item.id}.npz"

    def _done(self) -> dict[str, Any]:
        done: dict[str, Any] = {}
        for path in sorted(self._folder.glob(_KIND)):
            done |= read_journal(path, self._settings)
        return done

    def _kept(self, item: Item, outcome: Takes | UserError) -> dict[str, Any]:
        """The outcome as the journal has it; its codes are on disk."""
        if isinstance(outcome, UserError):
            return {"error": str(outcome)}
        codes: dict[str, Any] = {}
        for number, speech in enumerate(outcome.speeches):
            if not isinstance(speech, UserError):
                codes[str(number)] = speech.codes.cpu().numpy().astype(np.int16)
        content = io.BytesIO()
        np.savez_compressed(content, **codes)
        file = self._file(item)
        with disk.replace_when_done(file) as temporary:
            temporary.write_bytes(content.getvalue())
        takes = [asdict(replace(take, is_best=False)) for take in outcome.heard]
        return {"takes": takes, "sha256": hashlib.sha256(content.getvalue()).hexdigest()}

    def _recall(
        self, records: Sequence[Mapping[str, Any]] | None, batch: Sequence[Item]
    ) -> list[Taken] | None:
        """None if there is nothing, or if a file is not the one that was written."""
        if records is None:
            return None
        taken = []
        for item, record in zip(batch, records, strict=True):
            if "error" in record:
                taken.append(Taken([], error=record["error"]))
                continue
            file = self._file(item)
            if not file.is_file() or disk.file_hash(file) != record["sha256"]:
                return None
            taken.append(Taken([Take(**take) for take in record["takes"]], file))
        return taken


def _speak(
    generator: HiggsAudioGenerator,
    batch: Sequence[Item],
    samplings: Sequence[Sampling],
    max_audio_s: float,
) -> Iterator[Takes | UserError]:
    """Together; if one of them cannot be spoken, one by one."""
    try:
        yield from generator.takes(
            [item.dialogue for item in batch],
            samplings=samplings,
            max_audio_s=max_audio_s,
            # A recording of the text is one of the voice, too.
            references=[item.truth for item in batch],
        )
        return
    except UserError as error:
        if len(batch) == 1:
            # Of the text, not of the machine: that would be the same for all others.
            if not str(error).startswith(batch[0].dialogue.source):
                raise
            yield error
            return
    for item, sampling in zip(batch, samplings, strict=True):
        yield from _speak(generator, [item], [sampling], max_audio_s)


def _key(contents: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(contents, ensure_ascii=False).encode()).hexdigest()[:32]
