"""Prompts -> delayed frames, step by step: the loop that speaks. L2.

It does what transformers' `generate` does for this model, to the code (tests/test_decoding.py), and what that cannot:
rows with and without clips in one batch, a start and a random state of its own per row, rows that leave the batch when
they have ended, and frames as they come. The text head is never asked: after <|audio_out_bos|> only audio follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from plugins.sampling import Sampler, Sampling
from plugins.tokens import SpecialTokens


@torch.inference_mode()
def decode(
    model: Any, batch: dict[str, Tensor], tokens: SpecialTokens, samplings: Sequence[Sampling], max_steps: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """For each step the rows that still speak, as numbers in 0..B-1, and their delayed frames (R, K).

    batch: left-padded prompts that end in <|audio_out_bos|> (`plugins.collator`). A row's first frame is all stream
    BOS. It ends with a frame that is all stream EOS, or after `max_steps[row]` frames.
    """
    mask = batch["attention_mask"]
    device, num_codebooks = mask.device, tokens.num_codebooks
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    hidden = model.hidden_states(**batch, position_ids=positions, past_key_values=cache, use_cache=True)
    positions = positions[:, -1:]
    rows = list(range(len(mask)))
    samplers = [Sampler(sampling, device) for sampling in samplings]
    recent = torch.full((len(rows), max(s.ras_window for s in samplings) or 1, num_codebooks), -1, device=device)
    ended = torch.zeros(len(rows), dtype=torch.long, device=device)  # frames since the first stream EOS of a row
    codebooks = torch.arange(num_codebooks, device=device)
    for step in range(max(max_steps)):
        logits = model.audio_lm_head(hidden[:, -1]).float().unflatten(-1, (num_codebooks, tokens.codebook_size))
        drawn = zip(rows, logits, recent, strict=True)
        frames = torch.stack([samplers[row].draw(scores, last) for row, scores, last in drawn])
        frames = torch.where(codebooks >= step, tokens.stream_bos, frames)
        # The first EOS of a row may come in any codebook; from the next frame on they follow one by one.
        frames = torch.where(codebooks < ended[:, None], tokens.stream_eos, frames)
        yield rows, frames
        is_eos = frames == tokens.stream_eos
        ended += (is_eos.any(dim=-1) | (ended > 0)).long()
        goes_on = ~is_eos.all(dim=-1) & (torch.tensor([max_steps[row] for row in rows], device=device) > step + 1)
        kept = goes_on.nonzero().flatten()
        if not len(kept):
            return
        if len(kept) < len(rows):
            rows = [rows[i] for i in kept.tolist()]
            cache.batch_select_indices(kept)
            frames, recent, ended, mask, positions = (t[kept] for t in (frames, recent, ended, mask, positions))
        recent = torch.cat([recent[:, 1:], frames.where(frames < tokens.num_codes, -1)[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions + 1
        hidden = model.hidden_states(
            audio_input_ids=frames[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
