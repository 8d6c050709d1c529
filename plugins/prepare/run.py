"""Utterances -> outcomes, in parallel and restartable.

In: utterances, and the `Work` to be done with each. Out: an `Outcome` per utterance, in order. Does
not know what the work is.

Each outcome goes into a journal as soon as it is there and its files are on the disk. After `kill
-9` the same command takes finished ones from it, those whose line is whole and whose files still
are what was written; everything that follows is computed from the outcomes in the order of the
corpus, so that its results are byte-identical to those of an uninterrupted run. One run at a time
per output: the journal is locked."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from tqdm import tqdm

from plugins.corpora import Utterance
from plugins.errors import UserError, problem
from plugins.files.disk import sync
from plugins.prepare.clips import Outcome, Work
from plugins.prepare.outputs import journal_path
from plugins.prepare.processing import variant_ids

CHUNK = 32  # utterances per task: enough that sending them costs little
_MAX_LINE = 1 << 24  # bytes of the journal; a hole of gigabytes is not read into memory
Executor = Callable[[Work, Sequence[Utterance], int], Iterator[list[Outcome]]]


@contextmanager
def journal_of(output: Path, *, option: str = "--output_file") -> Iterator[Path]:
    """The journal beside `output`, a file or a folder, locked; it is removed if the body succeeds,
    or was refused.

    Raises UserError naming the `option` if a run holds it.
    """
    path = journal_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not _lock(file, path):
            raise problem(
                source=option,
                field="path",
                value=str(output),
                reason="is being written by another run",
                remedy="wait for it, or name another one",
            )
        try:
            yield path
        except UserError:
            # Refused before anything was begun: nothing is to be kept for the next run.
            if not path.stat().st_size:
                path.unlink()
            raise
        path.unlink()  # the lock goes with the file


def _lock(file: BinaryIO, path: Path) -> bool:
    """Whether `file`, opened as `path`, is ours now. The workers of a run that was killed hold it
    for a moment."""
    patience_until_s = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience_until_s:
                return False
            time.sleep(0.05)
        else:
            # False if the other run has just finished and taken its journal away.
            return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def run_all(
    utterances: Sequence[Utterance],
    work: Work,
    *,
    journal: Path,
    num_workers: int,
    execute: Executor | None = None,
) -> list[Outcome]:
    """The outcome of each utterance, in order; those in `journal` are not computed again if their
    files are there.

    An utterance with the id of another's augmented copy is refused: rows and files would be
    mistaken for each other. execute: another way to map `work` over utterances, in order, as lists
    of outcomes (`plugins.prepare.ray_executor`). Raises UserError if a worker process dies."""
    keys = list(map(work.key, utterances))
    done: dict[str, Outcome] = {}
    for key, values in read_journal(journal).items():
        # Another release may have written anything; its keys are others too.
        with suppress(LookupError, TypeError, ValueError):
            done[key] = Outcome.from_json(values)
    originals: dict[str, str] = {}  # id of an augmented copy -> of its clip
    for utterance in utterances:
        originals |= dict.fromkeys(variant_ids(utterance.id, work.processing), utterance.id)
    for key, utterance in zip(keys, utterances, strict=True):
        if original := originals.get(utterance.id):
            reason = f"duplicate id (as the augmented copy of {original})"
            done[key] = Outcome((reason, utterance.id))
    waiting = []
    for i, key in enumerate(keys):
        # Its files may have been deleted or cut off since the line was written.
        if key not in done or not _is_there(done[key]):
            waiting.append(i)
    with (
        journal.open("ab") as file,
        tqdm(total=len(keys), desc="clips", unit="clip", disable=None) as bar,
    ):
        bar.update(len(keys) - len(waiting))
        bar.refresh()  # so that a restart shows at once how much was done
        if execute is None:
            execute = _in_processes if num_workers > 1 else _here
        position = iter(waiting)
        for outcomes in execute(work, [utterances[i] for i in waiting], num_workers):
            for outcome in outcomes:
                key = keys[next(position)]
                done[key] = outcome
                file.write(journal_line(key, outcome.to_json()))
            file.flush()  # to the kernel, which a killed process leaves behind
            bar.update(len(outcomes))
    return [done[key] for key in keys]


def _is_there(outcome: Outcome) -> bool:
    return all(file.is_there() for file in outcome.files)


def journal_line(key: str, value: Any) -> bytes:
    """A line of the journal: the hash of the rest, key and value as JSON."""
    content = json.dumps([key, value]).encode()
    return b"%s %s\n" % (_hash(content), content)


def _hash(content: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(content).encode()


def read_journal(journal: Path) -> dict[str, Any]:
    """Key -> value of what was finished, without damaged lines: a power cut leaves zeros where a
    line was.

    A line that was being written when the run was killed is cut off.
    """
    done: dict[str, Any] = {}
    whole = 0
    with journal.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            checksum, _, content = line[:-1].partition(b" ")
            if checksum != _hash(content):
                continue
            with suppress(LookupError, TypeError, ValueError, RecursionError):
                key, value = json.loads(content)
                done[key] = value
    with journal.open("r+b") as file:
        file.truncate(whole)
    return done


def _here(work: Work, utterances: Sequence[Utterance], num_workers: int) -> Iterator[list[Outcome]]:
    for utterance in utterances:
        yield run_chunk(work, [utterance])


def _in_processes(
    work: Work, utterances: Sequence[Utterance], num_workers: int
) -> Iterator[list[Outcome]]:
    pending: deque[Future[list[Outcome]]] = deque()
    with ProcessPoolExecutor(num_workers, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        try:
            for start in range(0, len(utterances), CHUNK):
                pending.append(pool.submit(run_chunk, work, utterances[start : start + CHUNK]))
                # Finished chunks wait in memory for their turn: few enough of them.
                if len(pending) > 4 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            # The pool does not say why; the kernel's memory killer is nearly always the reason.
            raise UserError(
                "workers: a process died (out of memory?); start the same command again with fewer"
                " --workers: finished clips are not done again"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with(run: int) -> None:
    """In a worker: end when the run is gone. A worker that outlives it would wait for ever and hold
    its lock."""

    def watch() -> None:
        while os.getppid() == run:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # Else each collection goes through all that the run has loaded, and copies its pages.
    gc.freeze()


def run_chunk(work: Work, utterances: Sequence[Utterance]) -> list[Outcome]:
    """In a worker process. The disk is waited for while the next clip is computed."""
    if work.audio_dir is None:
        return list(map(work, utterances))
    outcomes = []
    with ThreadPoolExecutor(1) as thread:
        syncing = []
        for utterance in utterances:
            outcomes.append(work(utterance))
            for file in outcomes[-1].files:
                syncing.append(thread.submit(sync, file.audio))
    for future in syncing:
        future.result()  # raises what `sync` did
    return outcomes
