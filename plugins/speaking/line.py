"""A line while it is spoken: delayed frames (K,) one by one -> the codes (K, 1) that are final.

This file knows neither the model nor who listens."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.data.dialogue import Dialogue, EncodedSample
from plugins.data.tokens import SpecialTokens


class Line:
    """dialogue, sample: its prompt. max_steps: delayed frames that may follow it."""

    def __init__(
        self, dialogue: Dialogue, sample: EncodedSample, max_steps: int, tokens: SpecialTokens
    ) -> None:
        self.dialogue, self.sample, self.max_steps = dialogue, sample, max_steps
        self.delayed: list[Tensor] = []  # (K,) each
        self._tokens = tokens
        self._has_ended = False

    def push(self, frame: Tensor) -> Tensor | None:
        """The codes that the next delayed frame completes, if there are any."""
        self.delayed.append(frame)
        num_codebooks = self._tokens.num_codebooks
        # The first K steps complete no frame, and what the last step allowed completes is the first
        # frame that `Speaker.codes_of` cuts.
        if self._has_ended or not num_codebooks < len(self.delayed) < self.max_steps:
            return None
        # The codes of one frame lie on a diagonal: the last codebook's came just now.
        codes = torch.stack(self.delayed[-num_codebooks:]).diagonal()
        self._has_ended = bool((codes == self._tokens.stream_eos).any())
        return None if self._has_ended else in_range(codes[:, None], self._tokens)

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself: the last codebook ends K - 1 steps after the first, and only
        then has all been said."""
        return bool((self.delayed[-1] == self._tokens.stream_eos).all())


def in_range(codes: Tensor, tokens: SpecialTokens) -> Tensor:
    """A stray stream BOS, which is trained nowhere, becomes the last code, as in transformers' own
    processor."""
    return codes.clamp(max=tokens.num_codes - 1)
