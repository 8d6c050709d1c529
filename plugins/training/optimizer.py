"""Two learning rates: trainable parameters -> an optimizer whose groups are base and audio, each
with and without weight decay.

Knows names of parameters, not what they compute. Which steps are lost in bf16, and how none is:
`plugins.training.adamw`."""

from __future__ import annotations

import re
from typing import Any

import torch
from swift.optimizers import OptimizerCallback
from swift.utils import get_logger
from transformers import Trainer
from transformers.training_args import OptimizerNames

from plugins.errors import problem
from plugins.settings import HiggsAudioSettings
from plugins.training.adamw import StochasticAdamW

logger = get_logger()

OPTIMIZER = "higgs_audio"  # its name in MS-SWIFT's mapping
BF16_MASTER = "bf16_master_weights_and_grads"  # of DeepSpeed: no fp32 copies
_AUDIO_PARAMETER = re.compile(
    r"(^|\.)(audio_mlp|audio_input_layernorm|audio_post_attention_layernorm"
    r"|embed_audio_tokens|audio_lm_head)\."
)


def is_audio_parameter(name: str) -> bool:
    """Audio FFN, audio norms, audio embedding, audio head, and the LoRA weights on any of them."""
    return _AUDIO_PARAMETER.search(name) is not None


class HiggsAudioOptimizerCallback(OptimizerCallback):
    """MS-SWIFT's hook. Raises UserError for an `optim` with groups of its own, and if nothing is
    left to train."""

    def create_optimizer(self, model: Any = None) -> Any:
        if model is None:
            model = self.trainer.model
        settings: HiggsAudioSettings = self.trainer.template.settings
        optimizer_cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, model)
        if {"params", "model", "optimizer_dict"} & kwargs.keys():
            raise problem(
                source="options",
                field="optim",
                value=OptimizerNames(self.args.optim).value,
                reason="builds its own parameter groups, so audio_learning_rate would be ignored",
                remedy="use adamw_torch or a similar one",
            )
        groups = parameter_groups(
            model,
            decay_names=set(Trainer.get_decay_parameter_names(self.trainer, model)),
            learning_rate=self.args.learning_rate,
            audio_learning_rate=settings.audio_learning_rate,
            weight_decay=self.args.weight_decay,
        )
        if not groups:
            raise problem(
                source="options",
                field="freeze_parameters",
                value="all",
                reason="are frozen: nothing is left to train",
                remedy="freeze less, or name trainable_parameters",
            )
        for group in groups:
            kind = "audio" if group["audio"] else "base"
            size = sum(map(torch.numel, group["params"]))
            rate, decay = group["lr"], group["weight_decay"]
            logger.info(f"{kind} parameters: {size:,} at {rate:g}, weight decay {decay:g}")
        return self._optimizer(groups, optimizer_cls, kwargs)

    def _optimizer(
        self, groups: list[dict[str, Any]], optimizer_cls: Any, kwargs: dict[str, Any]
    ) -> Any:
        """The one that was asked for, or ours where it would round most of each step away."""
        kept, is_lossy = precision(self.trainer, groups)
        logger.info(f"trained weights: {kept}")
        if not is_lossy:
            return optimizer_cls(groups, **kwargs)
        if not issubclass(optimizer_cls, torch.optim.AdamW):
            raise problem(
                source="options",
                field="optim",
                value=OptimizerNames(self.args.optim).value,
                reason="would round most of each step of bf16 weights away",
                remedy="use adamw_torch, which is rounded stochastically, or --torch_dtype float32",
            )
        kwargs.pop("fused", None)
        return StochasticAdamW(groups, seed=self.args.seed, **kwargs)


def precision(trainer: Any, groups: list[dict[str, Any]]) -> tuple[str, bool]:
    """In what the weights of `groups` are kept from step to step, and whether a step of an ordinary
    optimizer would be rounded to bf16.

    Raises UserError for fp16 weights that nobody copies, whose gradients torch refuses to scale,
    and for a DeepSpeed that is told to keep bf16 ones."""
    dtypes = set()
    for group in groups:
        dtypes |= {parameter.dtype for parameter in group["params"]}
    if trainer.is_deepspeed_enabled:
        config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        if config.get("bf16", {}).get(BF16_MASTER):
            raise problem(
                source="options",
                field="deepspeed",
                value=BF16_MASTER,
                reason="would round most of each step away",
                remedy="leave it out of the configuration",
            )
        return "fp32, DeepSpeed's copies", False
    # accelerate makes them so before the first step, if it computes in half precision.
    if trainer.is_fsdp_enabled and (trainer.args.bf16 or trainer.args.fp16):
        return "fp32, by FSDP", False
    if torch.float16 in dtypes:
        raise problem(
            source="options",
            field="torch_dtype",
            value="float16",
            reason="cannot hold trained weights",
            remedy="use bfloat16 or float32",
        )
    if torch.bfloat16 not in dtypes:
        return "fp32", False
    kept = "bf16, each step computed in fp32 and rounded stochastically"
    if torch.float32 in dtypes:  # LoRA's own beside whole modules of the base
        kept = f"fp32, and those of the base {kept}"
    return kept, True


def parameter_groups(
    model: Any,
    *,
    decay_names: set[str],
    learning_rate: float,
    audio_learning_rate: float | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Non-empty groups of the trainable parameters: base before audio, decayed before not
    decayed."""
    if audio_learning_rate is None:
        audio_learning_rate = learning_rate
    members: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = is_audio_parameter(name), name not in decay_names
            members.setdefault(kind, []).append(parameter)
    groups = []
    # In an order that no model changes: a resumed optimizer finds its moments by their place.
    for is_audio, no_decay in sorted(members):
        group = {
            "params": members[is_audio, no_decay],
            "lr": audio_learning_rate if is_audio else learning_rate,
            "weight_decay": 0.0 if no_decay else weight_decay,
            "audio": is_audio,
        }
        groups.append(group)
    return groups
