"""The memory estimate against what the real class keeps on a CPU, and against the hosts that it
describes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from swift.arguments.base_args.quant_args import QuantizeArguments
from swift.model import MODEL_MAPPING
from swift.pipelines.train.tuner import get_target_modules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.quantizers.quantizers_utils import should_convert_module

from plugins.errors import UserError
from plugins.model.config import HiggsAudioV2Config
from plugins.model.loss import LossWeights, combine
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.register import register_higgs_audio_all
from plugins.training.preflight.memory import GIB, estimate, fits, model_sizes, render
from plugins.training.preflight.plan import TrainingPlan

CONFIG_3B = HiggsAudioV2Config(codebook_size=1026)
CONFIG_7B = HiggsAudioV2Config(
    codebook_size=1026,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
)
LORA_3B = TrainingPlan(lora_rank=32, batch_size=4)
FULL = TrainingPlan(tuner="full", batch_size=2, num_devices=8)
RANK = 4
NUM_TEXT = 8


def tiny_config(
    *, hidden: int = 128, intermediate: int = 344, num_layers: int = 2
) -> HiggsAudioV2Config:
    """The proportions of the 3B model."""
    return HiggsAudioV2Config(
        vocab_size=400, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=num_layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, codebook_size=1026, pad_token_id=1,
        bos_token_id=2, eos_token_id=3, audio_token_id=304, audio_bos_token_id=301, audio_delay_token_id=302,
    )  # fmt: skip


def tiny_model(config: HiggsAudioV2Config, plan: TrainingPlan) -> Any:
    """In training, as MS-SWIFT prepares it."""
    model = (
        HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
        .to(getattr(torch, plan.dtype))
        .train()
    )
    if plan.tuner == "full":
        return model
    targets = resolved_targets(model, plan)
    return get_peft_model(
        model, LoraConfig(r=plan.lora_rank, lora_dropout=0.05, target_modules=targets)
    )


def resolved_targets(model: Any, plan: TrainingPlan) -> Any:
    """By MS-SWIFT's own function."""
    register_higgs_audio_all()
    model.model_meta = MODEL_MAPPING["higgs-audio-v2-3b"]
    targets = (
        plan.target_modules if isinstance(plan.target_modules, str) else list(plan.target_modules)
    )
    args = SimpleNamespace(
        target_modules=targets, freeze_llm=False, freeze_vit=True, freeze_aligner=True
    )
    return get_target_modules(args, model)


