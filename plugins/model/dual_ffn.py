"""DualFFN layers that look up once per batch which rows are text and which are audio.

In: what the body is called with. Out: the hidden states of transformers' own layers, and zeros at
padding. Those layers find the rows again each time, eight times with boolean masks that make a GPU
wait for the CPU, and compute padding as text. Here a layer takes its rows out of the batch, text
before audio, works on slices of them, and puts them back; only attention itself sees the batch as
it lies.

That padding holds zeros changes nothing else: attention masks it as keys, so it reaches neither
another row nor a loss. Padding on the right, as in training, needs no mask for that, since causal
attention does not look there: sdpa gets none, and takes its fast causal kernel.

Norms stay the native ones: torch's fused `rms_norm` is the same in fp32, but in bf16 rounds once
where they round twice, which changes a quarter of all numbers."""

from __future__ import annotations

import inspect
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import __version__ as TRANSFORMERS
from transformers.models.higgs_audio_v2 import modeling_higgs_audio_v2 as native

from plugins.files.installation import TESTED_TRANSFORMERS
from plugins.model.rows import put, take

logger = logging.getLogger(__name__)

# What keys and values of earlier positions are called: transformers 5.24 renamed the argument, and
# warns of the old name.
CACHE = (
    "cache"
    if "cache" in inspect.signature(native.HiggsAudioV2Model.forward).parameters
    else "past_key_values"
)
# The shape of a mask that the layers pass over: transformers hands on what has four dimensions.
_NO_MASK = (0, 1, 1, 1)


class Routes(NamedTuple):
    """The R rows of a batch that are no padding. A tuple: accelerate moves its tensors to the
    device of each layer."""

    rows: Tensor  # (R,): where they lie in (B * S,), those of text before those of audio
    num_text: int
    num_audio: int
    shape: tuple[int, int]  # B, S
    is_right_padded: bool  # a mask (B, S) says so: nothing real stands behind padding

    @classmethod
    def of(cls, is_audio: Tensor, attention_mask: Tensor | None) -> Routes:
        """is_audio (B, S) bool. attention_mask: 0 at padding if it is (B, S); by any other, as a
        cache needs, no position counts as padding. Waits for the device once."""
        kind = is_audio.flatten().long()  # 0 text, 1 audio, 2 padding
        is_told, behind_padding = False, torch.zeros_like(is_audio[:, 1:])
        # A cache's mask is longer than the batch, and says nothing about padding in it.
        if attention_mask is not None and attention_mask.shape == is_audio.shape:
            is_told, is_padding = True, attention_mask.eq(0)
            kind = kind.masked_fill(is_padding.flatten(), 2)
            behind_padding = is_padding[:, :-1] & ~is_padding[:, 1:]
        # All counts in one transfer: each makes the CPU wait for the device.
        counts = torch.stack([(kind == 0).sum(), (kind == 1).sum(), behind_padding.sum()])
        num_text, num_audio, num_behind = counts.tolist()
        # Stable: equal batches give equal orders of rows, and so equal sums.
        rows = kind.argsort(stable=True)[: num_text + num_audio]
        shape = (is_audio.shape[0], is_audio.shape[1])
        return cls(rows, num_text, num_audio, shape, is_told and num_behind == 0)

    def take(self, batch: Tensor) -> Tensor:
        """(B, S, D) -> (R, D)."""
        return take(batch.flatten(0, 1), self.rows)

    def put(self, rows: Tensor) -> Tensor:
        """(R, D) -> (B, S, D)."""
        return put(rows, self.rows, self.shape[0] * self.shape[1]).unflatten(0, self.shape)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) -> text and audio; one of them may have no rows."""
        text, audio = rows.split([self.num_text, self.num_audio])
        return text, audio


class HiggsAudioV2Attention(native.HiggsAudioV2Attention):
    """Its base with projections that take rows."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        *,
        routes: Routes | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """(R, H) -> (R, H) and the weights of attention, if the backend returns any. Without
        `routes`: the base. attention_mask: `_NO_MASK` for none."""
        if routes is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        if attention_mask is not None and attention_mask.shape == _NO_MASK:
            attention_mask = None
        cache = kwargs.pop(CACHE, None)

        def heads(project: Any) -> Tensor:  # (R, H) -> (B, num_heads, S, head_dim)
            projected = routes.put(project(hidden_states))
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        # Attention sees the batch as it lies: positions count here, and text looks at audio.
        query, key, value = heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        query, key = native.apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = native.ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, native.eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(routes.take(attended.flatten(2))), weights


