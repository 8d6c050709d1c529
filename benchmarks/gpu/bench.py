"""What a part needs of its device: time, memory, counts, and results with its name."""

from __future__ import annotations

import gc
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.results import Results, read
from benchmarks.measure import Arm, Comparison, alternate, compare

Work = Callable[[], Any]
GIB = 2**30


class Bench:
    """One part. deadline: in seconds since the epoch; what would pass it is skipped."""

    def __init__(self, part: str, folder: Path, device: str, *, tiny: bool, deadline: float):
        self.part, self.folder, self.device = part, folder, device
        self.tiny, self.deadline = tiny, deadline
        self.dtype = ""  # of results that name none
        self.on_gpu = device == "cuda"
        header = {"device": "cpu", "torch": torch.__version__, "driver": "none"}
        if self.on_gpu:
            header |= {"device": torch.cuda.get_device_name(), "driver": _driver()}
        self._results = Results(folder / "results.jsonl", header, judges_speed=not tiny)

    def add(self, name: str, value: Any, unit: str, **options: Any) -> None:
        if value is not None:  # as what only a GPU counts, on a CPU
            options = {"dtype": self.dtype, **options}
            self._results.add(f"{self.part}: {name}", value, unit, **options)

    def check(self, name: str, is_right: bool, **options: Any) -> None:
        self._results.check(f"{self.part}: {name}", is_right, **{"dtype": self.dtype, **options})

    def skip(self, name: str, reason: str) -> None:
        self._results.skip(f"{self.part}: {name}", reason)

    def attempt(self, name: str, work: Work, *, needs_s: float = 5) -> None:
        """A fault of `work` costs nothing but `work`."""
        left_s = self.deadline - time.time()
        if left_s < needs_s:
            self.skip(name, f"{left_s:.0f} s left, {needs_s:.0f} needed")
            return
        try:
            work()
        # MS-SWIFT ends runs by SystemExit; to be out of memory is an Exception.
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            trace = traceback.format_exc()[-900:]
            self._results.fail(f"{self.part}: {name}", text, trace=trace)
        self.free()

    def measured(self, name: str, otherwise: float) -> float:
        """What an earlier part has measured."""
        for record in read(self._results.path):
            if record["name"] == name and record["value"] is not None:
                return float(record["value"])
        return otherwise

    # Time.

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def timed(self, work: Work, *, repeat: int = 5, warm: int = 2) -> float:
        """Median seconds of one call."""
        for _ in range(warm):
            work()
        taken = []
        for _ in range(repeat):
            self.sync()
            started_s = time.perf_counter()
            work()
            self.sync()
            taken.append(time.perf_counter() - started_s)
        return median(taken)

    def compete(self, arms: Mapping[str, Arm], claims: Sequence[Comparison], unit: str) -> None:
        """By turns, each once before it counts; items per second and ratios become results."""

        def finished(arm: Arm) -> Arm:
            def whole(i: int) -> int:
                num_items = arm(i)
                self.sync()
                return num_items

            return whole

        complete = {name: finished(arm) for name, arm in arms.items()}
        for arm in complete.values():
            arm(0)
        rates = alternate(complete, 1 if self.tiny else 4)
        for name, per_s in rates.items():
            self.add(name, median(per_s), unit)
        for record in compare(claims, rates):
            name = f"{record['ours']}, against {record['peer']}"
            interval = [record["low"], record["high"]]
            self.add(name, record["value"], "x", least=record["target"], interval=interval)

    # Memory.

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def peak_gib(self, work: Work) -> float | None:
        if not self.on_gpu:
            work()
            return None
        self.free()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / GIB

    # Counts.

    def waits(self, work: Work) -> int | None:
        """How often the host waits for the device, as torch notices it."""
        if not self.on_gpu:
            work()
            return None
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in heard)

    def kernels(self, work: Work) -> tuple[int, dict[str, float]]:
        """How many run, and milliseconds of the eight kinds that take longest."""
        from torch.profiler import ProfilerActivity, profile

        activity = ProfilerActivity.CUDA if self.on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiled:
            work()
            self.sync()
        milliseconds, count = {}, 0
        for event in profiled.key_averages():
            took_us = event.self_device_time_total if self.on_gpu else event.self_cpu_time_total
            if took_us:
                milliseconds[event.key[:70]] = took_us / 1000
                count += event.count
        longest = sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)[:8]
        return count, {name: milliseconds[name] for name in longest}

    @contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """Compiled graphs and CUDA graphs that are made inside; known at the end."""
        from torch._dynamo.utils import counters

        counts = {"compiles": 0, "captures": 0}
        begin = torch.cuda.CUDAGraph.capture_begin
        compiled = counters["stats"]
        before = compiled["unique_graphs"]

        def counting(graph: Any, *args: Any, **kwargs: Any) -> Any:
            counts["captures"] += 1
            return begin(graph, *args, **kwargs)

        with mock.patch.object(torch.cuda.CUDAGraph, "capture_begin", counting):
            yield counts
        counts["compiles"] = compiled["unique_graphs"] - before


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.split()[0]


def relative_error(ours: Any, exact: Any) -> float:
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    return float((ours - exact).norm() / exact.norm().clamp(min=1e-30))
