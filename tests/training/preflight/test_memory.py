"""The memory estimate against the hosts that it describes, and its own formulas."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.memory import (
    CONFIG_3B,
    CONFIG_7B,
    FULL,
    LORA_3B,
    plan_of,
    tiny_config,
    tiny_model,
)
from swift.arguments.base_args.quant_args import QuantizeArguments
from swift.model import MODEL_MAPPING
from transformers.quantizers.quantizers_utils import should_convert_module

from plugins.errors import UserError
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.register import register_higgs_audio_all
from plugins.training.preflight.before_training import check_memory
from plugins.training.preflight.memory import (
    GIB,
    RowSize,
    estimate,
    fits,
    model_sizes,
    render,
    text_tokens_per_row,
)
from plugins.training.preflight.plan import TrainingPlan
from plugins.training.preflight.report import Report


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
    quantized = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, skipped):
            quantized += module.weight.numel()
    assert model_sizes(tiny_config(), TrainingPlan("qlora")).quantized == quantized
    weights = estimate(CONFIG_3B, TrainingPlan()).weights
    assert estimate(CONFIG_3B, TrainingPlan("qlora")).weights < 0.4 * weights


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
    assert TrainingPlan.from_config({"packing": "true"}, {}).packing
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
    hidden, intermediate = config.hidden_size, config.intermediate_size

    def activations(tokens: int, per_hidden: int, per_intermediate: int) -> float:
        working = per_hidden * hidden + per_intermediate * intermediate
        return tokens * (2 * config.num_hidden_layers * hidden + working)

    lora = estimate(config, LORA_3B)
    by_formula = 2 * lora.sizes.base + 16 * lora.sizes.trained + activations(4 * 2048, 45, 19) + GIB
    assert by_formula == pytest.approx(lora.total, rel=0.02)
    alone = estimate(config, dataclasses.replace(FULL, num_devices=1))
    by_formula = 8 * alone.sizes.base + activations(2 * 2048, 31, 12) + GIB
    assert by_formula == pytest.approx(alone.total, rel=0.02)
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
        gathered = 8 * full.sizes.layer + 2 * outside
        by_formula = 16 * full.sizes.base / num_devices + kept + working + gathered + GIB
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
    size = result.sizes.base
    if options["zero_stage"] == 3:
        theirs = estimate_zero3_model_states_mem_needs(size, 0, additional_buffer_factor=1)
    else:
        theirs = estimate_zero2_model_states_mem_needs(size, additional_buffer_factor=1)
    assert result.host == theirs[0]


@pytest.mark.parametrize(
    ("rows", "packing", "expected"),
    [
        ([], False, 3),
        ([RowSize(3, 200)], False, 3),
        ([RowSize(3, 200), RowSize(12, 900), RowSize(5, 40)], False, 12),  # four clips in a row
        ([RowSize(300, 350)], False, 300),  # an answer in writing
        ([RowSize(300, 350)], True, 1756),
        ([RowSize(3, 128)], True, 48),  # sixteen short clips in a pack
        ([RowSize(3000, 3001)], False, 2048),  # no more than there are positions
        ([RowSize(3000, 3001)], True, 2048),
    ],
)
def test_trained_text_of_a_row(rows: list[RowSize], packing: bool, expected: int) -> None:
    plan = dataclasses.replace(LORA_3B, packing=packing)
    assert text_tokens_per_row(rows, plan) == expected


def test_trained_text_is_counted() -> None:
    """128256 logits each in bf16, with their gradient: 4 GiB for rows that are all text."""
    few, many = estimate(CONFIG_3B, LORA_3B), estimate(CONFIG_3B, LORA_3B, text_tokens=2048)
    num_logits = 4 * 2048 * CONFIG_3B.vocab_size
    assert many.logits == pytest.approx(4 * num_logits, rel=0.07)  # and hidden states
    # Behind the work on a layer, which is the larger of the two otherwise.
    assert many.total - few.total == many.logits - few.backward > GIB
    assert "2048 trained text tokens a row" in render(many)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_preferences_take_two_answers_and_a_reference(tuner: str) -> None:
    """Of a full fine-tuning a second model, in the dtype that it is loaded in."""
    options = {"tuner_type": tuner, "per_device_train_batch_size": 4}
    of_rows, of_pairs = (
        TrainingPlan.from_config({**options, **more}, {}) for more in ({}, {"rlhf_type": "dpo"})
    )
    assert (of_rows.batch_size, of_pairs.batch_size) == (4, 8)
    assert of_pairs.has_reference == (tuner == "full")
    before, after = estimate(tiny_config(), of_rows), estimate(tiny_config(), of_pairs)
    assert after.activations == pytest.approx(2 * before.activations, rel=1e-6)
    reference = 2 * before.sizes.base if tuner == "full" else 0
    assert after.weights - before.weights == reference


def test_a_table_and_a_verdict() -> None:
    result = estimate(CONFIG_3B, LORA_3B)
    table = render(result)
    assert table.splitlines()[-1].split()[:2] == ["total", f"{result.total / GIB:.2f}"]
    assert "not measured on a GPU" in table
    assert fits(result, 24)
    assert not fits(result, 16)


FULL_BF16 = {"tuner_type": "full", "torch_dtype": "bfloat16"}
ROUNDED = "bf16, each step rounded stochastically"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (FULL_BF16, ROUNDED),
        ({**FULL_BF16, "deepspeed": "zero3"}, "fp32"),
        ({**FULL_BF16, "deepspeed": "zero2"}, "fp32"),
        ({**FULL_BF16, "fsdp": "fsdp2"}, "fp32"),
        ({**FULL_BF16, "torch_dtype": "float32"}, "fp32"),
        ({}, "fp32"),
        ({"quant_method": "bnb", "quant_bits": 4}, "fp32"),
        ({"lora_dtype": "bfloat16"}, ROUNDED),
        ({"modules_to_save": ["audio_lm_head"]}, "fp32, modules_to_save bf16 and each step"),
        ({"modules_to_save": ["audio_lm_head"], "deepspeed": "zero2"}, "fp32"),
    ],
)
def test_the_doctor_says_in_what_weights_are_kept(options: dict[str, Any], kept: str) -> None:
    report = Report(lambda text: None)
    check_memory(report, tiny_config(), options, {})
    (finding,) = report.findings
    assert finding.status == "info"
    assert f"trained weights are {kept}" in finding.text


def test_fp16_weights_fail_before_they_are_loaded() -> None:
    report = Report(lambda text: None)
    check_memory(report, tiny_config(), {**FULL_BF16, "torch_dtype": "float16"}, {})
    (finding,) = report.failed
    assert "float16 cannot hold trained weights: use torch_dtype bfloat16 or" in finding.text