def make_batch(plan: TrainingPlan, *, num_labelled: int) -> dict[str, torch.Tensor]:
    """Eight text tokens, then audio up to max_length; of several rows all but the first end in
    padding."""
    batch, length, num_frames = plan.batch_size, plan.max_length, plan.max_length - NUM_TEXT
    input_ids = torch.full((batch, length), 304)
    input_ids[:, :NUM_TEXT] = 5
    input_ids[1:, -1] = 1
    is_frame = input_ids[:, NUM_TEXT:] == 304
    labels = torch.full((batch, length), -100)
    labels[:, NUM_TEXT - 1] = 7
    audio_labels = torch.randint(0, 1026, (batch, num_frames, 8)).masked_fill(
        ~is_frame.unsqueeze(-1), -100
    )
    audio_labels[:, num_labelled:] = -100
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 1).long(),
        "audio_input_ids": torch.randint(0, 1026, (batch, num_frames, 8)),
        "audio_input_ids_mask": is_frame,
        "labels": labels,
        "audio_labels": audio_labels,
    }


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operators have made and nobody has dropped yet.

    More than `saved_tensors_hooks` would see: those miss the input that non-reentrant checkpointing
    keeps, and all that is made and dropped within the backward pass."""

    def __init__(self, outside: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._outside = outside  # parameters, their gradients, the batch; held, so that no storage takes their place
        self._seen: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in outside}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def forget(reference: Any) -> None:
            self.now -= size
            del self._seen[key]

        self.now += size
        self._seen[key] = weakref.ref(storage, forget)


def measure(
    config: HiggsAudioV2Config,
    plan: TrainingPlan,
    *,
    use_reentrant: bool = True,
    num_labelled: int = 4,
) -> tuple[int, int]:
    """Bytes kept after the forward pass, and at the peak of both passes. Gradients exist before and
    are not counted."""
    torch.manual_seed(0)
    model = tiny_model(config, plan)
    if plan.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
        )
        model.enable_input_require_grads()
    batch = make_batch(plan, num_labelled=num_labelled)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    is_half = plan.dtype == "bfloat16"
    autocast = torch.autocast("cpu", torch.bfloat16) if is_half else contextlib.nullcontext()
    live = LiveBytes([*model.parameters(), *model.buffers(), *gradients, *batch.values()])
    with live:
        with autocast:
            outputs = model(**batch)
        counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
        loss = combine(
            outputs.text, outputs.audio, weights=LossWeights(1.0, 1.0, 0.001, (1.0,) * 8), **counts
        )
        del outputs
        kept = live.now
        loss.backward()
    return kept, live.peak


@pytest.fixture
def _dropout_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's dropout keeps a mask of one byte; the CPU's keeps noise in the dtype of its input."""

    def dropout(input: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
        return torch.native_dropout(input, p, training)[0]

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_layers_keep_what_is_estimated(tuner: Any, dtype: Any, batch_size: int) -> None:
    """Two layers more: what embeddings and heads keep falls out. One position of 768 is padding and
    keeps nothing."""
    plan = TrainingPlan(
        tuner,
        RANK,
        dtype=dtype,
        batch_size=batch_size,
        max_length=384,
        gradient_checkpointing=False,
    )
    few, many = tiny_config(num_layers=1), tiny_config(num_layers=3)
    measured = measure(many, plan)[0] - measure(few, plan)[0]
    estimates = estimate(many, plan), estimate(few, plan)
    estimated = estimates[0].activations - estimates[1].activations
    if dtype == "float32":
        # The half-precision copies that fp16 autocast makes on a GPU; here float32 runs without
        # autocast.
        cast = [
            result.sizes.linear + (result.sizes.trained if tuner == "lora" else 0)
            for result in estimates
        ]
        estimated -= 2 * (cast[0] - cast[1])
    assert estimated == pytest.approx(measured, rel=2e-3)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_checkpointed_layers_keep_their_input(tuner: Any, use_reentrant: bool) -> None:
    plan = TrainingPlan(tuner, RANK, batch_size=2, max_length=384)
    few, many = tiny_config(num_layers=1), tiny_config(num_layers=3)
    measured = [measure(config, plan, use_reentrant=use_reentrant)[0] for config in (few, many)]
    estimated = estimate(many, plan).activations - estimate(few, plan).activations
    assert estimated == pytest.approx(measured[1] - measured[0], rel=0.01)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize(
    ("hidden", "intermediate"), [(128, 344), (128, 448)], ids=["as 3b", "as 7b"]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_peak_of_the_layers_is_as_estimated(
    tuner: Any, dtype: Any, hidden: int, intermediate: int
) -> None:
    """Next to no labels: the heads do not matter."""
    plan = TrainingPlan(tuner, RANK, dtype=dtype, batch_size=2, max_length=768)
    config = tiny_config(hidden=hidden, intermediate=intermediate)
    estimated = estimate(config, plan)
    assert estimated.activations + estimated.backward == pytest.approx(
        measure(config, plan)[1], rel=0.15
    )


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_peak_of_the_heads_is_as_estimated(tuner: Any) -> None:
    """All frames labelled and narrow layers: the logits are all that matters."""
    plan = TrainingPlan(tuner, RANK, batch_size=2, max_length=128)
    config = tiny_config(hidden=64, intermediate=128)
    estimated = estimate(config, plan)
    assert estimated.logits > 3 * estimated.backward
    peak = measure(config, plan, num_labelled=128)[1]
    assert estimated.activations + estimated.logits == pytest.approx(peak, rel=0.15)


def test_known_numbers_of_parameters() -> None:
    assert model_sizes(CONFIG_3B, FULL).base / 1e9 == pytest.approx(5.77, abs=0.01)
    assert model_sizes(CONFIG_7B, FULL).base / 1e9 == pytest.approx(13.7, abs=0.05)
    assert estimate(CONFIG_3B, FULL).weights == 2 * model_sizes(CONFIG_3B, FULL).trained


@pytest.mark.parametrize(
    "targets",
    [
        None,
        ("q_proj", "audio_mlp.down_proj"),
        r"model\.layers\.1\..*_proj",
        ("all-linear", "q_proj"),
        ("audio_lm_head",),
    ],
    ids=["lora_3b.yaml", "names", "regex", "mixed", "head"],
)
def test_lora_counts_are_those_of_peft(targets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of("lora_3b")
    plan = plan if targets is None else dataclasses.replace(plan, target_modules=targets)
    tiny_model(tiny_config(), plan).print_trainable_parameters()
    printed = capsys.readouterr().out
    assert f"trainable params: {model_sizes(tiny_config(), plan).trained:,} ||" in printed


def test_the_heads_stay_in_half_precision_with_qlora() -> None:
    """By the functions of MS-SWIFT and transformers; bitsandbytes itself needs a GPU."""
    register_higgs_audio_all()
    host = SimpleNamespace(
        model_meta=MODEL_MAPPING["higgs-audio-v2-3b"],
        model_info=SimpleNamespace(is_moe_model=False),
    )
    skipped = QuantizeArguments.get_modules_to_not_convert(host)
    model = HiggsAudioV2ForConditionalGeneration(tiny_config(), use_text_head=True)
    quantized = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, skipped)
    )
    assert model_sizes(tiny_config(), TrainingPlan("qlora")).quantized == quantized
    assert (
        estimate(CONFIG_3B, TrainingPlan("qlora")).weights
        < 0.4 * estimate(CONFIG_3B, TrainingPlan()).weights
    )


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_dtypes_of_weights_and_states_without_deepspeed(tuner: Any) -> None:
    """bf16 weights have bf16 AdamW states and no fp32 copy; adapters on them are fp32 with fp32
    states."""
    plan = TrainingPlan(tuner, RANK)
    model = tiny_model(tiny_config(), plan)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(trained, fused=True)
    optimizer.step()
    states = [
        state
        for each in optimizer.state.values()
        for name, state in each.items()
        if name.startswith("exp_avg")
    ]
    estimated = estimate(tiny_config(), plan)
    assert estimated.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimated.gradients == sum(parameter.nbytes for parameter in trained)
    assert estimated.optimizer == sum(state.nbytes for state in states)
    assert plan.master_weights is (tuner == "lora")


def plan_of(name: str, **env: str) -> TrainingPlan:
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return TrainingPlan.from_config(config, env)


def test_plans_of_our_configs() -> None:
    assert plan_of("lora_3b") == LORA_3B
    assert plan_of("full_3b", NPROC_PER_NODE="8") == dataclasses.replace(FULL, zero_stage=3)
    assert plan_of("lora_7b", NPROC_PER_NODE="2", NNODES="2").num_devices == 4


def test_plans_of_other_options(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    plan = TrainingPlan.from_config(
        {"deepspeed": str(tmp_path / "zero.json"), "ENV": {"NPROC_PER_NODE": 4}}, {}
    )
    assert (plan.zero_stage, plan.offload_optimizer, plan.offload_weights) == (3, True, False)
    assert (plan.num_devices, plan.lora_rank) == (4, 8)
    offloaded = TrainingPlan.from_config({"deepspeed": "zero3_offload"}, {})
    assert offloaded.offload_weights
    sharded = TrainingPlan.from_config({"fsdp": "fsdp2", "gradient_checkpointing": False}, {})
    assert sharded.fsdp2
    assert sharded.gradient_checkpointing, "the preset checkpoints by itself"
    by_itself = {"fsdp": {"fsdp_config": {}}, "gradient_checkpointing": False}
    assert not TrainingPlan.from_config(by_itself, {}).gradient_checkpointing
    assert TrainingPlan.from_config({"quant_method": "bnb", "quant_bits": 4}, {}).tuner == "qlora"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tuner_type": "adalora"}, "tuner_type: 'adalora' cannot be estimated"),
        ({"quant_method": "bnb", "quant_bits": 8}, "quant_bits: 8 cannot be estimated"),
        ({"torch_dtype": "int8"}, "torch_dtype: 'int8' is unknown"),
        ({"deepspeed": "zero9"}, "deepspeed: 'zero9' is no configuration of deepspeed"),
        ({"deepspeed": "{stage"}, "is no configuration of deepspeed"),
        ({"fsdp": "mine.json"}, "fsdp: 'mine.json' is no configuration of fsdp"),
        ({"fsdp": {"fsdp": "full_shard offload"}}, "fsdp: .* cannot be estimated"),
        ({"fsdp": {"fsdp": "shard_grad_op"}}, "fsdp: .* cannot be estimated"),
        ({"fsdp": {"fsdp_config": {"fsdp_version": 1}}}, "fsdp: .* cannot be estimated"),
    ],
)
def test_what_cannot_be_estimated_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingPlan.from_config(config, {})


