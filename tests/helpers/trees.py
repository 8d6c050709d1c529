"""Synthetic corpora of real audio files, what their readers yield, and limits on time, memory and
rights that a test sets itself."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile as sf

from plugins.corpora import Rejected, Utterance


def clip(path: Path, duration_s: float = 0.1, frequency_hz: float = 220.0) -> Path:
    """A sine at `path`, whose folder is made; its format goes by the suffix, in capitals too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(duration_s * 24_000)) / 24_000
    sine = 0.5 * np.sin(2 * np.pi * frequency_hz * time_s)
    with path.open("wb") as file:
        sf.write(file, sine, 24_000, format=path.suffix[1:].upper())
    return path


def said(path: Path, text: str) -> Path:
    """A transcript at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")
    return path


def utterances(results: Iterable[Utterance | Rejected]) -> list[Utterance]:
    """Those that are no rejects."""
    return [result for result in results if isinstance(result, Utterance)]


def rejects(results: Iterable[Utterance | Rejected]) -> list[Rejected]:
    return [result for result in results if isinstance(result, Rejected)]


def heard(results: Iterable[Utterance | Rejected]) -> list[tuple[str, str, str | None]]:
    """(id, text, speaker) of each; fails at what is rejected."""
    results = list(results)
    assert rejects(results) == []
    return [(utterance.id, utterance.text, utterance.speaker) for utterance in utterances(results)]


def sorted_out(
    results: Iterable[Utterance | Rejected],
) -> tuple[list[str], list[tuple[str, str, str | float]]]:
    """The ids of the utterances; (id, reason, value) of the rejected."""
    results = list(results)
    ids = [utterance.id for utterance in utterances(results)]
    return ids, [(reject.id, reject.reason, reject.value) for reject in rejects(results)]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of waiting forever, as opening a pipe does."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def in_memory_mb(most: int, process: int | str = "self") -> Iterator[None]:
    """Fail if what is done inside needs more memory than `most` beyond what the process had before.

    Not `getrusage`, whose peak survives exec and would be that of pytest's whole life.
    """

    def kilobytes(field: str) -> int:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0])

    gc.collect()
    Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak is what is held now
    before = kilobytes("VmRSS")
    yield
    grown_mb = (kilobytes("VmHWM") - before) / 1024
    assert grown_mb < most, f"{grown_mb:.0f} MB"


def silence(path: Path, duration_s: int, *, sample_rate_hz: int, num_channels: int) -> Path:
    """A FLAC of nothing, a ten thousandth of what it decodes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    second = np.zeros((sample_rate_hz, num_channels), np.int16)
    options = {"format": "FLAC", "subtype": "PCM_16", "compression_level": 0}
    with sf.SoundFile(path, "w", sample_rate_hz, num_channels, **options) as file:
        for _ in range(duration_s):
            file.write(second)
    return path


@contextmanager
def folder_of_others() -> Iterator[Path]:
    """A temporary folder that every user of the machine may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


def as_nobody(work: Callable[[], str]) -> str:
    """What `work` returns without the privileges of root, to whom no file is forbidden."""
    if os.geteuid() != 0:
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            result = work()
        except BaseException as error:  # must not return into pytest
            result = str(error)
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        result = file.read()
    os.waitpid(child, 0)
    return result
