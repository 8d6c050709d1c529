"""The order of things around a CUDA graph; there is no GPU here. What is compiled and recorded runs
in tests/speaking/test_stage.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plugins.speaking import graphs
from plugins.speaking.graphs import Recordings, can_be_recorded, compiled


def test_on_a_cpu_each_call_is_a_call() -> None:
    calls: list[int] = []
    recordings = Recordings(torch.device("cpu"))
    for _ in range(3):
        recordings.run("key", lambda: calls.append(1))
    assert len(calls) == 3


def test_a_key_is_recorded_once_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call does one step's work: the first as it is, on a stream that waits and is waited
    for, and each later one by a replay. Recording computes nothing, minds no other thread, and all
    recordings share the memory of what they leave behind."""
    done: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            done.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    @contextmanager
    def within(thing: Any, **options: Any) -> Iterator[None]:
        name = "record" if isinstance(thing, Graph) else thing.name
        done.append(" ".join([f"[{name}", *map(str, options.values())]))
        yield
        done.append("]")

    for name, fake in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": within,
        "stream": within,
        "current_stream": lambda: Stream("main"),
        "is_available": lambda: True,
        "graph_pool_handle": lambda: "pool",
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recordings = Recordings(torch.device("cuda"))
    for key in ("one", "two"):
        done.clear()
        recordings.run(key, lambda: done.append("step"))
        assert done == ["side waits for main", "[side", "step", "]", "main waits for side"]
        done.clear()
        recordings.run(key, lambda: done.append("step"))
        assert done == ["[record pool thread_local", "step", "]", "replay"]
        done.clear()
        recordings.run(key, lambda: done.append("step"))
        assert done == ["replay"]


def test_what_cannot_be_recorded_or_compiled_is_told_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record(step: Any, pool: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    monkeypatch.setattr(graphs, "RECORDING", {"cpu"})
    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "warm_up", lambda step: step())
    calls: list[int] = []
    recordings = Recordings(torch.device("cpu"))
    function = compiled(broken, {0: (0,)})
    with caplog.at_level(logging.WARNING):
        for i in range(4):
            recordings.run("key", lambda i=i: calls.append(i))  # type: ignore[misc]
            assert function(torch.ones(3))[0] == 2
    assert calls == [0, 1, 2, 3]
    of_compiler, of_recording = sorted(line for line in caplog.messages if "steps" in line)
    assert of_compiler.startswith("steps are not compiled: Unsupported: ")
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert of_recording == f"steps are not recorded: {reason}"


def test_without_a_compiler_it_is_told_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs.shutil, "which", lambda name: None)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    graphs._has_compiler.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert compiled(len, {}) is len
            assert compiled(abs, {}) is abs
    finally:
        graphs._has_compiler.cache_clear()
    (line,) = caplog.messages
    assert line == "no compiler here (Triton and gcc, or g++): steps are not compiled"


@pytest.mark.parametrize(
    ("devices", "is_quantized", "expected"),
    [
        (["cuda:0"], False, True),
        (["cuda:0"], True, False),
        (["cpu"], False, False),
        (["cuda:0", "cuda:1"], False, False),
        (["cuda:0", "cpu"], False, False),
    ],
)
def test_by_default_one_gpu_records(devices: list[str], is_quantized: bool, expected: bool) -> None:
    weights = [SimpleNamespace(device=torch.device(device)) for device in devices]
    model = SimpleNamespace(parameters=lambda: iter(weights), is_quantized=is_quantized)
    assert can_be_recorded(model) == expected
