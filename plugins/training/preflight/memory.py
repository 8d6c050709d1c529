"""GPU memory of a training run: model config and plan -> bytes per device.

Estimated, not measured on a GPU. Parameters are counted on the real class. What the layers keep is
counted per operator and equals, to the byte, what the real class keeps on a CPU (measured by
tests/training/preflight/test_memory_measured.py); kernels' own workspaces and the allocator's
fragmentation are not in it. P parameters, T trained ones, A those of LoRA with rank r, N devices, L
layers, I intermediate size, and B, S, H, K, C, V of the legend. bf16, gradient checkpointing, K/V
heads repeated:

    LoRA          2 P + 16 A + 2 L B S H + B S (45 H + 19 I) + 1 GiB
    full, ZeRO-3  16 P / N + max(2 L B S H + B S (31 H + 12 I), 4 P / N) + 3 GiB,
                  of 4 P / N at most 4 GB
    full, FSDP2   16 P / N + 2 L B S H + B S (31 H + 12 I) + 8 P of one layer
                  + 2 P outside the layers + 1 GiB
    full, neither 8 P + 2 L B S H + B S (31 H + 12 I) + 1 GiB
    offloaded     of ZeRO-3 only the activations and 3 GiB stay on a device;
                  18 P of host memory, 16 P without weights

On preferences B is that of both answers, and a full fine-tuning has 2 P more, of its reference.
Every position has a label, and is an audio frame or a trained text token: both FFNs cost the same,
their heads do not. The text head, 16 times as wide, runs on trained text only
(`plugins.model.loss`): three tokens of a row that is one clip, and what `text_tokens_per_row` finds
in other rows.
Attention (sdpa or flash) keeps no S x S scores, and no mask: padding stands on the right. Not
counted: `modules_to_save`, optimizers other than AdamW, evaluation."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from plugins.errors import problem
from plugins.training.preflight.plan import TrainingPlan

GIB = 2**30
TRAINED_TEXT_TOKENS = 3  # of a row that is one clip: audio_out_bos, audio_eos, eot

# bitsandbytes nf4 with double quantisation (MS-SWIFT's default): half a byte, one 8-bit scale per
# 64 weights, one fp32 scale per 256 of those (arXiv 2305.14314, section 3).
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# CUDA context, cuBLAS and NCCL: the usual figure, the only one here that is neither counted nor
# read from source.
_CONTEXT = GIB
# Of the presets in swift/config: `reduce_bucket_size` of ZeRO-1 and -2,
# `stage3_max_live_parameters` and `sub_group_size` of ZeRO-3.
_REDUCE_BUCKET = 2e8
_LIVE_PARAMETERS = 1e9
_SUB_GROUP = 1e9
# A card's nominal size is not all free, and the allocator leaves gaps.
_USABLE = 0.95


class RowSize(NamedTuple):
    """Of a row of the dataset."""

    text_tokens: int  # trained
    positions: int


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of parameters, except for the last field."""

    base: int
    trained: int  # all, or those of LoRA
    layer: int  # one decoder layer
    largest: int  # the largest tensor
    linear: int  # weights of linear modules
    quantized: int  # weights in 4 bits
    adapter_bytes_per_token: int  # what the adapters keep for the backward pass, all layers


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per device. Not everything coexists: see `total`."""

    weights: int
    gradients: int
    optimizer: int  # AdamW's two states, and DeepSpeed's fp32 weights
    activations: int  # from the forward to the backward pass
    backward: int  # at work on one layer, recomputed or not
    logits: int  # of both heads
    step: int  # fp32 copies of the optimizer step
    buffers: int  # communication, CUDA context
    host: int  # of one machine's memory: what is offloaded to it
    sizes: ModelSizes
    text_tokens: int  # of a row, trained

    @property
    def total(self) -> int:
        """The peak. Logits are gone before the layers' backward pass, activations before the
        optimizer step."""
        working = max(self.activations + max(self.backward, self.logits), self.step)
        return self.weights + self.gradients + self.optimizer + self.buffers + working


def model_sizes(config: Any, plan: TrainingPlan) -> ModelSizes:
    """Counted on the real class, without weights. Raises UserError if the target modules match
    nothing."""
    import torch

    from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    linears: dict[str, torch.nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linears[name] = module
    targets: dict[str, torch.nn.Linear] = {}
    if plan.tuner != "full":
        targets = {name: linears[name] for name in linears if _is_target(name, plan)}
        if not targets:
            raise problem(
                source="options",
                field="target_modules",
                value=plan.target_modules,
                reason="matches no module",
                remedy="use 'all-linear'",
            )
    num_adapters = 0
    for module in targets.values():
        num_adapters += plan.lora_rank * (module.in_features + module.out_features)
    num_linear = num_quantized = 0
    for name, module in linears.items():
        num_linear += module.weight.numel()
        # Not the heads: MS-SWIFT skips what ends in lm_head (quant_args.py,
        # get_modules_to_not_convert).
        if plan.tuner == "qlora" and name.startswith("model."):
            num_quantized += module.weight.numel()
    sizes = [parameter.numel() for parameter in model.parameters()]
    return ModelSizes(
        base=sum(sizes),
        trained=num_adapters or sum(sizes),
        layer=sum(parameter.numel() for parameter in model.model.layers[0].parameters()),
        largest=max(sizes),
        linear=num_linear,
        quantized=num_quantized,
        adapter_bytes_per_token=_adapter_bytes_per_token(targets, plan),
    )


def _is_target(name: str, plan: TrainingPlan) -> bool:
    """As MS-SWIFT (`get_target_modules`: all-linear is every linear module but the heads) and peft
    understand it."""
    if isinstance(plan.target_modules, str):
        return re.fullmatch(plan.target_modules, name) is not None
    if "all-linear" in plan.target_modules:
        return name.startswith("model.")
    return any(name == target or name.endswith(f".{target}") for target in plan.target_modules)


def _adapter_bytes_per_token(targets: Mapping[str, Any], plan: TrainingPlan) -> int:
    """Per adapter: its input after dropout, the mask of one byte (CUDA's fused dropout), the output
    of lora_A.

    A token passes one of both FFNs, so of both only the more expensive one counts.
    """
    element = _compute_bytes(plan)
    costs: dict[str, Counter[str]] = {}  # by layer, then by attention, mlp and audio_mlp
    for name, module in targets.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)\.\w+", name)
        if match is not None:
            layer, part = match.groups()
            cost = (element + 1) * module.in_features + element * plan.lora_rank
            costs.setdefault(layer, Counter())[part] += cost
    total = 0
    for cost_of in costs.values():
        total += cost_of["self_attn"] + max(cost_of["mlp"], cost_of["audio_mlp"])
    return total


def _compute_bytes(plan: TrainingPlan) -> int:
    """Of one activation. With float32 MS-SWIFT sets fp16=True (model_args.py,
    _init_mixed_precision): DeepSpeed and FSDP2 then compute in fp16; autocast alone does so in
    part, and four bytes are the bound."""
    return 4 if plan.dtype == "float32" and plan.zero_stage is None and not plan.fsdp2 else 2


def text_tokens_per_row(rows: Iterable[RowSize], plan: TrainingPlan) -> int:
    """Trained text tokens of a row of the batch, at most: those of the row that has most of them;
    packed, of a pack of the rows that have most of them per position."""
    most = TRAINED_TEXT_TOKENS
    for row in rows:
        num_text = row.text_tokens
        if plan.packing:
            # As often as it fits, and a shorter one of its kind in the rest.
            num_text = math.ceil(num_text * plan.max_length / row.positions)
        most = max(most, num_text)
    return min(most, plan.max_length)


def estimate(
    config: Any, plan: TrainingPlan, *, text_tokens: int = TRAINED_TEXT_TOKENS
) -> MemoryEstimate:
    """The peak of one training step; `config` is a `HiggsAudioV2Config`. text_tokens: trained, per
    row (`text_tokens_per_row`). Raises UserError as `model_sizes` does."""
    sizes = model_sizes(config, plan)
    weights, gradients, optimizer = _states(sizes, plan)
    activations, backward, logits = _activations(config, sizes, plan, text_tokens)
    if plan.tuner == "full":
        # A gradient exists before it is added to the accumulated one or leaves for its bucket.
        backward = max(backward, _compute_bytes(plan) * sizes.largest)
    return MemoryEstimate(
        weights=round(weights),
        gradients=round(gradients),
        optimizer=round(optimizer),
        activations=round(activations),
        backward=round(backward),
        logits=round(logits),
        step=round(_step(sizes, plan)),
        buffers=round(_buffers(config, sizes, plan)),
        host=_host(sizes, plan),
        sizes=sizes,
        text_tokens=text_tokens,
    )


def _shards(plan: TrainingPlan, least_stage: int) -> int:
    """Over how many devices that is divided which ZeRO divides from `least_stage` on."""
    is_sharded = plan.fsdp2 or (plan.zero_stage is not None and plan.zero_stage >= least_stage)
    return plan.num_devices if is_sharded else 1


def _states(sizes: ModelSizes, plan: TrainingPlan) -> tuple[float, float, float]:
    """Weights, gradients, optimizer. Sources: `TrainingPlan.master_weights`."""
    loaded = 4 if plan.dtype == "float32" else 2
    per_trained = 4 if plan.fsdp2 or plan.tuner != "full" else loaded
    per_state = 2 * per_trained
    if plan.zero_stage is not None:
        # Weights and gradients in half precision (engine.py, get_data_types), fp32 weights and two
        # fp32 states.
        loaded, per_trained, per_state = 2, 2, 12
    weights: float = sizes.trained * per_trained
    if plan.tuner != "full":
        weights += (sizes.base - sizes.quantized) * loaded  # frozen
    if plan.has_reference:
        weights += sizes.base * loaded
    weights /= _shards(plan, 3)
    gradients = sizes.trained * per_trained / _shards(plan, 2)
    optimizer = sizes.trained * per_state / _shards(plan, 1)
    if plan.offload_weights:
        weights = 0
    if plan.offload_optimizer:
        gradients = optimizer = 0  # stage_1_and_2.py and stage3.py keep them side by side
    # FSDP2 does not shard 4-bit weights (fsdp2_prepare_model, ignored_params); for ZeRO-3 that is
    # the bound.
    return weights + sizes.quantized * _NF4_BYTES, gradients, optimizer


def _host(sizes: ModelSizes, plan: TrainingPlan) -> int:
    """Per machine, if all devices are in one: fp32 weights, both states and gradients, then the
    half-precision weights. DeepSpeed counts the same (stage3.py,
    estimate_zero3_model_states_mem_needs) and adds a half for its buffers."""
    total = 0
    if plan.offload_optimizer:
        total += 16 * sizes.trained
    if plan.offload_weights:
        total += 2 * sizes.trained
    if plan.offload_weights and plan.tuner != "full":
        total += 2 * sizes.base
    return total


def _step(sizes: ModelSizes, plan: TrainingPlan) -> float:
    """DeepSpeed's fp32 copy of the gradients: of a parameter group, with ZeRO-3 of a sub-group.
    Fused AdamW of torch (Trainer's default) works in place, ours for bf16 on a piece at a time."""
    if not plan.master_weights:
        from plugins.training.adamw import PIECE, PIECE_BYTES

        return PIECE_BYTES * min(PIECE, sizes.largest)
    if plan.zero_stage is None or plan.offload_optimizer:
        return 0
    num_gradients = sizes.trained / _shards(plan, 1)
    if plan.zero_stage == 3:
        num_gradients = min(num_gradients, _SUB_GROUP)
    return 4 * num_gradients


def _activations(
    config: Any, sizes: ModelSizes, plan: TrainingPlan, text_tokens: int
) -> tuple[float, float, float]:
    """What all layers keep, what is at work on one of them, logits."""
    from plugins.model.loss import PIECE

    tokens, element = plan.batch_size * plan.max_length, _compute_bytes(plan)
    kept = config.num_hidden_layers * _kept_per_token(config, plan) + sizes.adapter_bytes_per_token
    working = _working_per_token(config, plan)
    autocast = 2 * _cast_weights(sizes, plan)
    num_text = plan.batch_size * text_tokens
    of_text = num_text * config.vocab_size
    of_audio = (tokens - num_text) * config.num_codebooks * config.codebook_size
    # Logits, their gradient, and a piece in fp32. Audio's turn comes first on the way back, while
    # text's logits wait for theirs.
    audio_turn = element * (of_text + 2 * of_audio) + 4 * min(of_audio, PIECE)
    text_turn = 2 * element * of_text + 4 * min(of_text, PIECE)
    logits = max(audio_turn, text_turn)
    # Beside them the input and output of the last norm, and labelled rows.
    logits += (4 + 2 * element) * config.hidden_size * tokens
    if plan.gradient_checkpointing:
        inputs = config.num_hidden_layers * element * config.hidden_size * tokens
        one_layer = (kept / config.num_hidden_layers + working) * tokens
        return inputs, max(one_layer, autocast), logits
    return kept * tokens + autocast, working * tokens, logits


def _kept_per_token(config: Any, plan: TrainingPlan) -> int:
    """Bytes that one layer keeps of a token for its backward pass, without adapters."""
    element = _compute_bytes(plan)
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    total = 2 * 4 * hidden  # the fp32 inputs of both norms
    total += element * (2 * query + 2 * key)  # q, k, v and the output of attention
    total += element * 3 * intermediate  # gate, silu(gate), up
    total += 4 * config.num_attention_heads + 8  # log-sum-exp, 1 / rms
    if plan.tuner == "full":
        # Inputs of the norms' weights, of qkv, of gate and up, of o, of down.
        total += element * (4 * hidden + query + intermediate)
    return total


def _working_per_token(config: Any, plan: TrainingPlan) -> float:
    """Bytes beyond `_kept_per_token` at the peak of a layer's backward pass. Both sums are fitted
    to measurements."""
    if plan.tuner == "full":  # gradients inside the FFN and of the residual
        return _compute_bytes(plan) * (3.25 * config.hidden_size + 2 * config.intermediate_size)
    # fp32 copies around the adapter of down_proj
    return 10.5 * config.hidden_size + 10 * config.intermediate_size


def _cast_weights(sizes: ModelSizes, plan: TrainingPlan) -> int:
    """fp32 weights of which autocast makes a half-precision copy: trained ones stay in its cache
    for the forward pass, frozen ones with the graph, which checkpointing keeps one layer of."""
    if plan.zero_stage is not None or plan.fsdp2:
        return 0  # DeepSpeed does without autocast; FSDP2 casts what it gathers
    total = 0
    if plan.tuner != "full":
        total += sizes.trained  # peft keeps adapters in fp32
    if plan.dtype == "float32" and (plan.tuner == "full" or not plan.gradient_checkpointing):
        total += sizes.linear
    return total


def _buffers(config: Any, sizes: ModelSizes, plan: TrainingPlan) -> float:
    outside = sizes.base - config.num_hidden_layers * sizes.layer
    total = float(_CONTEXT)
    if plan.zero_stage == 3:
        total += 2 * min(_LIVE_PARAMETERS, sizes.base)
    elif plan.zero_stage is not None:
        total += 2 * _REDUCE_BUCKET  # `contiguous_gradients`; allocated for LoRA too
    elif plan.fsdp2:
        # A layer and the next one, gathered, with their gradients; embeddings and heads, of which
        # the root stays so.
        num_layers = 4 if plan.tuner == "full" else 2
        total += 2 * (num_layers * sizes.layer + outside)
    elif plan.num_devices > 1:
        # DDP's buckets are copies of the gradients (accelerate: gradient_as_bucket_view=False).
        _, gradients, _ = _states(sizes, plan)
        total += gradients
    if plan.tuner == "qlora":
        # The weight that is being used, in half precision.
        total += 2 * config.hidden_size * config.intermediate_size
    return total


def fits(needed: MemoryEstimate, gib: float) -> bool:
    """Whether a card of `gib` GiB is enough, with 5 % left for what no formula knows."""
    return needed.total <= _USABLE * gib * GIB


def render(needed: MemoryEstimate) -> str:
    """A table, in GiB per device."""
    sizes = needed.sizes
    text = f"; {needed.text_tokens} trained text tokens a row"
    rows = [
        ("weights", needed.weights, f"{sizes.base / 1e9:.2f} B parameters"),
        ("gradients", needed.gradients, f"{sizes.trained / 1e6:,.1f} M trained parameters"),
        ("optimizer", needed.optimizer, "AdamW"),
        ("activations", needed.activations, "kept from the forward to the backward pass"),
        ("backward", needed.backward, "at work on one layer, or"),
        ("logits", needed.logits, f"of both heads: the larger of the two counts{text}"),
        ("step", needed.step, "the optimizer's copies in fp32, once activations are gone"),
        ("buffers", needed.buffers, "communication, CUDA context (1 GiB)"),
        ("total", needed.total, "per device; estimated, not measured on a GPU"),
    ]
    if needed.host:
        note = "of the machine's memory, not in the total; DeepSpeed advises half more"
        rows.insert(-1, ("host", needed.host, note))
    return "\n".join(f"{name:<12}{size / GIB:8.2f} GiB  {note}" for name, size, note in rows)
