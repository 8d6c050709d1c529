"""An MS-SWIFT command -> what of it decides about GPU memory.

Flat keys of a YAML file and the environment in, a frozen plan out. Knows no model:
`plugins.training.preflight.memory` counts."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plugins.errors import problem


@dataclass(frozen=True)
class TrainingPlan:
    """What of an MS-SWIFT command decides about memory; defaults are MS-SWIFT's."""

    tuner: Literal["full", "lora", "qlora"] = "lora"
    lora_rank: int = 8
    target_modules: tuple[str, ...] | str = ("all-linear",)  # names, or one regular expression
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch_size: int = 1  # rows per device and micro-batch
    max_length: int = 2048  # text tokens + delayed frames
    gradient_checkpointing: bool = True
    num_devices: int = 1
    zero_stage: int | None = None  # None: no DeepSpeed
    offload_optimizer: bool = False
    offload_weights: bool = False
    fsdp2: bool = False
    packing: bool = False  # rows fill each other's up to max_length
    has_reference: bool = False  # a second model, whose weights are not trained

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> TrainingPlan:
        """From the flat keys of a YAML file for `swift sft` and the environment (default: the
        process's).

        Raises UserError for a tuner, dtype or sharding that cannot be estimated.
        """
        # MS-SWIFT lets the environment win over the file (swift/cli/main.py, parse_yaml_args).
        env = {**(config.get("ENV") or {}), **(os.environ if env is None else env)}
        names = config.get("target_modules", "all-linear")
        if isinstance(names, str):
            names = names.split()
        zero, fsdp = _deepspeed_section(config.get("deepspeed")), _fsdp_section(config.get("fsdp"))
        compares = bool(config.get("rlhf_type"))
        checkpointing = str(config.get("gradient_checkpointing", True)).lower() == "true"
        if fsdp is not None and fsdp.get("activation_checkpointing"):
            # FSDP2 checkpoints by itself; MS-SWIFT then switches the flag off (sft_args.py).
            checkpointing = True
        return cls(
            tuner=_tuner(config),
            lora_rank=int(config.get("lora_rank", 8)),
            target_modules=config.get("target_regex") or tuple(names),
            dtype=_dtype(config),
            # A pair of answers is two rows.
            batch_size=int(config.get("per_device_train_batch_size", 1)) * (2 if compares else 1),
            # Without it MS-SWIFT takes the model's max_position_embeddings.
            max_length=int(config.get("max_length") or 2048),
            gradient_checkpointing=checkpointing,
            num_devices=int(env.get("NPROC_PER_NODE") or 1) * int(env.get("NNODES") or 1),
            zero_stage=None if zero is None else int(zero.get("stage", 0)),
            offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offload_weights=_is_offloaded(zero, "offload_param"),
            fsdp2=fsdp is not None,
            packing=str(config.get("packing", False)).lower() == "true",
            has_reference=compares and _tuner(config) == "full",
        )

    @property
    def master_weights(self) -> bool:
        """Whether trained weights are fp32; without it they are bf16, and rounded stochastically
        (`plugins.training.adamw`).

        MS-SWIFT loads the model in `torch_dtype`, Trainer(bf16=True) only adds autocast, and
        AdamW's states have the dtype of their parameter (torch/optim/adam.py: zeros_like).
        DeepSpeed clones an fp32 partition (zero/stage_1_and_2.py, stage3.py), accelerate upcasts
        what FSDP2 trains (fsdp_utils.py, fsdp2_prepare_model), peft upcasts adapters
        (tuners_utils.py, cast_adapter_dtype)."""
        return (
            self.zero_stage is not None
            or self.fsdp2
            or self.tuner != "full"
            or self.dtype == "float32"
        )


def _tuner(config: Mapping[str, Any]) -> Any:
    name, bits = config.get("tuner_type", "lora"), config.get("quant_bits")
    if name not in {"full", "lora"}:
        raise problem(
            source="options",
            field="tuner_type",
            value=name,
            reason="cannot be estimated",
            remedy="use 'lora' or 'full'",
        )
    if bits is None:
        return name
    # Half a byte per weight is counted for bitsandbytes' four bits only.
    if name == "full" or str(bits) != "4" or config.get("quant_method") != "bnb":
        raise problem(
            source="options",
            field="quant_bits",
            value=bits,
            reason="cannot be estimated",
            remedy="use LoRA, quant_method bnb, quant_bits 4",
        )
    return "qlora"


def _dtype(config: Mapping[str, Any]) -> Any:
    name = config.get("torch_dtype") or "bfloat16"  # MS-SWIFT: as in the checkpoint's config.json
    if name not in {"bfloat16", "float16", "float32"}:
        raise problem(
            source="options",
            field="torch_dtype",
            value=name,
            reason="is unknown",
            remedy="use bfloat16, float16 or float32",
        )
    return name


def _deepspeed_section(value: Any) -> dict[str, Any] | None:
    """`zero_optimization` of a preset of MS-SWIFT, a JSON file, JSON text or a mapping; None
    without DeepSpeed."""
    return dict(_read("deepspeed", value).get("zero_optimization", {})) if value else None


def _fsdp_section(value: Any) -> dict[str, Any] | None:
    """`fsdp_config`, given as DeepSpeed's is; None without FSDP."""
    if not value:
        return None
    read = _read("fsdp", value)
    section = dict(read.get("fsdp_config", {}))
    # MS-SWIFT's defaults (sft_args.py, _init_fsdp).
    is_whole = "full_shard" in read.get("fsdp", "full_shard") and section.get(
        "reshard_after_forward", True
    )
    if section.get("fsdp_version", 2) != 2 or not is_whole or "offload" in read.get("fsdp", ""):
        raise problem(
            source="options",
            field="fsdp",
            value=value,
            reason="cannot be estimated",
            remedy="use FSDP2 with full_shard, without offload",
        )
    return section


def _read(option: str, value: Any) -> dict[str, Any]:
    try:
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            value = _file(value).read_text("utf-8")
        if isinstance(value, str):
            value = json.loads(value)
        return dict(value)
    except (OSError, json.JSONDecodeError) as error:
        raise problem(
            source="options",
            field=option,
            value=value,
            reason=f"is no configuration of {option} ({error})",
            remedy="use a preset of MS-SWIFT (zero2, zero3, fsdp2) or a JSON file",
        ) from error


def _file(name: str) -> Path:
    swift = importlib.util.find_spec("swift")  # does not import it
    for folder in (swift.submodule_search_locations if swift else None) or []:
        preset = Path(folder) / "config" / f"{name}.json"
        if preset.is_file():
            return preset
    return Path(name)


def _is_offloaded(zero: dict[str, Any] | None, key: str) -> bool:
    return ((zero or {}).get(key) or {}).get("device", "none") != "none"
