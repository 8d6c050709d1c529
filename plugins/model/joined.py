"""Matrices that read the same activations -> one matrix behind another in memory, so that one
kernel reads them all: queries, keys and values; gate and up of the audio FFN.

The modules keep their weights, as parts of the whole: nothing is copied twice, and whatever loads,
saves or changes them does as before. What moves them to other places parts them, and then they are
read one by one again. This file knows nothing of who multiplies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def groups(layer: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Of a decoder layer: (q, k, v), (gate, up)."""
    attention, mlp = layer.self_attn, layer.audio_mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return projections, (mlp.gate_proj, mlp.up_proj)


@torch.no_grad()
def join(model: Any) -> None:
    """For a model that is not trained: an optimizer wants parameters of their own memory. Layers
    with adapters or quantised weights stay as they are."""
    for modules in _groups_of_all(model):
        if not all(map(_is_plain, modules)):
            continue
        whole = torch.cat([module.weight for module in modules])
        parts = whole.split([module.out_features for module in modules])
        for module, part in zip(modules, parts, strict=True):
            module.weight.data = part


def joined(modules: Sequence[Any]) -> Tensor | None:
    """Their weights as one matrix (outputs of all, H), if they lie so."""
    if not all(map(_is_plain, modules)):
        return None
    first = modules[0].weight
    storage, end = first.untyped_storage().data_ptr(), first.data_ptr()
    for module in modules:
        weight = module.weight
        is_next = weight.is_contiguous() and weight.data_ptr() == end
        if not is_next or weight.untyped_storage().data_ptr() != storage:
            return None
        end += weight.nbytes
    num_outputs = sum(module.out_features for module in modules)
    return first.detach().as_strided((num_outputs, first.shape[1]), first.stride())


def _groups_of_all(model: Any) -> Iterator[tuple[Any, ...]]:
    for layer in model.model.layers:
        yield from groups(layer)


def _is_plain(module: Any) -> bool:
    return type(module) is nn.Linear and module.bias is None
