"""LoRA weights at another strength: what they add to the base, times one factor.

    W + s * B A  --scale_adapters-->  W + (factor * s) * B A

Beside the base and merged into it alike. What is no sum is not scaled: modules that were trained
whole stay as they were trained, and DoRA, whose magnitudes are a factor, is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Real
from typing import Any

from plugins.errors import UserError, problem

logger = logging.getLogger(__name__)

MAX_SCALE = 4.0
_KINDS = ("LORA", "ADALORA")
# Of those peft has names for, what leaves the base as it is. Others take from it what they begin
# with: without all of it the base is not whole.
_INIT_BESIDE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def require_scale(scale: float, *, has_adapter: bool = True) -> None:
    """Raise UserError unless `scale` is a factor of 0 to `MAX_SCALE`, and 1 without an adapter."""
    is_number = isinstance(scale, Real) and not isinstance(scale, bool)
    # Written so that NaN, which is neither above nor below, is refused.
    if not is_number or not 0 <= scale <= MAX_SCALE:
        remedy = "give 1 for the adapter as it was trained, less for less of it"
        raise _refused(scale, f"is no number from 0 to {MAX_SCALE:g}", remedy)
    if scale != 1 and not has_adapter:
        reason, remedy = "has no LoRA weights to scale", "give a LoRA folder, or leave it out"
        raise _refused(scale, reason, remedy)


def scale_adapters(model: Any, scale: float, folders: Mapping[str, str]) -> None:
    """Multiply what all adapters of a PeftModel add by `scale`, from its layers' own factors on:
    alpha / rank, or alpha / sqrt(rank) of rsLoRA. folders: name -> where they come from.

    Raises UserError for weights of which a part is not proportional to it."""
    if scale == 1:
        return
    for name, folder in folders.items():
        _check_kind(model.peft_config[name], scale, folder)
    # peft's `scale_layer` would leave out those that are not active, its `set_scale` count AdaLoRA
    # by another rule.
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if hasattr(module, "lora_A") and isinstance(scaling, dict):
            for name in scaling:
                scaling[name] *= scale


def _check_kind(config: Any, scale: float, folder: str) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    init = getattr(config, "init_lora_weights", None)
    reason = None
    if kind not in _KINDS:
        reason = f"is for LoRA weights, and these are of kind {kind}"
    elif getattr(config, "use_dora", False):
        reason = "is not available for DoRA, which multiplies the base's weights too"
    elif init not in _INIT_BESIDE_BASE:
        reason = f"is not available for LoRA weights that began as a part of the base ({init})"
    if reason is not None:
        raise _refused(scale, reason, f"leave it out for {folder}")
    if whole := getattr(config, "modules_to_save", None):
        logger.warning(
            "adapter_scale: %s: trained whole, so as trained and not scaled: %s",
            folder,
            ", ".join(whole),
        )


def _refused(scale: object, reason: str, remedy: str) -> UserError:
    return problem(
        source="request", field="adapter_scale", value=scale, reason=reason, remedy=remedy
    )
