"""A step over tensors that stay where they are -> the same step, compiled, and on a GPU replayed as
one graph.

Speaking one frame is a thousand small kernels; a GPU of today does them faster than Python can ask
for them. Compiled, they are fewer; captured in a CUDA graph, Python asks once. This file knows
nothing of what is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile`, once per process: for the shapes of its first call, then for all (sizes
    become variables).

    Not `mode="reduce-overhead"`: its graphs want tensors that live as long as the process, and a
    cache of keys and values for every size of batch would stay in memory."""
    return torch.compile(function)


class Captured:
    """Calls `step` once as it is, which compiles it and warms it up; then records it, and from
    there on replays.

    step: works on tensors in place, the same ones with each call, and never waits for the device.
    On any other device than a GPU all calls are plain calls."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step = step
        self._on_gpu = device.type == "cuda"
        self._is_warm = False
        self._graph: Any = None

    def __call__(self) -> None:
        if not self._on_gpu:
            self._step()
        elif not self._is_warm:
            self._warm_up()
        else:
            if self._graph is None:
                self._record()
            self._graph.replay()

    def _record(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Notes the kernels and runs none of them: the replay does this call's work.
        with torch.cuda.graph(self._graph):
            self._step()

    def _warm_up(self) -> None:
        # A call in full, on a stream of its own: PyTorch's documentation asks for it before a
        # capture, which must meet neither the compiler nor a library that still allocates.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self._is_warm = True
