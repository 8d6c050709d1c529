"""Data workers: the processes that encode and collate batches while the model trains.

rows --NamedRows, in a worker--> batch with where its rows come from; signals ignored
loader --remembered--> the same, whose workers `ending` ends
TMPDIR too long for their sockets --check_temporary_folder--> UserError
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from plugins.corpora.canonical import ROW_SOURCE
from plugins.errors import problem
from plugins.ms_swift.dicts import encoded_answers
from plugins.training import signals
from plugins.training.packs import single_rows

# Where a worker hands over a batch, below the temporary folder.
_SOCKET = "/pymp-12345678/listener-12345678"
_LONGEST_SOCKET_PATH_BYTES = 107  # Linux: sockaddr_un.sun_path without its final zero
# Of the loaders of this process: each holds its workers.
_iterators: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(frozen=True)
class NamedRows:
    """A collator whose batches also hold where their rows come from; pickles into spawned
    workers."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if get_worker_info() is not None:
            # Ctrl-C and batch systems signal workers too, but the step that is being finished needs
            # their batches.
            for number in signals.SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        sources = []
        for row in single_rows(rows):
            sources.append(encoded_answers(row)[0].get(ROW_SOURCE, "row"))
        return {**self.collate(rows), ROW_SOURCE: sources}


def check_temporary_folder(num_workers: int) -> None:
    """Raise UserError if data workers could not open sockets there: torch would wait for their
    batches for ever."""
    if num_workers == 0 or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    folder = tempfile.gettempdir()
    longest = _LONGEST_SOCKET_PATH_BYTES - len(_SOCKET)
    if len(os.fsencode(folder)) > longest:
        raise problem(
            source="environment",
            field="TMPDIR",
            value=folder,
            reason=f"is too long for the sockets of data workers (at most {longest} bytes)",
            remedy="name a shorter one, or set dataloader_num_workers: 0",
        )


def remembered(loader: Any) -> Any:
    """`loader`, torch's or one around it, after telling it to note each iterator that it makes."""
    inner = getattr(loader, "base_dataloader", loader)
    # A loader that held itself would be collected late, after the queues of its workers.
    reference, make = weakref.ref(inner), type(inner)._get_iterator

    def noted() -> Any:
        iterator = make(reference())
        _iterators.add(iterator)
        return iterator

    inner._get_iterator = noted
    return loader


@contextmanager
def ending(trainer: Any) -> Iterator[None]:
    """Around the training: no worker outlives it, or the process."""
    # Hooks run last in, first out: ours before that of multiprocessing, however often we train.
    atexit.unregister(_end_all)
    atexit.register(_end_all)
    try:
        yield
    finally:
        _end_waiting(trainer)


def _end_waiting(trainer: Any) -> None:
    """Those that would wait for another epoch. Collected together with their queues, in the
    process's next training, they no longer hear that they are to end, and each is waited for in
    vain."""
    evaluation = getattr(trainer, "_eval_dataloaders", {}).values()
    for loader in (trainer.callback_handler.train_dataloader, *evaluation):
        inner = getattr(loader, "base_dataloader", loader)
        if getattr(inner, "_iterator", None) is not None:
            inner._iterator._shutdown_workers()
            inner._iterator = None


def _end_all() -> None:
    """At exit, before multiprocessing's own hook: that sends SIGTERM, which they ignore, and then
    waits for ever.

    Asked by torch they remove their temporary files. An iterator lives on in persistent workers or
    a kept traceback."""
    for iterator in list(_iterators):
        if hasattr(iterator, "_shutdown_workers"):  # not without workers
            iterator._shutdown_workers()
    # torch raises an error for each worker that is killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
