"""Attention of rows that stand one after the other in a single sequence, with what torch brings.

    query (1, heads, S, D), key and value (1, kv heads, S, D), where rows begin (`plugins.collator`)
        --torch's flash attention for sequences of any lengths--> (1, S, heads, D)

No row sees another, no mask of S x S is made, and a GPU is asked nothing. The kernel takes half
precision on NVIDIA's Ampere or later, and no dropout. Elsewhere (a CPU, fp32, an older card) rows
go through sdpa one by one: the same numbers, and a launch per row. A batch that is not packed goes
through sdpa, with transformers' masks.

transformers knows it as `varlen`: a name with "flash" in it means the flash-attn package there.
In MS-SWIFT its name is `flash_attn` (`plugins.model_registration`)."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "varlen"
FLASH_ATTENTION = "flash_attn"
_CAUSAL = (-1, 0)  # a window: all positions before, none after
_AMPERE = (8, 0)
# torch 2.11 takes fewer heads of keys than of queries without being asked to.
_OPTIONS: dict[str, Any] = {"window_size": _CAUSAL}
if "enable_gqa" in inspect.signature(varlen_attn).parameters:
    _OPTIONS["enable_gqa"] = True


def register() -> None:
    """Idempotent."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _mask)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. Without `cu_seq_lens_q`: sdpa."""
    if cu_seq_lens_q is None or max_length_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    assert attention_mask is None, "nothing is padding in a pack"
    # Queries may have been rotated in fp32. Autocast would cast for sdpa, but not for the kernel.
    dtype, device_type = value.dtype, value.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    rows = (query[0].to(dtype), key[0].to(dtype), value[0].to(dtype))
    if _takes(rows[0]) and not dropout:
        attended = _at_once(*rows, cu_seq_lens_q, max_length_q, scaling)
    else:
        attended = _one_by_one(*rows, cu_seq_lens_q, scale=scaling, dropout_p=dropout)
    return attended[None], None


def _takes(query: Tensor) -> bool:
    """Whether torch's kernel does."""
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return is_half and query.is_cuda and torch.cuda.get_device_capability(query.device) >= _AMPERE


def _at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
) -> Tensor:
    """(heads, S, D) -> (S, heads, D)."""
    states = (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
    attended = varlen_attn(*states, starts, starts, longest, longest, scale=scaling, **_OPTIONS)
    assert isinstance(attended, Tensor), "only with return_aux are there two"
    return attended


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, **options: Any
) -> Tensor:
    """(heads, S, D) -> (S, heads, D). Waits for the device."""
    attended = []
    for start, end in pairwise(starts.tolist()):
        row = (query[None, :, start:end], key[None, :, start:end], value[None, :, start:end])
        attended.append(
            scaled_dot_product_attention(*row, is_causal=True, enable_gqa=True, **options)
        )
    return torch.cat(attended, dim=2)[0].transpose(0, 1)


def _mask(
    *, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """sdpa's, and none for a pack: transformers finds its rows by their positions, and would draw
    S x S of them."""
    if attention_mask is None and q_length == kv_length:
        return None  # causal
    return sdpa_mask(
        q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs
    )
