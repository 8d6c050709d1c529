"""What a training on preferences (`swift rlhf --rlhf_type dpo`) has beside a fine-tuning.

    MS-SWIFT's arguments            --check-->         UserError for what would be another training
    outputs of a batch of pairs     --PreferenceMeter--> sums over the chosen answers and the pairs
    a PeftModel                     --without_adapter--> the reference
    a second model of MS-SWIFT's    --prepared-->        the same, where the trainer's own model is

The trainer is `plugins.preference_trainer`, the formulas are in `plugins.model.preferences`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import PeftModel
from torch import Tensor, nn

from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.model.modeling import DualLossOutput
from plugins.model.preferences import LOSSES, NAMES, PreferenceLoss
from plugins.training.meters import LossMeter
from plugins.training.resume import RUN_FILE
from plugins.training.start import check_type


def check(args: Any) -> None:
    """args: MS-SWIFT's, of `swift rlhf`. Raises UserError for what this kit does not train, or
    with which the reference would be another model than is meant."""
    check_type(args.rlhf_type)
    for option, value, reason, remedy in _unavailable(args):
        raise problem(source="options", field=option, value=value, reason=reason, remedy=remedy)
    loss = loss_of(args)
    if loss.name not in LOSSES:
        raise _refused("loss_type", loss.name, "is not available", f"give one of {LOSSES}")
    if loss.beta <= 0:
        raise _refused("beta", loss.beta, "leaves nothing to learn", "give more than 0")
    if loss.sft_weight < 0:
        raise _refused("rpo_alpha", loss.sft_weight, "unlearns what is chosen", "give 0 or more")
    if not 0 <= loss.label_smoothing < 0.5:
        reason = "is no share of pairs that are the wrong way round"
        raise _refused("label_smoothing", loss.label_smoothing, reason, "give 0 to 0.5")
    if loss.label_smoothing and loss.name == "ipo":
        reason = "has no meaning for loss_type ipo"
        raise _refused("label_smoothing", loss.label_smoothing, reason, "leave it out")


def loss_of(args: Any) -> PreferenceLoss:
    """args: MS-SWIFT's, of its command or of its trainer."""
    names = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    return PreferenceLoss(
        name=" ".join(map(str, names)),
        beta=args.beta,
        label_smoothing=args.label_smoothing,
        sft_weight=args.rpo_alpha or 0.0,
    )


_MERGE = "merge it into the model first (higgs-audio export), and train on from that with --model"


def _unavailable(args: Any) -> Iterator[tuple[str, Any, str, str]]:
    """Option, its value, what it would do, and what to do instead."""
    for option in ("packing", "padding_free"):
        if getattr(args, option):
            yield option, True, "does not keep the answers of a pair apart", "leave it out"
    for option in ("loss_weights", "ld_alpha", "sync_ref_model"):
        if getattr(args, option, None):
            yield option, getattr(args, option), "is not available for speech", "leave it out"
    if args.ref_adapters:
        yield "ref_adapters", args.ref_adapters[0], "is no reference here", _MERGE
    if args.tuner_type == "full":
        if args.resume_only_model and args.ref_model == args.model:
            reason = "would be the checkpoint that is resumed"
            yield "ref_model", args.ref_model, reason, "name the model that it was made of"
        return
    reason = "is not part of the reference, which is the model without any adapter"
    if args.resume_from_checkpoint and args.resume_only_model:
        # MS-SWIFT has named it in `adapters`, too.
        if not _is_of_preferences(Path(args.resume_from_checkpoint)):
            yield "resume_from_checkpoint", args.resume_from_checkpoint, reason, _MERGE
    elif args.adapters:
        yield "adapters", args.adapters[0], reason, _MERGE
    # These change weights of the model itself, which is the reference without its adapter.
    if str(args.init_weights).lower() not in {"true", "false", "gaussian"}:
        reason = "changes the model, which is the reference"
        yield "init_weights", args.init_weights, reason, "leave it out"
    if args.lora_bias != "none":
        reason = "trains the model itself, which is the reference"
        yield "lora_bias", args.lora_bias, reason, "leave it out"


def _is_of_preferences(checkpoint: Path) -> bool:
    """Whether its reference was the model without its adapter, too."""
    file = checkpoint / RUN_FILE
    if not file.is_file():
        return False
    return "beta" in read_json(file, "name another checkpoint")["fingerprint"]


def _refused(option: str, value: Any, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)


@dataclass
class PreferenceOutput(DualLossOutput):
    """Sums over the chosen answers of a batch, and over its pairs."""

    preferences: Tensor | None = None  # as `plugins.model.preferences.NAMES`


class PreferenceMeter(LossMeter):
    """Running sums of both losses of the chosen answers, and of the pairs."""

    def row_of(self, outputs: Any) -> Tensor:
        return torch.cat([outputs.preferences, super().row_of(outputs)])

    def drain(self) -> Any:
        """LossSums of text and audio, and the sums of the pairs."""
        total = self.take()
        if total is None:
            return None
        return *self.sums_of(total[len(NAMES) :]), total[: len(NAMES)]


def preference_metrics(sums: Tensor) -> dict[str, float]:
    """The names are MS-SWIFT's."""
    num_pairs, *totals = sums.tolist()
    means = {name: total / num_pairs for name, total in zip(NAMES[1:], totals, strict=True)}
    means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return {name: round(value, 8) for name, value in means.items()}


def without_dropout(model: nn.Module) -> None:
    """As MS-SWIFT's own trainer has it: dropout would be noise between model and reference."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """`model` is as it was before it got its adapter."""
    assert isinstance(model, PeftModel), "a full fine-tuning has a second model"
    is_training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(is_training)


def prepared(trainer: Any, reference: Any) -> Any:
    """The second model where the trainer's own is, in its precision, and divided as that is."""
    reference.requires_grad_(False).eval()
    if trainer.is_deepspeed_enabled:
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(reference, trainer.accelerator)
    if trainer.accelerator.is_fsdp2:
        return fsdp2_prepare_model(trainer.accelerator, reference)
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)
