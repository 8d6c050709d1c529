"""What makes a GPU and the CPU wait for each other, counted on a CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import bool as torch_bool
from torch.utils._python_dispatch import TorchDispatchMode

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WAITING = {
    "nonzero",
    "masked_select",
    "_local_scalar_dense",  # `item`, `bool`, `float`, and each number of `tolist`
    "masked_scatter",
    "masked_scatter_backward",
}


class Waits(TorchDispatchMode):
    """Counts operators for which they wait, because the result's size depends on values; and how
    often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        self.operators[name] += 1
        if name in INDEXING:
            dtypes = {getattr(index, "dtype", None) for index in args[1]}
            self.counts["boolean mask"] += torch_bool in dtypes
        elif name in WAITING:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))