def test_target_modules_that_match_nothing_are_said() -> None:
    with pytest.raises(UserError, match="matches no module; use 'all-linear'"):
        model_sizes(tiny_config(), TrainingPlan(target_modules=("audio_ffn.up_proj",)))


@pytest.mark.parametrize(
    "more",
    [{"batch_size": 8}, {"max_length": 4096}, {"lora_rank": 64}, {"gradient_checkpointing": False},
     {"dtype": "float32"}, {"num_devices": 2}, {"tuner": "full"}],
    ids=str,
)  # fmt: skip
def test_more_takes_more(more: dict[str, Any]) -> None:
    config = tiny_config()
    assert (
        estimate(config, dataclasses.replace(LORA_3B, **more)).total
        > estimate(config, LORA_3B).total
    )


def test_fewer_targets_take_less() -> None:
    attention = dataclasses.replace(
        LORA_3B, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")
    )
    assert estimate(tiny_config(), attention).total < estimate(tiny_config(), LORA_3B).total


@pytest.mark.parametrize(
    ("options", "weights", "gradients", "optimizer"),
    [
        ({}, 2, 2, 4),  # no fp32 weights
        ({"zero_stage": 0}, 2, 2, 12),
        ({"zero_stage": 1}, 2, 2, 12 / 8),
        ({"zero_stage": 2}, 2, 2 / 8, 12 / 8),
        ({"zero_stage": 2, "offload_optimizer": True}, 2, 0, 0),
        ({"zero_stage": 3}, 2 / 8, 2 / 8, 12 / 8),
        ({"zero_stage": 3, "offload_optimizer": True, "offload_weights": True}, 0, 0, 0),
        ({"fsdp2": True}, 4 / 8, 4 / 8, 8 / 8),  # fp32 weights, sharded
    ],
)
def test_bytes_per_parameter(
    options: dict[str, Any], weights: float, gradients: float, optimizer: float
) -> None:
    """ZeRO (arXiv 1910.02054), figure 1, K = 12; eight devices."""
    result = estimate(CONFIG_3B, dataclasses.replace(FULL, **options))
    measured = (result.weights, result.gradients, result.optimizer)
    assert [size / result.sizes.base for size in measured] == pytest.approx(
        [weights, gradients, optimizer], rel=1e-6
    )


