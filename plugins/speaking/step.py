"""Delayed frames (R, K) -> logits of the next ones (R, K, C): one position of audio through the
model.

After <|audio_out_bos|> every position is a frame, so only the audio half of each layer works here:
no text embedding, no text norm, no text FFN, no text head, no placeholder masks. The maths is the
native layer's (its own modules are called, LoRA and quantised ones too); what differs is what
surrounds it. Keys and values lie in tensors of their final size, written in place, and the step
counts in a tensor: nothing here asks the device for a value, and calls of one size do the same work
on the same addresses. This file knows neither sampling nor the delay pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from plugins.model.joined import groups, joined

# Weights of a matrix that no cache next to a core holds: reading them is all the time it takes.
_FROM_MEMORY = 2**19
# Asked for in a compiled step, it would break the graph.
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def bytes_per_position(model: Any) -> int:
    """Of the cache: keys and values of one row at one position, in all layers."""
    config = model.config
    num_numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return int(num_numbers * model.dtype.itemsize)


class AudioStep:
    """The model from the end of a batch's prompts on.

    num_rows, length: there is room for so many rows, each of so many positions of prompt and
    answer. is_masked: attend behind a mask always, and not just where a row is padded: calls then
    may look beyond what is filled, and are alike. layer: `audio_layer`, or the same compiled."""

    def __init__(
        self,
        model: Any,
        num_rows: int,
        length: int,
        *,
        is_masked: bool = False,
        layer: Callable[..., Tensor] | None = None,
    ) -> None:
        device = model.device
        self._model = model
        self._always_masked = self._is_masked = is_masked
        self._layer = layer or audio_layer
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        # Where the next frame goes and, since padding counts for nothing, its position in its row.
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._positions = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._allowed = torch.zeros(num_rows, 1, 1, length, dtype=torch.bool, device=device)
        self._joined: list[list[Tensor | None]] = []  # of each layer: qkv, gate and up
        self._turns: tuple[Tensor, Tensor] | None = None  # cosines, sines (S, 1, 1, D)

    @property
    def num_bytes(self) -> int:
        """Of the cache: 2 x layers x rows x key heads x positions x D numbers."""
        return sum(cached.nbytes for cached in (*self.keys, *self.values))

    def begin(self, cache: DynamicCache, mask: Tensor) -> None:
        """Go on from these prompts. cache: left-padded, after a forward pass; it is taken over.
        mask (B, S): their attention mask."""
        self._is_masked = self._always_masked or bool((mask == 0).any())
        self._positions.zero_()
        self._allowed.zero_()
        self.join(cache, mask, 0, mask.shape[1])

    def join(self, cache: DynamicCache, mask: Tensor, row: int, place: int) -> None:
        """These prompts, as of `begin`, become the rows from `row` on, beside those that speak.
        They end before `place`, where the next frame of all rows goes."""
        rows, places = slice(row, row + len(mask)), slice(place - mask.shape[1], place)
        layers: Any = cache.layers
        for i, layer in enumerate(layers):
            for room, name in ((self.keys, "keys"), (self.values, "values")):
                filled = getattr(layer, name)
                if i == len(room):
                    size = (len(self._positions), filled.shape[1], self._allowed.shape[-1])
                    room.append(filled.new_zeros(*size, filled.shape[-1]))
                else:
                    # Zeros, not what was there: a masked NaN would still spoil the sum.
                    room[i][rows, :, : places.start] = 0
                    room[i][rows, :, place:] = 0
                room[i][rows, :, places] = filled
                setattr(layer, name, None)  # freed at once, not after the last layer
        if self._turns is None:
            every = torch.arange(self._allowed.shape[-1], device=mask.device)
            cos, sin = self._model.model.rotary_emb(self.keys[0], every[None])
            self._turns = cos[0, :, None, None], sin[0, :, None, None]
        # Anew, since a model may move between two speeches.
        self._joined.clear()
        for layer in self._model.model.layers:
            self._joined.append([joined(modules) for modules in groups(layer)])
        self._place.fill_(place)
        self._positions[rows] = mask.sum(dim=-1)
        self._allowed[rows] = False
        self._allowed[rows, 0, 0, places] = mask.bool()

    def shift(self, num_rows: int, by: int) -> None:
        """All that the first rows remember moves `by` places to the right, or to the left over
        places that are none of theirs. The others speak no more."""
        # A step of a power of two of rows computes them on: not beyond the last position.
        self._positions[num_rows:] = 0
        if by == 0:
            return
        for tensor in (*self.keys, *self.values):
            tensor[:num_rows] = tensor[:num_rows].roll(by, dims=2)
        self._allowed[:num_rows] = self._allowed[:num_rows].roll(by, dims=3)
        self._place.add_(by)

    def keep(self, kept: Callable[[Tensor], Tensor]) -> None:
        """Let rows go: `kept` (R, ...) -> what stays of it."""
        for room in (self.keys, self.values):
            for i, tensor in enumerate(room):
                room[i] = kept(tensor)
        self._positions, self._allowed = kept(self._positions), kept(self._allowed)

    def __call__(self, frames: Tensor, end: int) -> Tensor:
        """Those of the first rows; they attend to positions before `end`, which is behind the
        frame's own."""
        base, num_rows = self._model.model, len(frames)
        positions, place = first(self._positions, num_rows), self._place
        assert self._turns is not None, "it has not begun"
        cos, sin = (turn.index_select(0, positions) for turn in self._turns)  # (R, 1, 1, D)
        allowed = None
        if self._is_masked:
            self._allowed.index_fill_(3, place, True)
            allowed = first(self._allowed, num_rows)[..., :end]
        hidden = base.embed_audio_tokens(frames)  # (R, H)
        layers = zip(base.layers, self.keys, self.values, self._joined, strict=True)
        for layer, keys, values, matrices in layers:
            if keys.device != hidden.device:  # layers spread over several GPUs
                hidden, cos, sin, place = (x.to(keys.device) for x in (hidden, cos, sin, place))
                if allowed is not None:
                    allowed = allowed.to(keys.device)
            keys, values = (first(cached, num_rows)[:, :, :end] for cached in (keys, values))
            hidden = self._layer(layer, hidden, cos, sin, place, keys, values, allowed, *matrices)
        self._place.add_(1)
        self._positions.add_(1)
        config = self._model.config
        logits = linear(self._model.audio_lm_head, base.norm(hidden)).float()
        return logits.unflatten(-1, (config.num_codebooks, config.codebook_size)).to(frames.device)


