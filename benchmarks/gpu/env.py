"""What the device can do: the limits that the other parts are compared with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.bench import Bench

_PACKAGES = ("transformers", "peft", "accelerate", "ms-swift", "triton", "flash-attn")


def run(bench: Bench) -> None:
    bench.attempt("versions", lambda: _versions(bench))
    bench.attempt("limits", lambda: _limits(bench))


def _versions(bench: Bench) -> None:
    for package in _PACKAGES:
        try:
            bench.add(package, version(package), "version")
        except PackageNotFoundError:
            bench.add(package, "none", "version")
    if bench.on_gpu:
        gpu = torch.cuda.get_device_properties(0)
        bench.add("memory", gpu.total_memory / 2**30, "GiB", processors=gpu.multi_processor_count)


def _limits(bench: Bench) -> None:
    """On random data: zeros cost a GPU less power, and are faster."""
    device, size = bench.device, 2**20 if bench.tiny else 2**30
    source = torch.randn(size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy_s = bench.timed(lambda: target.copy_(source))
    bench.add("copy", 2 * source.nbytes / copy_s / 1e12, "TB/s", dtype="bfloat16")
    width = 256 if bench.tiny else 8192
    a, b = torch.randn(2, width, width, dtype=torch.bfloat16, device=device)
    product_s = bench.timed(lambda: a @ b)
    bench.add("matrix product", 2 * width**3 / product_s / 1e12, "TFLOP/s", dtype="bfloat16")
