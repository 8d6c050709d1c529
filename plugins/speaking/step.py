"""Delayed frames (R, K) -> logits of the next ones (R, K, C): one position of audio through the
model.

After <|audio_out_bos|> every position is a frame, so only the audio half of each layer works here:
no text embedding, no text norm, no text FFN, no text head, no placeholder masks. The maths is the
native layer's (its own modules are called, LoRA and quantised ones too); what differs is what
surrounds it. Keys and values lie in tensors of their final size, written in place, and the step
counts in a tensor: nothing here asks the device for a value, and every call does the same work on
the same addresses. This file knows neither sampling nor the delay pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

# Weights of a matrix that no cache next to a core holds: reading them is all the time it takes.
_FROM_MEMORY = 2**19
# Asked for in a compiled step, it would break the graph.
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class AudioStep:
    """The model from the end of a batch's prompts on.

    cache: of the prompts, left-padded, after a forward pass; it is taken over. mask (B, S): their
    attention mask. num_steps: calls to come, at most. whole: attend to the whole cache behind a
    mask, so that all calls are alike (to be compiled, to be captured), and not just to what is
    filled."""

    def __init__(
        self, model: Any, cache: DynamicCache, mask: Tensor, num_steps: int, *, whole: bool
    ) -> None:
        self._model = model
        self._num_filled = mask.shape[1]
        self._whole = whole
        self.keys, self.values = [], []
        # Zeros, not what was there: a masked NaN would still spoil the sum.
        room = (0, 0, 0, num_steps)
        layers: Any = cache.layers
        for layer in layers:
            self.keys.append(F.pad(layer.keys, room))
            self.values.append(F.pad(layer.values, room))
            layer.keys = layer.values = None  # freed at once, not after the last layer
        self._called = torch.zeros(1, dtype=torch.long, device=mask.device)
        self._is_padded = bool((mask == 0).any())
        self._places = torch.arange(mask.shape[1] + num_steps, device=mask.device)
        allowed = F.pad(mask.bool(), (0, num_steps), value=True)
        self._allowed = allowed[:, None, None]  # (R, 1, 1, S + steps)
        positions = mask.sum(dim=-1, keepdim=True) + torch.arange(num_steps, device=mask.device)
        self._cos, self._sin = model.model.rotary_emb(self.keys[0], positions)  # (R, steps, D)

    @property
    def num_bytes(self) -> int:
        """Of the cache: 2 x layers x rows x key heads x (S + steps) x D numbers."""
        return sum(cached.nbytes for cached in (*self.keys, *self.values))

    def keep(self, rows: Tensor) -> None:
        """Let all rows but these go, with their memory. rows: (R,) long."""
        for cached in (self.keys, self.values):
            for i, tensor in enumerate(cached):
                cached[i] = tensor[rows.to(tensor.device)]
        self._allowed = self._allowed[rows]
        self._cos, self._sin = self._cos[rows], self._sin[rows]

    def __call__(self, frames: Tensor) -> Tensor:
        base = self._model.model
        num_prompt = len(self._places) - self._cos.shape[1]
        place = self._called + num_prompt
        cos = self._cos.index_select(1, self._called)[:, :, None]  # (R, 1, 1, D)
        sin = self._sin.index_select(1, self._called)[:, :, None]
        allowed, end = self._attended(place)
        hidden = base.embed_audio_tokens(frames)  # (R, H)
        for layer, keys, values in zip(base.layers, self.keys, self.values, strict=True):
            if keys.device != hidden.device:  # layers spread over several GPUs
                hidden, cos, sin, place = (x.to(keys.device) for x in (hidden, cos, sin, place))
                if allowed is not None:
                    allowed = allowed.to(keys.device)
            attention = layer.self_attn
            normed = layer.audio_input_layernorm(hidden)
            # Queries that share a key head stand beside each other, as if they were positions.
            heads = (len(hidden), keys.shape[1], -1, keys.shape[3])  # (R, KV, heads / KV, D)
            query = linear(attention.q_proj, normed).view(heads)
            key = linear(attention.k_proj, normed).view(heads)
            value = linear(attention.v_proj, normed).view(heads)
            keys.index_copy_(2, place, _rotated(key, cos, sin))
            values.index_copy_(2, place, value)
            heard = F.scaled_dot_product_attention(
                _rotated(query, cos, sin),
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=allowed,
                scale=attention.scaling,
            )
            hidden = hidden + linear(attention.o_proj, heard.flatten(1))
            hidden = hidden + _audio_mlp(layer, hidden)
        self._called.add_(1)
        config = self._model.config
        logits = linear(self._model.audio_lm_head, base.norm(hidden)).float()
        return logits.unflatten(-1, (config.num_codebooks, config.codebook_size)).to(frames.device)

    def _attended(self, place: Tensor) -> tuple[Tensor | None, int]:
        """The mask (R, 1, 1, end) or None, and where it ends."""
        if self._whole:
            return self._allowed & (self._places <= place), len(self._places)
        self._num_filled += 1
        if not self._is_padded:
            return None, self._num_filled
        return self._allowed[..., : self._num_filled], self._num_filled


def _audio_mlp(layer: Any, hidden: Tensor) -> Tensor:
    mlp = layer.audio_mlp
    normed = layer.audio_post_attention_layernorm(hidden)
    gated = mlp.act_fn(linear(mlp.gate_proj, normed)) * linear(mlp.up_proj, normed)
    return linear(mlp.down_proj, gated)


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
