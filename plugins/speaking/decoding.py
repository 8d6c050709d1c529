"""Prompts -> delayed frames, step by step: the loop that speaks.

In: a batch of prompts (B, S). Out: for each step the rows that still speak and their delayed frames
(R, K). It does what transformers' `generate` does for this model, to the code
(tests/speaking/test_decoding.py), and what that cannot: rows with and without clips in one batch, a
start and a random state of its own per row, rows that leave the batch when they have ended, and
frames as they come. What a step needs and changes are tensors (`_Rows`), so it can be compiled and
captured; which rows go on is the host's affair. This file knows neither texts nor waveforms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from plugins.data.tokens import SpecialTokens
from plugins.speaking.graphs import Captured, compiled
from plugins.speaking.sampling import Sampler, Sampling
from plugins.speaking.step import AudioStep

# Steps that are computed before the host has read the frames that tell which rows go on: a GPU must
# not wait for it.
STEPS_AHEAD = {"cuda": 1}

Step = tuple[list[int], Tensor]  # rows, as numbers in 0..B-1, and their frames (R, K) on the CPU


@torch.inference_mode()
def decode(
    model: Any,
    batch: dict[str, Tensor],
    tokens: SpecialTokens,
    samplings: Sequence[Sampling],
    max_steps: Sequence[int],
    *,
    cuda_graphs: bool = False,
) -> Iterator[Step]:
    """For each step the rows that still speak, as numbers in 0..B-1, and their delayed frames (R,
    K), on the CPU.

    batch: left-padded prompts that end in <|audio_out_bos|> (`plugins.collator`). A row's first
    frame is all stream BOS. It ends with a frame that is all stream EOS, or after `max_steps[row]`
    frames. cuda_graphs: compile the step, and replay it as one graph on a GPU
    (`plugins.speaking.graphs`)."""
    speaking = _Speaking(model, batch, tokens, samplings, max(max_steps), whole=cuda_graphs)
    rows = _Rows(speaking, tokens.stream_eos, max_steps, cuda_graphs=cuda_graphs)
    steps_ahead = STEPS_AHEAD.get(speaking.frames.device.type, 0)
    if steps_ahead:
        yield from _decode_ahead(rows, steps_ahead)
    else:
        yield from _decode_in_step(rows)


def _decode_in_step(rows: _Rows) -> Iterator[Step]:
    """Each step once the one before it has been read."""
    for num_steps in count(1):
        frames = rows.frames.to("cpu", copy=True)  # the next step writes over them
        yield rows.numbers, frames
        rows.let_go(rows.ended(rows.numbers, frames, num_steps))
        if not rows.numbers:
            return
        rows.advance()


def _decode_ahead(rows: _Rows, steps_ahead: int) -> Iterator[Step]:
    """The same steps from a device that works while the host reads: it computes `steps_ahead` more
    of them, for rows of which some may turn out to have ended."""
    num_computed, num_read = 1, 0
    arriving = deque([(rows.numbers, *_sent(rows.frames))])
    while rows.numbers:
        if num_computed < rows.max_steps():
            rows.advance()
            arriving.append((rows.numbers, *_sent(rows.frames)))
            num_computed += 1
            if len(arriving) <= steps_ahead:
                continue
        numbers, frames, wait = arriving.popleft()
        wait()
        num_read += 1
        going_on = [place for place, number in enumerate(numbers) if number in rows.numbers]
        numbers, frames = [numbers[place] for place in going_on], frames[going_on]
        yield numbers, frames
        rows.let_go(rows.ended(numbers, frames, num_read))


def _sent(frames: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy of `frames` on its way to the host, and what waits until it is there."""
    copy = frames.to("cpu", non_blocking=True, copy=True)
    if frames.device.type != "cuda":
        return copy, lambda: None
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived.synchronize


