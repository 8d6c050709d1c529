"""The order of things around a CUDA graph; there is no GPU here. What is compiled runs in
tests/speaking/test_step.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from plugins.speaking.graphs import Captured


def test_on_a_cpu_each_call_is_a_call() -> None:
    calls: list[int] = []
    step = Captured(lambda: calls.append(1), torch.device("cpu"))
    for _ in range(3):
        step()
    assert len(calls) == 3


def test_a_graph_is_recorded_once_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call does one step's work: the first as it is, on a stream that waits and is waited
    for, and each later one by a replay. Recording computes nothing."""
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
    def within(thing: Any) -> Iterator[None]:
        name = "record" if isinstance(thing, Graph) else thing.name
        done.append(f"[{name}")
        yield
        done.append("]")

    for name, fake in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": within,
        "stream": within,
        "current_stream": lambda: Stream("main"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    step = Captured(lambda: done.append("step"), torch.device("cuda"))
    step()
    assert done == ["side waits for main", "[side", "step", "]", "main waits for side"]
    done.clear()
    step()
    assert done == ["[record", "step", "]", "replay"]
    done.clear()
    step()
    assert done == ["replay"]
