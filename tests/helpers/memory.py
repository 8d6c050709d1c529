"""Configs, plans and tiny models of the proportions of the published ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import yaml
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from swift.model import MODEL_MAPPING
from swift.pipelines.train.tuner import get_target_modules

from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.register import register_higgs_audio_all
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


def tiny_config(
    *, hidden: int = 128, intermediate: int = 344, num_layers: int = 2
) -> HiggsAudioV2Config:
    """The proportions of the 3B model."""
    return HiggsAudioV2Config(
        vocab_size=400,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        codebook_size=1026,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        audio_token_id=304,
        audio_bos_token_id=301,
        audio_delay_token_id=302,
    )


def tiny_model(config: HiggsAudioV2Config, plan: TrainingPlan) -> Any:
    """In training, as MS-SWIFT prepares it."""
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    model = model.to(getattr(torch, plan.dtype)).train()
    if plan.tuner == "full":
        return model
    targets = resolved_targets(model, plan)
    lora = LoraConfig(r=plan.lora_rank, lora_dropout=0.05, target_modules=targets)
    return get_peft_model(model, lora)


def resolved_targets(model: Any, plan: TrainingPlan) -> Any:
    """By MS-SWIFT's own function."""
    register_higgs_audio_all()
    model.model_meta = MODEL_MAPPING["higgs-audio-v2-3b"]
    targets: Any = plan.target_modules
    if not isinstance(targets, str):
        targets = list(targets)
    args = SimpleNamespace(
        target_modules=targets, freeze_llm=False, freeze_vit=True, freeze_aligner=True
    )
    return get_target_modules(args, model)


def plan_of(name: str, **env: str) -> TrainingPlan:
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return TrainingPlan.from_config(config, env)
