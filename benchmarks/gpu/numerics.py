"""Losses, gradients and codes on the device against those of a CPU, of transformers, of each other.

In fp32 all of them are equal. In bf16 the error is that of its eight bits, and one sequence of
codes is as good as another: what is said there is how many frames the same request begins with."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import torch

from benchmarks.decode import MODELS, Speaker
from benchmarks.gpu import inputs
from benchmarks.gpu.bench import GIB, Bench, relative_error
from benchmarks.step import loss_of
from plugins.speaking.decoding import Stage
from plugins.speaking.sampling import Sampling

SIZES = [(20, 40), (30, 25), (12, 60)]  # text tokens and frames


def run(bench: Bench) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    shape = inputs.TINY if bench.tiny else inputs.SMALL
    bench.attempt("losses", lambda: _losses(bench, shape))
    bench.attempt("packs", lambda: _packs(bench, shape))
    bench.attempt("codes", lambda: _codes(bench), needs_s=20)


def _step(model: Any, batch: Any, *, autocast: bool, native: bool = False) -> dict[str, Any]:
    model.zero_grad()
    with ExitStack() as stack:
        if native:
            stack.enter_context(inputs.native_layers(model))
        if autocast:
            stack.enter_context(torch.autocast(model.device.type, torch.bfloat16))
        outputs = model(**batch)
        loss = loss_of(outputs)
    loss.backward()
    gradients = [parameter.grad.float().cpu().flatten() for parameter in model.parameters()]
    return {
        "loss": loss,
        "audio": outputs.audio_loss,
        "text": outputs.text_loss,
        "gradients": torch.cat(gradients),
    }


def _check(bench: Bench, name: str, step: Any, exact: Any, *, dtype: str) -> None:
    errors = {key: relative_error(step[key], exact[key]) for key in exact}
    of_loss, of_gradients = (1e-4, 1e-3) if dtype == "float32" else (3e-2, 0.1)
    is_right = errors["loss"] < of_loss and errors["gradients"] < of_gradients
    bench.check(name, is_right, dtype=dtype, errors=errors)


def _losses(bench: Bench, shape: inputs.Shape) -> None:
    config = inputs.config_of(shape)
    on_cpu = inputs.build(config, torch.float32, "cpu")
    exact = _step(on_cpu, inputs.training_batch(on_cpu, SIZES), autocast=False)
    for name, dtype, autocast, native in (
        ("loss", torch.float32, False, False),
        ("loss, transformers' layers", torch.float32, False, True),
        ("loss, autocast", torch.float32, True, False),
        ("loss, as it is trained", torch.bfloat16, True, False),
    ):
        # Not by `.to(dtype)`, which would round the rotary frequencies too.
        model = inputs.build(config, dtype, bench.device)
        model.load_state_dict(on_cpu.state_dict())
        batch = inputs.training_batch(model, SIZES)
        step = _step(model, batch, autocast=autocast, native=native)
        _check(bench, name, step, exact, dtype="bfloat16" if autocast else "float32")


def _packs(bench: Bench, shape: inputs.Shape) -> None:
    model = inputs.build(inputs.config_of(shape), torch.bfloat16, bench.device)
    padded, packed = (
        inputs.training_batch(model, SIZES, packed=packed) for packed in (False, True)
    )
    exact = _step(model, padded, autocast=True)
    _check(bench, "packed, sdpa", _step(model, packed, autocast=True), exact, dtype="bfloat16")
    name = f"packed, {inputs.PACKED_ATTENTION}"
    with inputs.attention(model, inputs.PACKED_ATTENTION):
        step = _step(model, packed, autocast=True)
        waits = bench.waits(lambda: _step(model, packed, autocast=True))
    _check(bench, name, step, exact, dtype="bfloat16")
    bench.add(f"{name}: waits of a step", waits, "waits")


def _codes(bench: Bench) -> None:
    """Of four requests that end one by one."""
    overrides, ends = MODELS["tiny"]
    if bench.tiny:
        ends = (40, 12, 18, 28)
    speaker = Speaker(overrides, ends, device=bench.device)
    bench.attempt("codes are transformers'", lambda: _are_transformers(bench, speaker))
    bench.attempt("codes of graphs", lambda: _graphs(bench, speaker), needs_s=20)
    bench.attempt("memory of requests", lambda: _requests(bench, speaker))
    bench.attempt("beside a thread", lambda: _beside_a_thread(bench, speaker))
    bench.attempt("codes in bf16", lambda: _half(bench, speaker), needs_s=15)


def _are_transformers(bench: Bench, speaker: Speaker) -> None:
    speaker.check()
    frames = speaker.lengths
    bench.check("codes are transformers', alone and in a batch", True, dtype="float32", of=frames)


def _equal(some: list[Any], others: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _graphs(bench: Bench, speaker: Speaker) -> None:
    """Compiled, and on a GPU captured; a batch that loses its rows, then requests alone."""
    with bench.counted() as counts:
        together = speaker.ours(speaker.together, cuda_graphs=True)
        alone = [speaker.ours(batch, cuda_graphs=True)[0] for batch in speaker.alone]
    for name, count in counts.items():
        bench.add(f"{name} of a batch that shrinks and four requests", count, name)
    bench.check("codes of graphs, batch", _equal(together, speaker.said), dtype="float32")
    bench.check("codes of graphs, alone", _equal(alone, speaker.said), dtype="float32")
    drawn = Sampling(temperature=1.0, seed=7)
    plain = speaker.ours(speaker.together, drawn)
    graphs = speaker.ours(speaker.together, drawn, cuda_graphs=True)
    bench.check("codes of graphs, drawn", _equal(graphs, plain), dtype="float32")


def _requests(bench: Bench, speaker: Speaker) -> None:
    """What is still reserved after many: pools of captures, streams, workspaces."""
    reserved = []
    for i in range(3 if bench.tiny else 24):
        speaker.ours(speaker.alone[i % 4], cuda_graphs=True)
        reserved.append(torch.cuda.memory_reserved() / GIB if bench.on_gpu else 0.0)
    growth = reserved[-1] - reserved[len(reserved) // 2]
    bench.add("growth over the later half of 24 requests", growth, "GiB", reserved=reserved)


def _beside_a_thread(bench: Bench, speaker: Speaker) -> None:
    """Another one allocates and pins memory meanwhile, as data loaders, codecs and servers do."""
    if not bench.on_gpu:
        bench.skip("beside a thread", "nothing is captured on a CPU")
        return
    is_done, faults = threading.Event(), []
    speaker.stage = Stage()  # nothing is recorded yet

    def work() -> None:
        try:
            for size in cycle(range(20, 28)):  # new sizes ask the driver for memory
                torch.empty(2**size, device=bench.device).fill_(1).cpu()
                torch.empty(2**size).pin_memory()
                if is_done.is_set():
                    return
        except RuntimeError as error:
            faults.append(str(error).splitlines()[0])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        said = [speaker.ours(batch, cuda_graphs=True)[0] for batch in speaker.alone]
    finally:
        is_done.set()
        thread.join()
    is_right = not faults and _equal(said, speaker.said)
    bench.check("capture beside a thread", is_right, dtype="float32", faults=faults)


def _half(bench: Bench, speaker: Speaker) -> None:
    speaker.model.to(torch.bfloat16)
    alone = [speaker.ours(batch)[0] for batch in speaker.alone]
    others = {
        "in a batch": speaker.ours(speaker.together),
        "with graphs": speaker.ours(speaker.together, cuda_graphs=True),
    }
    for name, said in others.items():
        frames = list(map(common_frames, alone, said))
        bench.add(f"frames as alone, {name}", min(frames), "frames", dtype="bfloat16", of=frames)


def common_frames(some: torch.Tensor, others: torch.Tensor) -> int:
    """Before the first that differs. (T, K) each."""
    length = min(len(some), len(others))
    different = (some[:length] != others[:length]).any(dim=-1).nonzero()
    return int(different[0]) if len(different) else length
