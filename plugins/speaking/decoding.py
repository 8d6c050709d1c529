"""Prompts -> delayed frames, step by step: the loop that speaks.

In: a batch of prompts (B, S). Out: for each step the rows that still speak and their delayed frames
(R, K). It does what transformers' `generate` does for this model, to the code
(tests/speaking/test_decoding.py), and what that cannot: rows with and without clips in one batch, a
start and a random state of its own per row, rows that leave the batch when they have ended, and
frames as they come. What a step needs and changes are tensors (`Speaking`), so it can be compiled
and recorded; which rows go on is the host's affair (`_Rows`). This file knows neither texts nor
waveforms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from plugins.data.tokens import SpecialTokens
from plugins.speaking import sampling, step
from plugins.speaking.graphs import Recordings, compiled
from plugins.speaking.sampling import Sampler, Sampling, round_up
from plugins.speaking.step import AudioStep, bytes_per_position, first

# Steps that are computed before the host has read the frames that tell which rows go on: a GPU must
# not wait for it.
STEPS_AHEAD = {"cuda": 1}
# Positions that recorded steps look at more than need be, at most: for each such piece of a speech
# there is a recording.
PIECE = 256
_CACHE_BYTES = 5 * 2**30  # of one batch: 32 rows of 1280 positions of the 3B model in bfloat16

Step = tuple[list[int], Tensor]  # rows, as numbers in 0..B-1, and their frames (R, K) on the CPU


@torch.inference_mode()
def decode(
    model: Any,
    batch: dict[str, Tensor],
    tokens: SpecialTokens,
    samplings: Sequence[Sampling],
    max_steps: Sequence[int],
    *,
    stage: Stage | None = None,
) -> Iterator[Step]:
    """For each step the rows that still speak, as numbers in 0..B-1, and their delayed frames (R,
    K), on the CPU.

    batch: left-padded prompts that end in <|audio_out_bos|> (`plugins.collator`). A row's first
    frame is all stream BOS. It ends with a frame that is all stream EOS, or after `max_steps[row]`
    frames. stage: compile the steps, and on a GPU record them, for this speech and later ones."""
    num_steps = max(max_steps)
    num_rows, num_prompt = batch["attention_mask"].shape
    sampler = Sampler(samplings, num_steps, tokens.num_codebooks, model.device)
    # The first frame, all BOS, is given: a step less.
    room = Room(num_rows, num_prompt + num_steps - 1, sampler.window)
    with (stage or _NO_STAGE).lent(model, tokens, room) as speaking:
        speaking.begin(batch, sampler)
        rows = _Rows(speaking, tokens.stream_eos, max_steps)
        steps_ahead = STEPS_AHEAD.get(speaking.frames.device.type, 0)
        if steps_ahead:
            yield from _decode_ahead(rows, steps_ahead)
        else:
            yield from _decode_in_step(rows)


@dataclass(frozen=True)
class Room:
    """What tensors have room for."""

    num_rows: int
    length: int  # positions of prompt and answer
    window: int  # frames that a choice looks back to

    def wide_as(self, other: Room) -> Room:
        """Room for both."""
        return Room(
            max(self.num_rows, other.num_rows),
            max(self.length, other.length),
            max(self.window, other.window),
        )

    def __contains__(self, other: Room) -> bool:
        return (
            other.num_rows <= self.num_rows
            and other.length <= self.length
            and other.window <= self.window
        )


def fits(model: Any, num_rows: int, length: int) -> bool:
    """Whether so many rows of so many positions are to be spoken in one batch; on a stage they have
    the room of a power of two of rows."""
    return round_up(num_rows) * length * bytes_per_position(model) <= _CACHE_BYTES


class Stage:
    """Outlives a request: room for rows, and the steps that were recorded in it, also for requests
    that need less room."""

    def __init__(self) -> None:
        self._free: Speaking | None = None

    @contextmanager
    def lent(self, model: Any, tokens: SpecialTokens, room: Room) -> Iterator[Speaking]:
        """For one speech. Who comes while it is lent (between two pieces of a stream, say) gets
        another."""
        speaking, self._free = self._free, None
        if speaking is not None and not speaking.is_of(model):
            speaking = None
        if speaking is None or room not in speaking.room:
            room = Room(round_up(room.num_rows), round_to(room.length, PIECE), room.window)
            if speaking is not None:
                wider = room.wide_as(speaking.room)
                room = wider if fits(model, wider.num_rows, wider.length) else room
            speaking = None  # freed before there is another
            speaking = Speaking(model, tokens, room, Recordings(model.device))
        try:
            yield speaking
        finally:
            self._free = speaking


class _NoStage:
    """Each speech has room of its own, which goes with it."""

    @contextmanager
    def lent(self, model: Any, tokens: SpecialTokens, room: Room) -> Iterator[Speaking]:
        # Kernels of attention want rows of masks to begin at multiples of 16 bytes.
        room = Room(room.num_rows, round_to(room.length, 8), room.window)
        yield Speaking(model, tokens, room, None)


_NO_STAGE = _NoStage()


def round_to(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _decode_in_step(rows: _Rows) -> Iterator[Step]:
    """Each step once the one before it has been read."""
    for num_steps in count(1):
        # The next step writes over them.
        numbers, frames = rows.still(rows.places, rows.frames.to("cpu", copy=True))
        yield numbers, frames
        rows.let_go(rows.ended(numbers, frames, num_steps))
        if not rows.numbers:
            return
        rows.advance()


def _decode_ahead(rows: _Rows, steps_ahead: int) -> Iterator[Step]:
    """The same steps from a device that works while the host reads: it computes `steps_ahead` more
    of them, for rows of which some may turn out to have ended."""
    num_computed, num_read = 1, 0
    arriving = deque([(rows.places, *sent(rows.frames))])
    while rows.numbers:
        if num_computed < rows.max_steps():
            rows.advance()
            arriving.append((rows.places, *sent(rows.frames)))
            num_computed += 1
            if len(arriving) <= steps_ahead:
                continue
        places, frames, wait = arriving.popleft()
        wait()
        num_read += 1
        numbers, frames = rows.still(places, frames)
        yield numbers, frames
        rows.let_go(rows.ended(numbers, frames, num_read))


def sent(frames: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy of `frames` on its way to the host, and what waits until it is there."""
    copy = frames.to("cpu", non_blocking=True, copy=True)
    if frames.device.type != "cuda":
        return copy, lambda: None
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived.synchronize


