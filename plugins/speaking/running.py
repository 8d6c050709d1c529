"""A batch that never ends: rows join it between two steps and leave it when they have ended, while
the others speak on.

In: prompts, at any time. Out: for each step the rows that speak, each with its next delayed frame
(K,). All rows share one place in the cache, where their next frames go; a prompt that joins is put
right before it, and the cache moves left again when nobody remembers its first places. What a row
says is what `plugins.speaking.decoding.decode` gives for it alone (tests/speaking/test_running.py).
This file knows neither texts nor waveforms, nor who waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.speaking.decoding import PIECE, STEPS_AHEAD, Room, Speaking, fits, round_to, sent
from plugins.speaking.graphs import Recordings
from plugins.speaking.sampling import Sampler, Sampling


class Row:
    """One who speaks. Its first frame is all stream BOS and was not computed."""

    def __init__(self, sample: EncodedSample, sampling: Sampling, max_steps: int) -> None:
        self.sample, self.sampling, self.max_steps = sample, sampling, max_steps
        self.num_steps = 1  # frames that have been read
        self.num_filled = len(sample.input_ids)  # places of the cache, with frames under way
        self.speaks = False

    @property
    def length(self) -> int:
        """Places of the cache that prompt and speech may take."""
        return len(self.sample.input_ids) + self.max_steps


class RunningBatch:
    """num_rows: that speak at the same time, at most; less where so many have no room. length: of
    prompt and speech that there is room for from the beginning. is_recorded: steps are compiled,
    and recorded on a GPU (`plugins.speaking.graphs`)."""

    def __init__(
        self,
        model: Any,
        tokens: SpecialTokens,
        *,
        num_rows: int,
        length: int,
        is_recorded: bool = False,
    ) -> None:
        self._model, self._tokens, self._is_recorded = model, tokens, is_recorded
        self._num_rows, self._length = num_rows, length
        self._speaking: Speaking | None = None
        self.rows: list[Row] = []  # as they stand in the tensors
        self.num_computed = 0  # frames of rows, since the beginning
        self._arriving: deque[tuple[list[Row], Tensor, Callable[[], None]]] = deque()

    def num_free(self, length: int) -> int:
        """How many rows of such a `Row.length` may join now."""
        room = self._room(length)
        if self._speaking is not None and self.rows:
            # It gets longer when nobody is in it.
            room = self._speaking.room
            if length > room.length:
                return 0
        return room.num_rows - len(self.rows)

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """`num_free` says for how many there is room. They speak from the next step on."""
        assert all(len(rows) <= self.num_free(row.length) for row in rows), len(rows)
        speaking = self._ready(max(row.length for row in rows))
        if self.rows:
            self._forget()
        batch = collate([row.sample for row in rows], self._tokens, training=False)
        for name, tensor in batch.items():
            batch[name] = tensor.to(self._model.device)
        num_steps = max(row.max_steps for row in rows)
        samplings = [row.sampling for row in rows]
        sampler = Sampler(samplings, num_steps, self._tokens.num_codebooks, self._model.device)
        assert sampler.window <= speaking.room.window, sampler.window
        speaking.join(batch, sampler, len(self.rows))
        for row in rows:
            row.speaks = True
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Tensor]]:
        """The next frames (K,), of the rows that still speak; on a GPU, which computes one ahead,
        of the step before: the first time there are none. Who has ended is in it no more."""
        speaking = self._speaking
        assert speaking is not None
        assert self.rows, "nobody speaks"
        # As it is full, or as half of what all attend to is nobody's any more.
        num_forgotten = speaking.num_filled - max(row.num_filled for row in self.rows)
        is_full = speaking.num_filled == speaking.room.length
        if is_full or num_forgotten > max(PIECE, speaking.num_filled // 2):
            self._forget()
        speaking.step(len(self.rows))
        self.num_computed += len(self.rows)
        for row in self.rows:
            row.num_filled += 1
        frames = speaking.frames[: len(self.rows)]
        self._arriving.append((list(self.rows), *sent(frames)))
        if len(self._arriving) <= STEPS_AHEAD.get(frames.device.type, 0):
            return []
        said = []
        rows, frames, wait = self._arriving.popleft()
        wait()
        has_ended = (frames == self._tokens.stream_eos).all(dim=-1).tolist()
        for row, frame, has_said_all in zip(rows, frames, has_ended, strict=True):
            if not row.speaks:
                continue  # it ended or left after this step had begun
            row.num_steps += 1
            said.append((row, frame))
            if has_said_all or row.num_steps == row.max_steps:
                self.leave(row)
        return said

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """From the next step on nothing is computed for `row`. The last one takes its place."""
        assert self._speaking is not None
        index, last = self.rows.index(row), len(self.rows) - 1
        if index < last:
            self._speaking.move(last, index)
            self.rows[index] = self.rows[last]
        self.rows.pop()
        row.speaks = False
        if not self.rows:
            self._arriving.clear()

    def _forget(self) -> None:
        """Move the cache left, over the places that no row remembers."""
        assert self._speaking is not None
        num_filled = max(row.num_filled for row in self.rows)
        self._speaking.shift(len(self.rows), num_filled - self._speaking.num_filled)

    def _ready(self, length: int) -> Speaking:
        """With room for rows of `length`. What was recorded goes with the room that was too
        small."""
        room = self._room(length)
        is_ready = self._speaking is not None and length <= self._speaking.room.length
        if self._speaking is not None and not self.rows:
            # Fewer, longer rows were asked for once: go back to many.
            is_ready = is_ready and self._speaking.room.num_rows >= room.num_rows
        if not is_ready:
            assert not self.rows
            self._speaking = None  # freed before there is another
            recordings = Recordings(self._model.device) if self._is_recorded else None
            self._speaking = Speaking(self._model, self._tokens, room, recordings, is_masked=True)
        assert self._speaking is not None
        return self._speaking

    def _room(self, length: int) -> Room:
        length = round_to(max(length, self._length), PIECE)
        num_rows = self._num_rows
        while num_rows > 1 and not fits(self._model, num_rows, length):
            num_rows //= 2
        window = Sampler([Sampling(seed=0)], 1, 1, "cpu").window
        return Room(num_rows, length, window)
