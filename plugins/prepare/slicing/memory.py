"""Who listens, with a memory: what was heard of a stretch is not heard again.

In: (N,) float32 at 16 kHz. Out: `Heard`. The memory is the journal of the run, so that a killed
one goes on in the middle of a recording; the journal goes when the run is finished."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from plugins.prepare.run import journal_line, read_journal
from plugins.prepare.slicing.hearing import Heard, WordListener, WordRecogniser


class Memory:
    """The recogniser is loaded when something new is to be heard."""

    def __init__(self, listener: WordListener, journal: Path) -> None:
        self._listener, self._journal = listener, journal
        self._recogniser: WordRecogniser | None = None
        self._known: dict[str, Heard] = {}
        for key, value in read_journal(journal).items():
            # It has the outcomes of other work too.
            with suppress(LookupError, TypeError, ValueError):
                self._known[key] = Heard.from_json(value)

    def hear(self, samples: np.ndarray) -> Heard:
        """The words in `samples`, at most 30 s."""
        told = f"{self._listener.identity}, {self._listener.language}"
        key = hashlib.sha256(told.encode() + samples.tobytes()).hexdigest()
        if key in self._known:
            return self._known[key]
        if self._recogniser is None:
            self._recogniser = self._listener.load()
        heard = self._recogniser.words(samples)
        # Closed, it is the kernel's, which a killed process leaves behind.
        with self._journal.open("ab") as file:
            file.write(journal_line(key, heard.to_json()))
        return heard
