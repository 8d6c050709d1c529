"""What makes a GPU and the CPU wait for each other, counted on a CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WAITING = {
    "nonzero",
    "masked_select",
    "_local_scalar_dense",  # `item`, `bool`, `float`
    "masked_scatter",
    "masked_scatter_backward",
}


class Waits(TorchDispatchMode):
    """Counts operators for which they wait, as the result's size depends on values, and copies
    between devices (of fake tensors); and how often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()  # between devices, which do not wait

    def __enter__(self) -> Waits:
        tolist = torch.Tensor.tolist

        def counting(tensor: torch.Tensor) -> Any:
            self.counts["tolist"] += 1
            # On a CPU it reads number by number; from a GPU all come in one transfer.
            with _disable_current_modes():
                return tolist(tensor)

        self._patch = mock.patch.object(torch.Tensor, "tolist", counting)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        self.operators[name] += 1
        target = (kwargs or {}).get("device")
        if name == "_to_copy" and target is not None and target != args[0].device:
            is_free = kwargs.get("non_blocking") and target.type != "cpu"
            counts = self.copies if is_free else self.counts
            counts[f"to {target.type}"] += 1
        if name in INDEXING:
            dtypes = {getattr(index, "dtype", None) for index in args[1]}
            if torch.bool in dtypes:
                self.counts["boolean mask"] += 1
        elif name in WAITING:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))