class _Rows:
    """The host's side: which rows still speak, and the step that they take."""

    def __init__(
        self, speaking: _Speaking, stream_eos: int, max_steps: Sequence[int], *, cuda_graphs: bool
    ) -> None:
        self.numbers = list(range(len(max_steps)))  # in the order of the tensors' rows
        self._speaking = speaking
        self._stream_eos = stream_eos
        self._max_steps = max_steps
        self._cuda_graphs = cuda_graphs
        self.advance = self._step()

    @property
    def frames(self) -> Tensor:
        return self._speaking.frames

    def max_steps(self) -> int:
        return max(self._max_steps[number] for number in self.numbers)

    def _step(self) -> Callable[[], None]:
        """For these rows: a graph is worth nothing once one of them has left."""
        if not self._cuda_graphs:
            return self._speaking.advance
        step = partial(compiled(_Speaking.advance), self._speaking)
        return Captured(step, self._speaking.frames.device)

    def ended(self, numbers: list[int], frames: Tensor, num_steps: int) -> set[int]:
        """Those that have said all with `frames` (R, K), their `num_steps`-th."""
        all_eos = (frames == self._stream_eos).all(dim=-1).tolist()
        ended = set()
        for number, has_said_all in zip(numbers, all_eos, strict=True):
            if has_said_all or num_steps == self._max_steps[number]:
                ended.add(number)
        return ended

    def let_go(self, ended: set[int]) -> None:
        """Go on without these, and without their memory."""
        staying = [place for place, number in enumerate(self.numbers) if number not in ended]
        if len(staying) == len(self.numbers):
            return
        # A new list: the old one is in the hands of who reads the steps.
        self.numbers = [self.numbers[place] for place in staying]
        if staying:
            self._speaking.keep(torch.tensor(staying, device=self.frames.device))
            self.advance = self._step()


class _Speaking:
    """The device's side, tensors only: the last frames of the rows that still speak, what these
    leave of a choice, and the model behind them."""

    def __init__(
        self,
        model: Any,
        batch: dict[str, Tensor],
        tokens: SpecialTokens,
        samplings: Sequence[Sampling],
        num_steps: int,
        *,
        whole: bool,
    ) -> None:
        mask = batch["attention_mask"]
        cache = DynamicCache(config=model.config)
        # A row's first token is at position 0, wherever its padding ends.
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        model.hidden_states(**batch, position_ids=positions, cache=cache)
        num_rows, num_codebooks, device = len(mask), tokens.num_codebooks, mask.device
        self._tokens = tokens
        # The first frame, all BOS, is given: a step less.
        self._model_step = AudioStep(model, cache, mask, num_steps - 1, whole=whole)
        self._sampler = Sampler(samplings, num_steps, num_codebooks, device)
        window = self._sampler.window
        self.frames = torch.full((num_rows, num_codebooks), tokens.stream_bos, device=device)
        self._recent = torch.full((num_rows, window, num_codebooks), -1, device=device)
        # Frames since a row's first stream EOS, and the number of the step whose frames these are.
        self._ended = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._codebooks = torch.arange(num_codebooks, device=device)

    def advance(self) -> None:
        """`frames` becomes the next ones. Nothing here may ask for a value: the host would wait for
        the device."""
        self._number.add_(1)
        codes = self.frames.where(self.frames < self._tokens.num_codes, -1)
        self._recent.copy_(torch.cat([self._recent[:, 1:], codes[:, None]], dim=1))
        frames = self._sampler.draw(self._model_step(self.frames), self._recent, self._number)
        # Codebook k begins k steps later than the first.
        frames = torch.where(self._codebooks >= self._number, self._tokens.stream_bos, frames)
        # The first EOS of a row may come in any codebook; from the next frame on they follow one by
        # one.
        follows = self._codebooks < self._ended[:, None]
        frames = torch.where(follows, self._tokens.stream_eos, frames)
        self._ended.add_((frames == self._tokens.stream_eos).any(dim=-1) | (self._ended > 0))
        self.frames.copy_(frames)

    def keep(self, rows: Tensor) -> None:
        """Let all rows but these go. rows: (R,) long."""
        self._model_step.keep(rows)
        self._sampler.keep(rows)
        self.frames = self.frames[rows]
        self._recent = self._recent[rows]
        self._ended = self._ended[rows]
