"""MS-SWIFT's options under which a run would silently be another one: refused before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swift.dataset import IterablePackingDataset, PackingDataset

from plugins.errors import UserError, problem
from plugins.training.optimizer import OPTIMIZER

_TEXT_ONLY = "recomputes a text loss on logits that are not text"
_ONE_RATE = "ignores audio_learning_rate"
_DEFAULT = "leave it at its default"


def refuse_other_losses(args: Any, model: Any) -> None:
    """Raise UserError for what MS-SWIFT trains with trainers of its own, which know text only:
    `swift rlhf`, classifiers, embeddings and rerankers."""
    if kind := getattr(args, "rlhf_type", None):
        reason = "compares texts, and rows of speech have none to compare"
        raise _refused("rlhf_type", kind, reason, "use `higgs-audio sft` or `swift sft`")
    if args.task_type != "causal_lm":
        raise _refused("task_type", args.task_type, "trains on text only", "leave it out")


def refuse_unsupported(args: Any, template: Any, train_dataset: Any = None) -> None:
    """Raise UserError for options under which the loss or the learning rate would silently be
    another one, and for what packs of MS-SWIFT 4.6 cannot be: streamed, or grouped by length."""
    for option, value, reason in _unsupported(args, template):
        raise _refused(option, value, reason, _DEFAULT)
    if isinstance(train_dataset, IterablePackingDataset):
        reason = (
            "encodes a stream in processes of its own, where a row that fails is left out in"
            " silence"
        )
        raise _refused(
            "packing", "true", reason, "leave --streaming out, or use --padding_free true"
        )
    if isinstance(train_dataset, PackingDataset) and args.group_by_length:
        reason = "has no meaning for packs, which are full"
        raise _refused("group_by_length", "true", reason, "leave it out")


def _unsupported(args: Any, template: Any) -> Iterator[tuple[str, Any, str]]:
    """Option, its value, and what it would do."""
    if template._loss_scale != "default":
        yield "loss_scale", template._loss_scale, _TEXT_ONLY
    if template.sequence_parallel_size != 1:
        yield "sequence_parallel_size", template.sequence_parallel_size, _TEXT_ONLY
    if template.truncation_strategy != "raise":
        yield "truncation_strategy", template.truncation_strategy, "cuts clips"
    # None, False or 0 unless they are asked for.
    for option in (
        "enable_dft_loss",
        "enable_channel_loss",
        "loss_type",
        "label_smoothing_factor",
    ):
        if getattr(args, option):
            yield option, getattr(args, option), _TEXT_ONLY
    if args.predict_with_generate:
        yield "predict_with_generate", True, "generates text"
    if not args.average_tokens_across_devices:
        yield "average_tokens_across_devices", False, "makes the loss depend on the number of ranks"
    if args.optimizer not in {None, OPTIMIZER}:
        yield "optimizer", args.optimizer, _ONE_RATE
    if isinstance(args.deepspeed, dict) and "optimizer" in args.deepspeed:
        yield "deepspeed", "optimizer", _ONE_RATE


def _refused(option: str, value: Any, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)