class _Rows:
    """The host's side: which rows still speak."""

    def __init__(self, speaking: Speaking, stream_eos: int, max_steps: Sequence[int]) -> None:
        self.numbers = list(range(len(max_steps)))
        # The numbers of the tensors' first rows; some may have ended.
        self.places = self.numbers
        self._speaking = speaking
        self._stream_eos = stream_eos
        self._max_steps = max_steps

    @property
    def frames(self) -> Tensor:
        return first(self._speaking.frames, len(self.places))

    def max_steps(self) -> int:
        return max(self._max_steps[number] for number in self.numbers)

    def advance(self) -> None:
        self._speaking.step(len(self.places))

    def still(self, places: list[int], frames: Tensor) -> Step:
        """Of frames (R, K) with these numbers the rows that still speak."""
        if len(places) == len(self.numbers):
            return places, frames
        speaking = [place for place, number in enumerate(places) if number in self.numbers]
        return [places[place] for place in speaking], frames[speaking]

    def ended(self, numbers: list[int], frames: Tensor, num_steps: int) -> set[int]:
        """Those that have said all with `frames` (R, K), their `num_steps`-th."""
        all_eos = (frames == self._stream_eos).all(dim=-1).tolist()
        ended = set()
        for number, has_said_all in zip(numbers, all_eos, strict=True):
            if has_said_all or num_steps == self._max_steps[number]:
                ended.add(number)
        return ended

    def let_go(self, ended: set[int]) -> None:
        """Go on without these. New lists: the old ones are in the hands of who reads the steps."""
        if not ended:
            return
        self.numbers = [number for number in self.numbers if number not in ended]
        staying = [place for place, number in enumerate(self.places) if number in self.numbers]
        if staying and self._speaking.is_worth_moving(len(self.places), len(staying)):
            self._speaking.keep(torch.tensor(staying, device=self.frames.device))
            self.places = self.numbers


