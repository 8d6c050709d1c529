"""Rows picked out of a batch and put back, each at most once. Pure tensors.

    masks --places_of--> places (R,)        (N, D) --take--> (R, D) --put--> (N, D)

What occurs once need not be added up: the gradient of indexing is an addition for which a GPU takes
atomic operations, or sorts the places first. And whoever selects by a mask waits for the device, as
the size of the result is known only there; here all masks of a step share one wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def places_of(*masks: Tensor) -> list[Tensor]:
    """Where each mask (any shape) is true, (R,), counted from its first element, in order.

    Waits for the device once for all of them."""
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    places = []
    for mask, count in zip(masks, counts, strict=True):
        places.append(true_first(mask)[:count])
    return places


def true_first(mask: Tensor) -> Tensor:
    """All N places of `mask`, in order, those where it is true before the others. Waits for
    nothing."""
    return (~mask).flatten().byte().argsort(stable=True)


def take(batch: Tensor, places: Tensor) -> Tensor:
    """(N, D) -> (R, D). places (R,): each at most once."""
    return _Take.apply(batch, places)


def put(rows: Tensor, places: Tensor, num_rows: int) -> Tensor:
    """(R, D) -> (N, D), zeros elsewhere. places (R,): each at most once."""
    return _Put.apply(rows, places, num_rows)


class _Take(torch.autograd.Function):
    """The gradient of torch's own index_select is an index_add."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_rows = len(batch)
        return batch.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _into_zeros(grad, places, ctx.num_rows), None


class _Put(torch.autograd.Function):
    """torch's own index_copy keeps `rows` for its backward pass, which needs only their places."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(places)
        return _into_zeros(rows, places, num_rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def _into_zeros(rows: Tensor, places: Tensor, num_rows: int) -> Tensor:
    return rows.new_zeros(num_rows, *rows.shape[1:]).index_copy_(0, places, rows)
