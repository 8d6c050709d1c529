"""Flash attention for a CPU, written out: the two functions of the package, under everything that
transformers builds around them, and torch's own, under ours.

Both need CUDA. What is ours is what reaches them: where each sequence begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as glue

from plugins.model import packed_attention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """q (B, S, heads, D), k and v (B, S, kv heads, D) -> (B, S, heads, D)."""
    states = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=causal,
        scale=softmax_scale,
        enable_gqa=True,
    )
    return states.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """q, k, v (sum of S, heads, D), each sequence between two entries of cu_seqlens, by itself."""
    # The CUDA function takes no other type, and would read past the end.
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert cu_seqlens_q.equal(cu_seqlens_k)
    sequences = []
    for start, end in itertools.pairwise(cu_seqlens_q.tolist()):
        rows = (q[None, start:end], k[None, start:end], v[None, start:end])
        sequences.append(flash_attn_func(*rows, softmax_scale=softmax_scale, causal=causal))
    return torch.cat(sequences, dim=1)[0]


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside, `attn_implementation="flash_attention_2"` runs through transformers' own code down to
    these functions."""

    def imports(*_: Any, **__: Any) -> tuple[Any, ...]:
        return flash_attn_func, flash_attn_varlen_func, None, glue._pad_input, glue._unpad_input

    matrix = glue.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glue, "_lazy_imports", imports)
        patch.setattr(glue, "_loaded_implementation", None)
        patch.setitem(matrix, "general_availability_check", lambda: True)
        patch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
        yield


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """As `flash_attn_varlen_func`; causal by its window."""
    assert window_size in {(-1, -1), (-1, 0)}
    assert enable_gqa or query.shape == key.shape
    lengths = (cu_seq_q, cu_seq_k, max_q, max_k)
    is_causal = window_size == (-1, 0)
    return flash_attn_varlen_func(
        query, key, value, *lengths, softmax_scale=scale, causal=is_causal
    )


@contextmanager
def torchs_kernel() -> Iterator[None]:
    """Inside, `attn_implementation="varlen"` takes the way of a GPU, down to the function above."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "_takes", lambda query: True)
        patch.setattr(packed_attention, "varlen_attn", varlen_attn)
        yield