class HiggsAudioV2DecoderLayer(native.HiggsAudioV2DecoderLayer):
    """Same name as its base: accelerate and FSDP2 find what they wrap by the names of classes."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        *,
        routes: Routes | None = None,
        audio_token_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, S, H) -> (B, S, H). Without `routes`, as in a step of decoding, where every row is
        audio: the base."""
        if routes is None:
            return super().forward(hidden_states, audio_token_mask=audio_token_mask, **kwargs)
        rows = routes.take(hidden_states)
        # Every module is called, with or without rows: a rank that skips one leaves the others
        # waiting for it.
        text, audio = routes.split(rows)
        normed = torch.cat([self.input_layernorm(text), self.audio_input_layernorm(audio)])
        attended, _ = self.self_attn(hidden_states=normed, routes=routes, **kwargs)
        rows = rows + attended
        text, audio = routes.split(rows)
        text = self.mlp(self.post_attention_layernorm(text))
        audio = self.audio_mlp(self.audio_post_attention_layernorm(audio))
        rows = rows + torch.cat([text, audio])
        # Whatever autocast made of them: the next layer gets the dtype that this one got.
        return routes.put(rows.to(hidden_states.dtype))


_CLASSES: dict[type, type] = {
    native.HiggsAudioV2DecoderLayer: HiggsAudioV2DecoderLayer,
    native.HiggsAudioV2Attention: HiggsAudioV2Attention,
}


def use_index_once_layers(model: native.HiggsAudioV2ForConditionalGeneration) -> None:
    """Let the layers of `model` share one look-up per forward. Parameters and their names stay as
    they are.

    Before anything wraps the layers: peft may come later, but accelerate's dispatch to devices
    keeps the forward that it finds. Idempotent. With an untested transformers it warns and leaves
    the native layers."""
    if not TESTED_TRANSFORMERS.contains(TRANSFORMERS, prereleases=True):
        logger.warning(
            "transformers' own layers are used: ours are untested with %s (need %s)",
            TRANSFORMERS,
            TESTED_TRANSFORMERS,
        )
        return
    body: Any = model.model
    native_layers = [layer for layer in body.layers if type(layer) in _CLASSES]
    if not native_layers:
        return  # done before: a second hook would look up twice
    for module in body.layers.modules():
        # The class alone: parameters, hooks and names stay, and nothing is copied.
        module.__class__ = _CLASSES.get(type(module), type(module))
    body.register_forward_pre_hook(_look_up, with_kwargs=True)


def _look_up(
    body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Without token ids (by keyword) nothing is looked up, and the layers do as their bases do."""
    input_ids = kwargs.get("input_ids")
    if input_ids is None:
        return None
    is_audio = body.get_placeholder_mask(input_ids, None, None)
    mask = kwargs.get("attention_mask")
    routes = Routes.of(is_audio, mask)
    is_cached = kwargs.get(CACHE) is not None or bool(kwargs.get("use_cache"))
    is_sdpa = body.config._attn_implementation == "sdpa"
    if is_sdpa and routes.is_right_padded and not is_cached:
        # `None` would do as well, but then transformers asks the device whether rows are packed.
        mask = torch.empty(_NO_MASK, device=input_ids.device)
    return args, {**kwargs, "attention_mask": mask, "routes": routes}
