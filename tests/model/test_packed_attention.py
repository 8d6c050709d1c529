"""Rows in one sequence through torch's own attention: as each alone, at once or one by one, and
what reaches the kernel of a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import flash_attention
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from plugins.model import packed_attention

LENGTHS = (5, 1, 9, 130)
SCALING = 0.3
HEADS, KV_HEADS, SIZE = 6, 2, 8


class Module(nn.Module):
    """What an attention is asked for."""

    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True


def states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value of a pack, as the projections lie: heads behind positions."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for heads in (HEADS, KV_HEADS, KV_HEADS):
        flat = torch.randn(1, sum(LENGTHS), heads, SIZE, generator=generator, dtype=dtype)
        tensors.append(flat.transpose(1, 2).requires_grad_())
    return tensors


def boundaries(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    names = ("cu_seq_lens_q", "cu_seq_lens_k")
    return dict.fromkeys(names, starts) | {"max_length_q": max(lengths)}


def attend(inputs: list[Tensor], mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    attended, _ = packed_attention.packed_attention(
        Module(), *inputs, mask, scaling=SCALING, **kwargs
    )
    return attended


def with_gradients(attended: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, attended.numel()).view(attended.shape)
    return [attended, *torch.autograd.grad((attended * weights).sum(), inputs)]


@pytest.mark.parametrize("stand_in", [nullcontext, flash_attention.torchs_kernel])
def test_a_pack_is_masked_attention(stand_in: Any) -> None:
    """Against one mask of S x S, which is what is not made."""
    row = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    together = (row[:, None] == row) & torch.ones(len(row), len(row), dtype=torch.bool).tril()
    inputs = states()
    expected = scaled_dot_product_attention(
        *inputs, attn_mask=together, scale=SCALING, enable_gqa=True
    )
    with stand_in():
        attended = attend(inputs, **boundaries())
        got = with_gradients(attended, inputs)
    for tensor, exact in zip(got, with_gradients(expected.transpose(1, 2), inputs), strict=True):
        torch.testing.assert_close(tensor, exact, rtol=0, atol=1e-5)


def test_no_row_sees_another() -> None:
    """To the bit: what another row holds is not read."""
    inputs = states()
    before = attend(inputs, **boundaries())
    others = [tensor.detach().clone() for tensor in inputs]
    for tensor in others:
        tensor[:, :, : LENGTHS[0]] = torch.nan
    after = attend(others, **boundaries())
    assert after[:, : LENGTHS[0]].isnan().all()
    assert torch.equal(after[:, LENGTHS[0] :], before[:, LENGTHS[0] :])


def test_nothing_of_the_square_of_a_pack_is_made() -> None:
    """transformers' own way to a pack on sdpa is a mask of S x S."""
    lengths = (100,) * 20
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            results = func(*args, **(kwargs or {}))
            for result in results if isinstance(results, tuple) else (results,):
                if isinstance(result, Tensor):
                    largest = max(largest, result.numel())
            return results

    inputs = [torch.zeros(1, heads, sum(lengths), SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    ids = torch.arange(100).repeat(len(lengths))[None]
    with Sizes():
        mask = mask_of(torch.zeros(1, sum(lengths), 4), None, ids)
        attend(inputs, mask, **boundaries(lengths))
    assert mask is None
    assert largest <= inputs[0].numel()


def mask_of(embeddings: Tensor, attention_mask: Tensor | None, ids: Tensor | None) -> Any:
    """As the body of a model asks for it."""
    config = PreTrainedConfig(attn_implementation=packed_attention.NAME)
    packed_attention.register()
    return create_causal_mask(config, embeddings, attention_mask, None, ids)


def test_padded_batches_are_sdpas() -> None:
    """Prompts are padded on the left, and samples are spoken during a training with packs."""
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    mask = mask_of(torch.zeros(2, 5, 4), real, None)
    assert mask.shape == (2, 1, 5, 5)
    assert not mask[0, 0, 2:, :2].any()
    assert mask[1, 0].equal(torch.ones(5, 5, dtype=torch.bool).tril())
    inputs = [torch.randn(2, heads, 5, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    expected = scaled_dot_product_attention(*inputs, attn_mask=mask, scale=SCALING, enable_gqa=True)
    torch.testing.assert_close(attend(inputs, mask), expected.transpose(1, 2))


# On a GPU.


@pytest.mark.parametrize(
    ("dtype", "capability", "expected"),
    [
        (torch.bfloat16, (9, 0), True),
        (torch.float16, (8, 6), True),
        (torch.float32, (9, 0), False),
        (torch.float16, (7, 5), False),  # a T4
    ],
)
def test_who_takes_the_kernel(
    dtype: torch.dtype,
    capability: tuple[int, int],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query: Any = SimpleNamespace(dtype=dtype, is_cuda=True, device="cuda:0")
    assert packed_attention._takes(query) is expected
    assert not packed_attention._takes(torch.zeros(1, dtype=dtype))


def test_the_kernel_has_no_dropout() -> None:
    inputs = states()
    with flash_attention.torchs_kernel(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "varlen_attn", lambda *_, **__: pytest.fail("taken"))
        attended = attend(inputs, dropout=0.5, **boundaries())
    assert not torch.equal(attended, attend(inputs, **boundaries()))


def test_torch_takes_what_the_kernel_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its real signature, shapes and backward pass, without its numbers: a CPU has none."""
    monkeypatch.setattr(packed_attention, "_takes", lambda query: True)
    with FakeTensorMode():
        inputs = states(torch.bfloat16)
        attended = attend(inputs, **boundaries())
        attended.float().sum().backward()
    assert attended.shape == (1, sum(LENGTHS), HEADS, SIZE)
    assert attended.dtype == torch.bfloat16
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape


def test_autocast_reaches_the_kernel() -> None:
    """Queries are rotated in fp32 where values are already bf16; sdpa casts both, the kernel
    neither."""
    query, key, value = states()
    seen = []

    def note(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.extend([query.dtype, key.dtype, value.dtype])
        return flash_attention.varlen_attn(query, key, value, *rest, **options)

    with flash_attention.torchs_kernel(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "varlen_attn", note)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attended = attend([query, key, value.bfloat16()], **boundaries())
    assert seen == [torch.bfloat16] * 3
    assert attended.dtype == torch.bfloat16