@pytest.mark.parametrize("config", [CONFIG_3B, CONFIG_7B], ids=["3b", "7b"])
def test_the_formulas_of_the_docstring(config: HiggsAudioV2Config) -> None:
    hidden, intermediate, num_layers = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    )

    def activations(tokens: int, per_hidden: int, per_intermediate: int) -> float:
        return 2 * num_layers * tokens * hidden + tokens * (
            per_hidden * hidden + per_intermediate * intermediate
        )

    lora = estimate(config, LORA_3B)
    by_formula = 2 * lora.sizes.base + 16 * lora.sizes.trained + activations(4 * 2048, 45, 19) + GIB
    assert by_formula == pytest.approx(lora.total, rel=0.02)
    for num_devices in (8, 64):
        full = estimate(config, dataclasses.replace(FULL, zero_stage=3, num_devices=num_devices))
        share = full.sizes.base / num_devices
        by_formula = 16 * share + max(activations(2 * 2048, 31, 12), min(4 * share, 4e9)) + 3 * GIB
        assert by_formula == pytest.approx(full.total, rel=0.03)


@pytest.mark.parametrize("config", [CONFIG_3B, CONFIG_7B], ids=["3b", "7b"])
def test_the_formula_of_fsdp2(config: HiggsAudioV2Config) -> None:
    for num_devices in (4, 8, 64):
        full = estimate(config, dataclasses.replace(FULL, fsdp2=True, num_devices=num_devices))
        outside = full.sizes.base - config.num_hidden_layers * full.sizes.layer
        kept = 2 * 2048 * (2 * config.num_hidden_layers * config.hidden_size)
        working = 2 * 2048 * (31 * config.hidden_size + 12 * config.intermediate_size)
        by_formula = (
            16 * full.sizes.base / num_devices
            + kept
            + working
            + GIB
            + 8 * full.sizes.layer
            + 2 * outside
        )
        assert by_formula == pytest.approx(full.total, rel=0.03)


