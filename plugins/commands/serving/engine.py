"""Orders -> samples, all spoken together: one thread owns the model and the batch that runs on it.

    order --place, speak--> waiting line --join--> row of the batch --frames, codes--> samples

A line of an order joins the batch at the next frame, if there is room, and leaves it when it has
ended; the next line of a long order then waits behind what came meanwhile, so a short order waits
for lines, not for books. Adapters: one at a time, switched when the batch is empty; an order for
another one is overtaken for a moment, not for ever. Codes become samples in a thread beside it.
This file knows neither HTTP nor file formats."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from plugins.audio.codec import FRAMES_PER_S
from plugins.audio.stream_decoder import StreamDecoder
from plugins.delay_pattern import num_delayed_frames
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.line import Line
from plugins.speaking.running import Row, RunningBatch
from plugins.speaking.sampling import Sampling
from plugins.speaking.voices import Script

logger = logging.getLogger(__name__)

# How long an order for another adapter is overtaken by those for the one that speaks.
_PATIENCE_S = 2.0
# Places of the cache for a prompt and its reference; longer ones are made room for.
_PROMPT_LENGTH = 768
_FRAMES_PER_PIECE = 25  # of a stream, at most, as in `HiggsAudioGenerator.stream`
_MAX_RETRY_S = 60
_MOST_FAULTS = 3  # one after the other: a GPU that is lost says so to each order


class Busy(Exception):
    """No place is free; one may be in `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"busy for about {retry_after_s} s")
        self.retry_after_s = retry_after_s


class TooLate(Exception):
    """The order's time was over before it was spoken."""


class Closed(Exception):
    """The engine takes no orders any more."""


@dataclass(frozen=True)
class Order:
    """What is to be spoken. in_pieces: samples as soon as they are final, else line by line. Of
    both the codes are those of `HiggsAudioGenerator.generate`."""

    script: Script
    sampling: Sampling
    adapter: str | None
    max_audio_s: float
    in_pieces: bool


@dataclass(frozen=True)
class Ended:
    """The last that comes of an order."""

    num_prompt_tokens: int
    num_frames: int
    stopped: bool  # each line by itself, not at `max_audio_s`


Item = np.ndarray | Ended | Exception


class _Job:
    """An order on its way. emit: called from threads of the engine, with samples (N,), and at last
    `Ended` or an error."""

    def __init__(
        self, order: Order, line: Line, decoder: StreamDecoder, emit: Callable[[Item], None]
    ) -> None:
        self.order, self.line, self.decoder = order, line, decoder
        self.row = Row(line.sample, order.sampling, line.max_steps)
        self.said: list[Tensor] = []  # codes (K, F) of each line
        self.num_prompt_tokens = len(line.sample.input_ids)
        self.stopped = True
        self.is_gone = False
        self.began_s = self.waits_since_s = time.monotonic()
        self._emit = emit

    def emit(self, item: Item) -> None:
        if not self.is_gone:
            self._emit(item)

    def end(self, item: Ended | Exception) -> None:
        self.emit(item)
        self.is_gone = True


class Engine:
    """generator: nobody else may speak with it. num_rows: spoken at a time. max_waiting: orders
    beyond them. time_limit_s: of an order, in the queue and spoken."""

    def __init__(
        self,
        generator: HiggsAudioGenerator,
        *,
        num_rows: int,
        max_waiting: int,
        max_audio_s: float,
        time_limit_s: float,
    ) -> None:
        self._generator, self._speaker = generator, generator.speaker
        self._num_rows, self._max_waiting = num_rows, max_waiting
        self.time_limit_s = time_limit_s
        num_frames = math.ceil(max_audio_s * FRAMES_PER_S)
        num_steps = num_delayed_frames(num_frames, generator.tokens.num_codebooks)
        self._length = _PROMPT_LENGTH + num_steps
        self._adapter = next(iter(generator.adapters), None)
        generator.use_adapter(self._adapter)  # whichever spoke before
        self._batch = self._new_batch()
        self._jobs: dict[Row, _Job] = {}  # of the rows of the batch
        self._waiting: deque[_Job] = deque()
        self._num_taken = 0
        self._took_s = 1.0  # of an order, lately
        self._num_faults = 0  # since a line was spoken
        self._is_closed = False
        self._changed = threading.Condition()
        self._sounds = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _new_batch(self) -> RunningBatch:
        return RunningBatch(
            self._generator.model,
            self._generator.tokens,
            num_rows=self._num_rows,
            length=self._length,
            is_recorded=self._speaker.compiles,
        )

    # What others ask.

    @property
    def num_speaking(self) -> int:
        return len(self._batch.rows)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_computed(self) -> int:
        """Frames of rows, since the beginning."""
        return self._batch.num_computed

    @property
    def num_places(self) -> int:
        """Orders that are spoken or wait, at most."""
        return self._num_rows + self._max_waiting

    @property
    def is_alive(self) -> bool:
        """Also whether it can be hoped for that it speaks."""
        is_there = self._thread.is_alive() and not self._is_closed
        return is_there and self._num_faults < _MOST_FAULTS

    @contextmanager
    def place(self) -> Iterator[None]:
        """For one order, from before its prompt is made until its last sample. Raises Busy."""
        with self._changed:
            if self._is_closed:
                raise Closed
            if self._num_taken >= self.num_places:
                rounds = -(-self._num_taken // self._num_rows)
                raise Busy(max(1, min(_MAX_RETRY_S, round(rounds * self._took_s))))
            self._num_taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_taken -= 1

    def first_line(self, order: Order) -> Line:
        """Ready to be spoken. Takes a while where a reference has to be encoded, so not in the
        thread of the server. Raises UserError for what cannot be heard, or leaves no room."""
        return self._speaker.line(order.script, [], order.max_audio_s)

    async def speak(self, order: Order, line: Line) -> AsyncGenerator[np.ndarray | Ended, None]:
        """Samples (N,) float32, at last `Ended`. Who iterates no more leaves the batch before the
        next frame. Raises UserError if nothing was said, TooLate."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Item] = asyncio.Queue()

        def emit(item: Item) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it who waited
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        decoder = StreamDecoder(self._generator.codec, chunk_frames=_FRAMES_PER_PIECE)
        job = _Job(order, line, decoder, emit)
        with self._changed:
            if self._is_closed:
                raise Closed
            self._waiting.append(job)
            self._changed.notify()
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Ended):
                    return
        finally:
            job.is_gone = True

    def close(self) -> None:
        """What is spoken or waits is ended with `Closed`. Returns when the thread has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._sounds.shutdown()

    # The thread.

    def _run(self) -> None:
        while self._is_needed():
            try:
                self._turn()
            except Exception as error:  # whatever it is, the next order is not to suffer from it
                logger.exception("what was spoken is lost")
                self._num_faults += 1
                self._end_all(error)
        self._end_all(Closed())

    def _is_needed(self) -> bool:
        """As soon as there is something to do."""
        with self._changed:
            while not (self._waiting or self._jobs or self._is_closed):
                self._changed.wait()
            return not self._is_closed

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            jobs = [*self._jobs.values(), *self._waiting]
            self._waiting.clear()
        self._jobs.clear()
        for job in jobs:
            job.end(error)
        num_computed, self._batch = self._batch.num_computed, self._new_batch()
        self._batch.num_computed = num_computed

    def _turn(self) -> None:
        """One frame of all."""
        now_s = time.monotonic()
        with self._changed:
            waiting = list(self._waiting)
        for job in [*self._jobs.values(), *waiting]:
            if now_s - job.began_s > self.time_limit_s:
                job.end(TooLate())
        for job in [job for job in self._jobs.values() if job.is_gone]:
            self._batch.leave(job.row)
            del self._jobs[job.row]
        joining = self._who_joins(now_s)
        if joining:
            if not self._jobs:
                self._use(joining[0].order.adapter)
            self._jobs |= {job.row: job for job in joining}
            self._batch.join([job.row for job in joining])
            for job in joining:
                job.line.push(self._first_frame)
        if not self._jobs:
            return
        for row, frame in self._batch.step():
            job = self._jobs[row]
            codes = job.line.push(frame)
            if codes is not None and job.order.in_pieces:
                self._sound(job, partial(job.decoder.push, codes))
            if not row.speaks:
                del self._jobs[row]
                try:
                    self._line_ended(job)
                except Exception as error:  # of this order only, and nobody else knows of it now
                    if not isinstance(error, UserError):
                        logger.exception("an order is lost")
                    job.end(error)

    def _who_joins(self, now_s: float) -> list[_Job]:
        """Of those who wait, in their order, as many as there is room for; they wait no more."""
        joining: list[_Job] = []
        with self._changed:
            staying: deque[_Job] = deque(job for job in self._waiting if not job.is_gone)
            self._waiting = deque()
            adapter, length = self._adapter, 0
            if staying and not self._jobs:
                adapter = staying[0].order.adapter
            while staying:
                job = staying[0]
                if job.order.adapter == adapter:
                    length = max(length, job.row.length)
                    if self._batch.num_free(length) <= len(joining):
                        break
                    joining.append(job)
                elif now_s - job.waits_since_s > _PATIENCE_S and (self._jobs or joining):
                    break  # nobody overtakes it any more
                else:
                    self._waiting.append(job)
                staying.popleft()
            self._waiting += staying
        return joining

    def _use(self, adapter: str | None) -> None:
        if adapter != self._adapter:
            self._generator.use_adapter(adapter)
            self._adapter = adapter

    def _line_ended(self, job: _Job) -> None:
        """Its samples, and its next line or its end. Raises what makes of it neither."""
        line, order = job.line, job.order
        codes = self._speaker.codes_of(line.delayed, line.dialogue)
        job.said.append(codes)
        self._num_faults = 0
        job.stopped &= line.stopped
        if order.in_pieces:
            self._sound(job, job.decoder.finish)
        else:
            self._sound(job, partial(self._generator.codec.decode, codes))
        if len(job.said) == len(order.script.lines):
            self._took_s += 0.2 * (time.monotonic() - job.began_s - self._took_s)
            num_frames = sum(codes.shape[1] for codes in job.said)
            ended = Ended(job.num_prompt_tokens, num_frames, job.stopped)
            self._sounds.submit(job.end, ended)
            return
        job.line = self._speaker.line(order.script, job.said, order.max_audio_s)
        job.row = Row(job.line.sample, order.sampling, job.line.max_steps)
        job.num_prompt_tokens += len(job.line.sample.input_ids)
        job.waits_since_s = time.monotonic()
        with self._changed:
            self._waiting.append(job)

    def _sound(self, job: _Job, decode: Callable[[], np.ndarray]) -> None:
        """Send its samples, in the thread beside this one, which keeps the order of calls."""

        def work() -> None:
            if job.is_gone:
                return
            try:
                samples = decode()
            except Exception as error:  # of this order only
                logger.exception("codes are lost")
                job.end(error)
                return
            if len(samples):
                job.emit(samples)

        self._sounds.submit(work)

    @property
    def _first_frame(self) -> Tensor:
        """All stream BOS: what each row begins with."""
        tokens = self._generator.tokens
        return torch.full((tokens.num_codebooks,), tokens.stream_bos)
