"""Steps of the 3B model: tokens per second, share of the device's rate, waits, peak memory.

LoRA as configs/lora_3b.yaml, then all weights; against transformers' layers and loss, and against
the memory estimate. Tokens are those of rows, without padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import HiggsAudioV2ForConditionalGeneration as Native

from benchmarks.gpu import inputs
from benchmarks.gpu.bench import GIB, Bench
from benchmarks.measure import Arm, Comparison
from benchmarks.step import loss_of
from plugins.training.preflight.memory import estimate
from plugins.training.preflight.plan import TrainingPlan

RANK, DROPOUT = 32, 0.05
BF16_FLOP_S = 989e12  # dense, of the data sheet of an H100 (SXM)
BUDGET_BYTES = 24e9

Step = Callable[[], Any]


def run(bench: Bench) -> None:
    bench.dtype = "bfloat16"
    bench.attempt("LoRA", lambda: _lora(bench), needs_s=30)
    bench.attempt("full", lambda: _full(bench), needs_s=30)


def _sizes(bench: Bench, num_rows: int, *, ragged: bool = False) -> list[tuple[int, int]]:
    """Text tokens and frames of rows of 2048 positions, or of a bit less each."""
    length = 128 if bench.tiny else 2048
    shorter = length // 64 if ragged else 0
    return [(64, length - 64 - 9 - shorter * i) for i in range(num_rows)]


def _model(bench: Bench) -> Any:
    shape = inputs.TINY if bench.tiny else inputs.LARGE
    return inputs.build(inputs.config_of(shape), torch.bfloat16, bench.device)


def _checkpointing(model: Any, *, on: bool) -> None:
    if on:
        options = {"use_reentrant": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()


def _step(model: Any, batch: inputs.Batch, optimizer: Any, *, native: bool = False) -> None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autocast(base.device.type, torch.bfloat16):
        if native:
            with inputs.native_layers(base):
                loss = Native.forward(base, **batch).loss
                loss.backward()
        else:
            loss_of(model(**batch)).backward()
    optimizer.step()
    model.zero_grad()


def _optimizer(model: Any) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def _arm(step: Step, batch: inputs.Batch) -> Arm:
    num_tokens = inputs.num_tokens(batch)

    def one_step(i: int) -> int:
        step()
        return num_tokens

    return one_step


def _lora(bench: Bench) -> None:
    from peft import LoraConfig, get_peft_model

    base = _model(bench)
    targets = inputs.linear_names(base)
    lora = LoraConfig(r=RANK, lora_alpha=64, lora_dropout=DROPOUT, target_modules=targets)
    model = get_peft_model(base, lora)
    optimizer = _optimizer(model)
    scale = 1 / 16 if bench.tiny else 1.0
    batches = {
        "4 x 2048": inputs.training_batch(base, _sizes(bench, 4)),
        "4 x 2048, ragged": inputs.training_batch(base, _sizes(bench, 4, ragged=True)),
        "4 x LJSpeech": inputs.training_batch(base, inputs.speech_like(4, scale=scale)),
        "1 x 2048": inputs.training_batch(base, _sizes(bench, 1)),
    }
    step = {name: partial(_step, model, batch, optimizer) for name, batch in batches.items()}
    for name, checkpointing in (
        ("4 x 2048", True),
        ("4 x 2048, ragged", True),
        ("1 x 2048", False),
    ):
        _checkpointing(model, on=checkpointing)
        what = f"LoRA {name}, checkpointing {'on' if checkpointing else 'off'}"
        plan = _plan(batches[name], lora_rank=RANK, gradient_checkpointing=checkpointing)
        work = partial(_measure, bench, what, step[name], batches[name], base, plan)
        bench.attempt(what, work, needs_s=12)
    _checkpointing(model, on=True)
    for name in ("4 x 2048, ragged", "4 x LJSpeech"):
        native = partial(_step, model, batches[name], optimizer, native=True)
        work = partial(_against_native, bench, name, step[name], native, batches[name])
        bench.attempt(f"LoRA {name}, against transformers", work, needs_s=15)
    name = "4 x LJSpeech"
    bench.attempt("dropout", lambda: _dropout(bench, model, step[name], batches[name]), needs_s=10)
    bench.attempt("packs", lambda: _packs(bench, model, base, optimizer, scale), needs_s=15)
    bench.attempt("24 GB", lambda: _in_24_gb(bench, step["4 x 2048"]), needs_s=8)


def _plan(batch: inputs.Batch, **options: Any) -> TrainingPlan:
    num_rows, length = batch["input_ids"].shape
    return TrainingPlan(batch_size=num_rows, max_length=length, **options)


def _measure(
    bench: Bench, what: str, step: Step, batch: inputs.Batch, base: Any, plan: TrainingPlan
) -> None:
    is_full = plan.tuner == "full"
    step()  # the optimizer's states exist from here on
    peak_gib = bench.peak_gib(step)
    step_s = bench.timed(step, repeat=1 if bench.tiny else 3, warm=0)
    add = bench.add
    add(f"{what}: speed", inputs.num_tokens(batch) / step_s, "tokens/s")
    work = flops(base.config, batch, full=is_full)
    rate = bench.measured("env: matrix product", BF16_FLOP_S / 1e12)
    share = work / step_s / 1e12 / rate
    add(f"{what}: MFU", work / step_s / BF16_FLOP_S, "of 1", least=0.4, of_measured_rate=share)
    add(f"{what}: waits of a step", bench.waits(step), "waits")
    count, top_ms = bench.kernels(step)
    add(f"{what}: kernels of a step", count, "kernels", ms=top_ms)
    # Its buffers are the context of the process, which torch does not count.
    estimated = estimate(base.config, plan)
    estimated_gib = (estimated.total - estimated.buffers) / GIB
    add(f"{what}: estimated peak", estimated_gib, "GiB")
    add(f"{what}: peak", peak_gib, "GiB")
    if peak_gib is not None:
        off = abs(peak_gib / estimated_gib - 1)
        add(f"{what}: peak off the estimate", off, "of 1", most=0.15)


def _against_native(bench: Bench, name: str, ours: Step, native: Step, batch: inputs.Batch) -> None:
    claim = Comparison("step", f"LoRA {name}, ours", f"LoRA {name}, transformers", 1.3)
    arms = {claim.ours: _arm(ours, batch), claim.peer: _arm(native, batch)}
    bench.compete(arms, [claim], "tokens/s")


def _dropout(bench: Bench, model: Any, step: Step, batch: inputs.Batch) -> None:
    """peft has none at all where it is 0."""
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]

    def with_dropout(dropout: nn.Module) -> Step:
        def whole() -> None:
            for layer in layers:
                layer.lora_dropout["default"] = dropout
            step()

        return whole

    claim = Comparison("dropout", "LoRA without dropout", f"LoRA with dropout {DROPOUT}", 1)
    arms = {
        claim.ours: _arm(with_dropout(nn.Identity()), batch),
        claim.peer: _arm(with_dropout(nn.Dropout(DROPOUT)), batch),
    }
    bench.compete(arms, [claim], "tokens/s")


def _packs(bench: Bench, model: Any, base: Any, optimizer: Any, scale: float) -> None:
    """The same rows: padded, and in one of about 8192 positions."""
    sizes = inputs.speech_like(6 if bench.tiny else 32, scale=scale)
    padded, packed = (inputs.training_batch(base, sizes, packed=packed) for packed in (False, True))
    arms = {
        "LoRA 32 x LJSpeech, padded": _arm(partial(_step, model, padded, optimizer), padded),
        "LoRA 32 x LJSpeech, packed, sdpa": _arm(partial(_step, model, packed, optimizer), packed),
    }

    def step() -> None:
        with inputs.attention(base, inputs.PACKED_ATTENTION):
            _step(model, packed, optimizer)

    name = f"LoRA 32 x LJSpeech, packed, {inputs.PACKED_ATTENTION}"
    arms[name] = _arm(step, packed)
    peer, *others = arms
    claims = [Comparison("packs", ours, peer, 1) for ours in others]
    bench.compete(arms, claims, "tokens/s")


def _in_24_gb(bench: Bench, step: Step) -> None:
    if bench.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        bench.free()
        torch.cuda.set_per_process_memory_fraction(min(BUDGET_BYTES / total, 1))
    try:
        step()
    finally:
        if bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    bench.check("LoRA 4 x 2048, checkpointing on, within 24 GB", True)


def _full(bench: Bench) -> None:
    model = _model(bench)
    batch = inputs.training_batch(model, _sizes(bench, 2))
    _checkpointing(model, on=True)
    optimizer = _optimizer(model)
    step = partial(_step, model, batch, optimizer)
    what = "full 2 x 2048, checkpointing on"
    work = partial(_measure, bench, what, step, batch, model, _plan(batch, tuner="full"))
    bench.attempt(what, work, needs_s=15)


def flops(config: Any, batch: inputs.Batch, *, full: bool) -> float:
    """Of a step of the model itself: no padding, nothing computed twice. 2 per weight and position
    forward, 2 for the gradients of activations, 2 for those of weights if all are trained; the
    causal half of attention, 2.5 times that backward."""
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    per_layer = 2 * hidden * query + 2 * hidden * key + 3 * hidden * config.intermediate_size
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    linear = 2.0 * config.num_hidden_layers * per_layer * sum(lengths)
    num_frames = int((batch["audio_labels"] != -100).any(dim=-1).sum())
    num_text = int((batch["labels"] != -100).sum())
    audio_head = num_frames * config.num_codebooks * config.codebook_size
    linear += 2.0 * hidden * (audio_head + num_text * config.vocab_size)
    attention = 0.0
    for length in lengths:
        attention += 2.0 * length * length * query * config.num_hidden_layers
    return linear * (3 if full else 2) + attention * 3.5
