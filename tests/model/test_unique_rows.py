"""Rows picked out and put back: torch's own indexing, its gradients, and no addition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.waits import Waits

from plugins.model.rows import places_of, put, take, true_first


def test_places_of_several_masks() -> None:
    masks = [torch.rand(3, 5) < share for share in (0, 0.3, 1)] + [torch.zeros(2, 0) > 0]
    for mask, places in zip(masks, places_of(*masks), strict=True):
        assert places.tolist() == mask.flatten().nonzero().flatten().tolist()
        assert sorted(true_first(mask).tolist()) == list(range(mask.numel()))


def test_all_masks_share_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: transfers.append(len(tensor)) or tolist(tensor)
    )
    places_of(*(torch.rand(4) < 0.5 for _ in range(5)))
    assert transfers == [5]


@pytest.mark.parametrize("places", [[], [2], [3, 0, 2]])
def test_take_and_put_are_indexing(places: list[int]) -> None:
    where = torch.tensor(places, dtype=torch.long)
    batch = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    assert torch.equal(take(batch, where), batch[where])
    assert torch.equal(put(batch[where], where, 4)[where], batch[where])
    assert torch.autograd.gradcheck(lambda rows: take(rows, where), batch)
    if places:
        rows = batch[where].detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda rows: put(rows, where, 4), rows)


def test_no_gradient_is_added_up() -> None:
    """Additions by index are atomic on a GPU, or sorted: what is unique needs none."""
    where = torch.tensor([3, 0, 2])
    batch = torch.randn(4, 3, requires_grad=True)
    added: set[Any] = {"index_add", "index_add_", "index_put", "index_put_", "_index_put_impl_"}
    with Waits() as ours:
        put(take(batch, where), where, 4).sum().backward()
    assert not added & ours.operators.keys()
    with Waits() as plain:
        batch.index_select(0, where).sum().backward()
    assert added & plain.operators.keys()
