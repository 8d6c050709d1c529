"""Attention that is shown where to look: some heads learn which word of the text is being said.

A small model finds the way from the sound to the text late, if at all; flite knows when each word
ends. The guide adds a loss on one head of some layers: at each position of audio its attention
should lie on the token of the word that the next frame says. Training only: the model stays what
it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import apply_rotary_pos_emb

from demo.recipes.base.samples import Sample
from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX

_LAYERS = (1, 2, 3)
_HEADER = 4  # tokens between a text and <|audio_out_bos|>: <|eot_id|> and the assistant's header


def targets(
    samples: Sequence[Sample], encoded: Sequence[EncodedSample], tokens: SpecialTokens
) -> Tensor:
    """(B, S) long: at a position of audio, that of the token which the next frame says; -100
    elsewhere."""
    width = max(len(row.input_ids) for row in encoded)
    places = torch.full((len(samples), width), IGNORE_INDEX)
    for i, (sample, row) in enumerate(zip(samples, encoded, strict=True)):
        ids = torch.tensor(row.input_ids)
        beginnings = (ids == tokens.audio_bos).nonzero()[:, 0].tolist()
        for turn, audio_bos in zip(sample.turns, beginnings, strict=True):
            said = torch.from_numpy(turn.tokens)
            end = audio_bos - _HEADER
            text = end - int(said[-1]) - 1
            around = ids[[text - 1, end]].tolist()
            assert around == [tokens.header_end, tokens.end_of_turn], f"not as told: {turn.text}"
            # The steps of delay after the last frame still finish what is said then.
            steps = torch.cat([said, said[-1:].expand(tokens.num_codebooks)])
            places[i, audio_bos + 1 : audio_bos + 1 + len(steps)] = text + steps
    return places


class Guide:
    """Watches the first head of some layers: set `places`, run the model, take `loss`."""

    def __init__(self, model: Any) -> None:
        self.places: Tensor | None = None
        self._losses: list[Tensor] = []
        self._looks: list[Tensor] = []
        for layer in _LAYERS:
            attention = model.model.layers[layer].self_attn
            attention.register_forward_pre_hook(self._watch, with_kwargs=True)

    def _watch(self, attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
        assert self.places is not None, "they are of one run of the model"
        rows, routes = kwargs["hidden_states"], kwargs["routes"]

        def head(projection: Any) -> Tensor:  # (R, H) -> (B, 1, S, D)
            return routes.put(rows @ projection.weight[: attention.head_dim].T).unsqueeze(1)

        query, key = apply_rotary_pos_emb(
            head(attention.q_proj), head(attention.k_proj), *kwargs["position_embeddings"]
        )
        scores = (query @ key.transpose(-1, -2))[:, 0].float() * attention.scaling  # (B, S, S)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        guided = self.places != IGNORE_INDEX
        scores, places = scores[guided], self.places[guided]
        self._losses.append(torch.nn.functional.cross_entropy(scores, places))
        self._looks.append((scores.argmax(-1) == places).float().mean())

    def loss(self) -> tuple[Tensor, float]:
        """Of the last run, the mean of the layers, and how often the last of them looks right."""
        loss, looks = torch.stack(self._losses).mean(), self._looks[-1].item()
        self._losses, self._looks, self.places = [], [], None
        return loss, looks