@pytest.mark.parametrize(
    ("options", "per_parameter"),
    [
        ({"zero_stage": 2, "offload_optimizer": True}, 16),
        ({"zero_stage": 3, "offload_optimizer": True}, 16),
        ({"zero_stage": 3, "offload_optimizer": True, "offload_weights": True}, 18),
        ({"zero_stage": 3}, 0),
    ],
)
def test_what_is_offloaded_is_in_the_hosts_memory(
    options: dict[str, Any], per_parameter: int
) -> None:
    """And however many devices share it, it is there once."""
    for num_devices in (1, 8):
        result = estimate(CONFIG_3B, dataclasses.replace(FULL, num_devices=num_devices, **options))
        assert result.host == per_parameter * result.sizes.base
        assert ("host" in render(result)) is (per_parameter > 0)


@pytest.mark.parametrize(
    ("options", "per_parameter"),
    [
        ({"zero_stage": 2, "offload_optimizer": True}, 16),
        ({"zero_stage": 3, "offload_optimizer": True, "offload_weights": True}, 18),
    ],
)
def test_deepspeed_itself_counts_the_same_for_the_host(
    options: dict[str, Any], per_parameter: int
) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    result = estimate(CONFIG_3B, dataclasses.replace(FULL, num_devices=1, **options))
    if options["zero_stage"] == 3:
        theirs = estimate_zero3_model_states_mem_needs(
            result.sizes.base, 0, additional_buffer_factor=1
        )[0]
    else:
        theirs = estimate_zero2_model_states_mem_needs(
            result.sizes.base, additional_buffer_factor=1
        )[0]
    assert result.host == theirs


def test_a_table_and_a_verdict() -> None:
    result = estimate(CONFIG_3B, LORA_3B)
    table = render(result)
    assert table.splitlines()[-1].split()[:2] == ["total", f"{result.total / GIB:.2f}"]
    assert "not measured on a GPU" in table
    assert fits(result, 24)
    assert not fits(result, 16)
