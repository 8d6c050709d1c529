"""Prompts -> delayed frames, step by step: the loop that speaks. L2.

It does what transformers' `generate` does for this model, to the code
(tests/speaking/test_decoding.py), and what that cannot: rows with and without clips in one batch, a
start and a random state of its own per row, rows that leave the batch when they have ended, and
frames as they come. What a step needs and changes are tensors (`_Speaking`), so it can be compiled
and captured; which rows go on is the host's affair, which reads frames once they are there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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


@torch.inference_mode()
def decode(
    model: Any,
    batch: dict[str, Tensor],
    tokens: SpecialTokens,
    samplings: Sequence[Sampling],
    max_steps: Sequence[int],
    *,
    cuda_graphs: bool = False,
) -> Iterator[tuple[list[int], Tensor]]:
    """For each step the rows that still speak, as numbers in 0..B-1, and their delayed frames (R,
    K), on the CPU.

    batch: left-padded prompts that end in <|audio_out_bos|> (`plugins.collator`). A row's first
    frame is all stream BOS. It ends with a frame that is all stream EOS, or after `max_steps[row]`
    frames. cuda_graphs: compile the step, and replay it as one graph on a GPU
    (`plugins.speaking.graphs`)."""
    speaking = _Speaking(model, batch, tokens, samplings, max(max_steps), whole=cuda_graphs)
    advance = speaking.as_step(cuda_graphs)
    ahead = STEPS_AHEAD.get(speaking.frames.device.type, 0)
    rows = list(range(len(max_steps)))
    alive, num_done = set(rows), 1
    arriving = deque([(0, rows, *_sent(speaking.frames))])
    while alive:
        if num_done < max(max_steps[row] for row in alive):
            advance()
            arriving.append((num_done, rows, *_sent(speaking.frames)))
            num_done += 1
            if len(arriving) <= ahead:
                continue
        step, were, frames, arrived = arriving.popleft()
        arrived()
        current = [i for i, row in enumerate(were) if row in alive]
        frames = frames[current]
        yield [were[i] for i in current], frames
        has_ended = (frames == tokens.stream_eos).all(dim=-1).tolist()
        alive -= {
            were[i]
            for i, ended in zip(current, has_ended, strict=True)
            if ended or max_steps[were[i]] == step + 1
        }
        staying = [i for i, row in enumerate(rows) if row in alive]
        if 0 < len(staying) < len(rows):
            rows = [rows[i] for i in staying]
            speaking.keep(torch.tensor(staying, device=speaking.frames.device))
            advance = speaking.as_step(cuda_graphs)


class _Speaking:
    """The rows that still speak: their last frames, what these leave of a choice, and the model
    behind them."""

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
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        model.hidden_states(**batch, position_ids=positions, past_key_values=cache, use_cache=True)
        device, num_codebooks = mask.device, tokens.num_codebooks
        self._tokens = tokens
        self._model_step = AudioStep(model, cache, mask, num_steps - 1, whole=whole)
        self._sampler = Sampler(samplings, num_steps, num_codebooks, device)
        self.frames = torch.full((len(mask), num_codebooks), tokens.stream_bos, device=device)
        self._recent = torch.full(
            (len(mask), self._sampler.window, num_codebooks), -1, device=device
        )
        self._ended = torch.zeros(
            len(mask), dtype=torch.long, device=device
        )  # frames since a row's first stream EOS
        self._number = torch.zeros(
            1, dtype=torch.long, device=device
        )  # of the step whose frames these are
        self._codebooks = torch.arange(num_codebooks, device=device)

    def advance(self) -> None:
        """`frames` becomes the next ones. Nothing here may ask for a value: the host would wait for
        the device."""
        self._number.add_(1)
        codes = self.frames.where(self.frames < self._tokens.num_codes, -1)
        self._recent.copy_(torch.cat([self._recent[:, 1:], codes[:, None]], dim=1))
        frames = self._sampler.draw(self._model_step(self.frames), self._recent, self._number)
        frames = torch.where(self._codebooks >= self._number, self._tokens.stream_bos, frames)
        # The first EOS of a row may come in any codebook; from the next frame on they follow one by
        # one.
        frames = torch.where(
            self._codebooks < self._ended[:, None], self._tokens.stream_eos, frames
        )
        self._ended.add_((frames == self._tokens.stream_eos).any(dim=-1) | (self._ended > 0))
        self.frames.copy_(frames)

    def as_step(self, cuda_graphs: bool) -> Callable[[], None]:
        """`advance`, for these rows and until some of them leave."""
        if not cuda_graphs:
            return self.advance
        return Captured(partial(compiled(_Speaking.advance), self), self.frames.device)

    def keep(self, rows: Tensor) -> None:
        """Let all rows but these go. rows: (R,) long."""
        self._model_step.keep(rows)
        self._sampler.keep(rows)
        self.frames, self._recent, self._ended = (
            self.frames[rows],
            self._recent[rows],
            self._ended[rows],
        )


def _sent(frames: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy of `frames` on its way to the host, and what waits until it is there."""
    copy = frames.to("cpu", non_blocking=True, copy=True)
    if frames.device.type != "cuda":
        return copy, lambda: None
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived.synchronize