class Speaking:
    """The device's side, tensors only: the last frames of the rows that still speak, what these
    leave of a choice, and the model behind them. It can begin again and again.

    recordings: None, or steps of few sizes are compiled and recorded: of a power of two of rows,
    the first ones, some of which may have ended or have never been; and of whole pieces of the
    cache, behind a mask."""

    def __init__(
        self,
        model: Any,
        tokens: SpecialTokens,
        room: Room,
        recordings: Recordings | None,
        *,
        is_masked: bool = False,
    ) -> None:
        self.model, self.room = model, room
        self._lies = model.device, model.dtype
        self._tokens, self._recordings = tokens, recordings
        layer = drawn = None
        if recordings is not None:
            layer = compiled(step.audio_layer, step.VARYING)
            drawn = compiled(sampling.drawn_codes, sampling.VARYING)
        is_masked = is_masked or recordings is not None
        device, num_codebooks = model.device, tokens.num_codebooks
        # No piece of the cache is the whole: to the compiler that would be another kind of tensor.
        length = room.length + 8 if is_masked else room.length
        self._model_step = AudioStep(model, room.num_rows, length, is_masked=is_masked, layer=layer)
        seeds = [Sampling(seed=0)] * room.num_rows  # drawn from no global state
        self._sampler = Sampler(seeds, room.length, num_codebooks, device, drawn=drawn)
        self.frames = torch.zeros(room.num_rows, num_codebooks, dtype=torch.long, device=device)
        self._recent = torch.zeros(
            room.num_rows, room.window, num_codebooks, dtype=torch.long, device=device
        )
        # Frames since a row's first stream EOS, and the number of the step whose frame this is.
        self._ended = torch.zeros(room.num_rows, dtype=torch.long, device=device)
        self._numbers = torch.zeros(room.num_rows, dtype=torch.long, device=device)
        self._codebooks = torch.arange(num_codebooks, device=device)
        self._num_filled = 0
        self._weights: tuple[Any, ...] = ()

    def is_of(self, model: Any) -> bool:
        """Whether its tensors are those of `model`, which `model.to` changes as it stands."""
        return model is self.model and (model.device, model.dtype) == self._lies

    def begin(self, batch: dict[str, Tensor], sampler: Sampler) -> None:
        mask = batch["attention_mask"]
        self._model_step.begin(self._read(batch), mask)
        self._num_filled = mask.shape[1]
        self._start(slice(None), sampler, 0)

    def join(self, batch: dict[str, Tensor], sampler: Sampler, row: int) -> None:
        """Rows from `row` on, all that are above the ones that speak. Needs masks."""
        mask = batch["attention_mask"]
        cache = self._read(batch)
        if row == 0:
            self._num_filled = 0
        self.shift(row, max(0, mask.shape[1] - self._num_filled))
        self._model_step.join(cache, mask, row, self._num_filled)
        self._start(slice(row, row + len(mask)), sampler, row)

    def _read(self, batch: dict[str, Tensor]) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        # A row's first token is at position 0, wherever its padding ends.
        positions = (batch["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
        self.model.hidden_states(**batch, position_ids=positions, cache=cache)
        return cache

    def _start(self, rows: slice, sampler: Sampler, row: int) -> None:
        self._sampler.join(sampler, row)
        self.frames[rows] = self._tokens.stream_bos
        self._recent[rows] = -1
        self._ended[rows] = 0
        self._numbers[rows] = 0
        if self._recordings is not None and row == 0:
            self._weights = _weights(self.model)

    @property
    def num_filled(self) -> int:
        """Places of the cache, of prompts and frames, up to the next frame's."""
        return self._num_filled

    def shift(self, num_rows: int, by: int) -> None:
        """See `AudioStep.shift`."""
        self._num_filled += by
        self._numbers[num_rows:] = 0
        self._model_step.shift(num_rows, by)

    def move(self, row: int, target: int) -> None:
        """`row` takes the place of the row `target`, which has ended."""

        def moved(tensor: Tensor) -> Tensor:
            tensor[target] = tensor[row]
            return tensor

        self._keep(moved)

    def step(self, num_rows: int) -> None:
        """For the first `num_rows` rows."""
        self._num_filled += 1
        if self._recordings is None:
            self.advance(num_rows, self._num_filled)
            return
        num_rows, end = round_up(num_rows), round_to(self._num_filled, PIECE)
        key = (num_rows, end, self._sampler.kind, self._weights)
        self._recordings.run(key, partial(self.advance, num_rows, end))

    def advance(self, num_rows: int, end: int) -> None:
        """`frames` becomes the next ones. Nothing here may ask for a value: the host would wait for
        the device."""
        rows = (self.frames, self._recent, self._ended, self._numbers)
        frames, recent, ended, numbers = (first(tensor, num_rows) for tensor in rows)
        numbers.add_(1)
        codes = frames.where(frames < self._tokens.num_codes, -1)
        recent.copy_(torch.cat([recent[:, 1:], codes[:, None]], dim=1))
        drawn = self._sampler.draw(self._model_step(frames, end), recent, numbers)
        # Codebook k begins k steps later than the first.
        drawn = torch.where(self._codebooks >= numbers[:, None], self._tokens.stream_bos, drawn)
        # The first EOS of a row may come in any codebook; from the next frame on they follow one by
        # one.
        follows = self._codebooks < ended[:, None]
        drawn = torch.where(follows, self._tokens.stream_eos, drawn)
        ended.add_((drawn == self._tokens.stream_eos).any(dim=-1) | (ended > 0))
        frames.copy_(drawn)

    def is_worth_moving(self, num_rows: int, num_staying: int) -> bool:
        """A step of another size is another recording: rows move up at halves."""
        return self._recordings is None or round_up(num_staying) < round_up(num_rows)

    def keep(self, rows: Tensor) -> None:
        """Let all rows but these go. rows: (R,) long, rising."""

        def kept(tensor: Tensor) -> Tensor:
            staying = tensor[rows.to(tensor.device)]
            if self._recordings is None:
                return staying  # and the memory of the others goes
            tensor[: len(staying)] = staying  # addresses are recorded
            return tensor

        self._keep(kept)

    def _keep(self, kept: Callable[[Tensor], Tensor]) -> None:
        self._model_step.keep(kept)
        self._sampler.keep(kept)
        self.frames, self._recent = kept(self.frames), kept(self._recent)
        self._ended, self._numbers = kept(self._ended), kept(self._numbers)


def _weights(model: Any) -> tuple[Any, ...]:
    """What a recording holds of the model: where its weights lie, and which adapters are on."""
    adapters = set()
    for module in model.modules():
        if (active := getattr(module, "_active_adapter", None)) is not None:  # of peft
            merged = tuple(getattr(module, "merged_adapters", ()))
            adapters.add((str(active), module._disable_adapters, merged))
    addresses = hash(tuple(parameter.data_ptr() for parameter in model.parameters()))
    return addresses, frozenset(adapters)