def first(tensor: Tensor, num_rows: int) -> Tensor:
    """tensor[:num_rows], at no cost if these are all."""
    return tensor if len(tensor) == num_rows else tensor[:num_rows]


# Of the arguments below: dimensions of rows, and of positions.
VARYING = {1: (0,), 2: (0,), 3: (0,), 5: (0, 2), 6: (0, 2), 7: (0, 3)}


def audio_layer(
    layer: Any,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    place: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor | None,
    qkv: Tensor | None,
    gate_up: Tensor | None,
) -> Tensor:
    """hidden (R, H) -> (R, H). keys, values (R, KV, S, D): the cache, written at `place` (1,).
    allowed: the mask (R, 1, 1, S) or None. qkv, gate_up: joined matrices, or None
    (`plugins.model.joined`)."""
    attention = layer.self_attn
    normed = layer.audio_input_layernorm(hidden)
    # Queries that share a key head stand beside each other, as if they were positions.
    heads = (len(hidden), keys.shape[1], -1, keys.shape[3])  # (R, KV, heads / KV, D)
    modules = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (states.view(heads) for states in _linears(modules, qkv, normed))
    keys.index_copy_(2, place, _rotated(key, cos, sin))
    values.index_copy_(2, place, value)
    heard = F.scaled_dot_product_attention(
        _rotated(query, cos, sin), keys, values, attn_mask=allowed, scale=attention.scaling
    )
    hidden = hidden + linear(attention.o_proj, heard.flatten(1))
    mlp = layer.audio_mlp
    normed = layer.audio_post_attention_layernorm(hidden)
    gate, up = _linears((mlp.gate_proj, mlp.up_proj), gate_up, normed)
    return hidden + linear(mlp.down_proj, mlp.act_fn(gate) * up)


def _linears(modules: Sequence[Any], joined: Tensor | None, x: Tensor) -> Sequence[Tensor]:
    """`module(x)` of each, by one matrix if there is one."""
    if joined is None:
        return [linear(module, x) for module in modules]
    return F.linear(x, joined).split([module.out_features for module in modules], dim=-1)


def linear(module: Any, x: Tensor) -> Tensor:
    """`module(x)` for x (R, H), a few rows.

    torch multiplies fp32 on a CPU with MKL, which reads a large matrix of weights at 0.7 (one row)
    and 0.6 (four rows) of the speed of oneDNN, which inductor uses; small ones it starts faster
    (measured on an AMD EPYC with AVX-512)."""
    if (
        not torch.compiler.is_compiling()  # which chooses by itself
        and type(module) is nn.Linear
        and module.weight.numel() >= _FROM_MEMORY
        and x.device.type == "cpu"
        and x.dtype == module.weight.dtype == torch.float32
        and _HAS_ONEDNN
    ):
        return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "none", [], "")
    return module(x)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Entry i turns with entry i + D / 2, as in transformers' Llama; others pair neighbours.
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
