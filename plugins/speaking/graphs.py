"""Steps over tensors that stay where they are -> the same steps, compiled, and on a GPU recorded
once and replayed from then on.

Speaking one frame is a thousand small kernels; a GPU of today does them faster than Python can ask
for them. Compiled, they are fewer; recorded in a CUDA graph, Python asks once. This file knows
nothing of what is computed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Kinds of devices whose steps are recorded; on any other each call is a call.
RECORDING = {"cuda"}
# Versions of one function, for one row and for more, per set of adapters. Torch ends at 8.
_MAX_VERSIONS = 64


def compiled(
    function: Callable[..., Any], varying: Mapping[int, tuple[int, ...]]
) -> Callable[..., Any]:
    """`as_one_graph`, or, where there is no compiler or it fails, `function` itself and a line in
    the log."""
    if not _has_compiler():
        return function
    from torch._dynamo.exc import TorchDynamoException  # seconds

    fast = as_one_graph(function, varying)
    has_failed = False

    def call(*args: Any) -> Any:
        nonlocal has_failed
        if not has_failed:
            try:
                return fast(*args)
            # Before anything was computed: what is compiled raises nothing of this kind.
            except TorchDynamoException as error:
                has_failed = True
                reason = str(error).strip().partition("\n")[0]
                logger.warning(f"steps are not compiled: {type(error).__name__}: {reason}")
        return function(*args)

    return call


def as_one_graph(
    function: Callable[..., Any], varying: Mapping[int, tuple[int, ...]], **options: Any
) -> Callable[..., Any]:
    """`torch.compile` (which takes the options) as one graph; what would break it is an error.

    varying: for numbers of arguments, the dimensions whose sizes change from call to call: they are
    variables from the first call on. A size of 1 has a version of its own. Not `mode="reduce-
    overhead"`: its graphs want tensors that live as long as the process."""
    fast = torch.compile(function, fullgraph=True, **options)

    def call(*args: Any) -> Any:
        for place, dims in varying.items():
            tensor = args[place]
            for dim in dims:
                if isinstance(tensor, torch.Tensor) and tensor.shape[dim] > 1:
                    # "maybe": where a kernel wants a number, there are more versions.
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        with torch._dynamo.config.patch(recompile_limit=_MAX_VERSIONS):
            return fast(*args)

    return call


@cache
def _has_compiler() -> bool:
    """Whether kernels can be built: with Triton and a C compiler for a GPU, with that of C++ for a
    CPU."""
    names = ("CC", "cc", "gcc", "clang") if torch.cuda.is_available() else ("CXX", "c++", "g++")
    has_compiler = any(os.environ.get(name) or shutil.which(name) for name in names)
    if torch.cuda.is_available():
        has_compiler = has_compiler and find_spec("triton") is not None
    if not has_compiler:
        logger.warning("no compiler here (Triton and gcc, or g++): steps are not compiled")
    return has_compiler


class Recordings:
    """Steps by their keys. The first call of a key is a call, which compiles the step and warms it
    up; the second records it; from there on it is replayed.

    The tensors of a key stay where they are, and a step never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._records = device.type in RECORDING
        self._is_warm: set[Hashable] = set()
        self._replays: dict[Hashable, Callable[[], None]] = {}
        self._pool: Any = None

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        if not self._records:
            step()
        elif key in self._replays:
            self._replays[key]()
        elif key not in self._is_warm:
            warm_up(step)
            self._is_warm.add(key)
        else:
            replay = self._recorded(step)
            if self._records:
                self._replays[key] = replay
            replay()

    def _recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        # One pool for all: they run one after the other, and leave nothing there.
        if self._pool is None and torch.cuda.is_available():
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return record(step, self._pool)
        # Also of memory. Nothing was computed yet.
        except RuntimeError as error:
            self._records = False
            reason = str(error).strip().partition("\n")[0]
            logger.warning(f"steps are not recorded: {type(error).__name__}: {reason}")
            return step


def record(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    """The kernels of `step` as one graph. Notes them and runs none."""
    graph = torch.cuda.CUDAGraph()
    # A thread of its own: a data loader's pinning thread may call CUDA meanwhile, which in the
    # default mode ends the recording.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        step()
    return graph.replay


def warm_up(step: Callable[[], None]) -> None:
    """A call in full, on a stream of its own: PyTorch's documentation asks for it before a
    recording, which must meet neither the compiler nor a library that still allocates."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)


def can_be_recorded(model: Any) -> bool:
    """Whether speaking with `model` is to be faster so without being asked: on one GPU, in weights
    that torch itself multiplies."""
    devices = {parameter.device for parameter in model.parameters()}
    is_quantized = getattr(model, "is_quantized", False)
    return len(devices) == 1 and devices.pop().type in RECORDING and not is_quantized
