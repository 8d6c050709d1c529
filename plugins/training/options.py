"""MS-SWIFT's options under which a run would silently be another one: refused before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swift.dataset import IterablePackingDataset, PackingDataset

from plugins.errors import UserError, problem
from plugins.training import preferences
from plugins.training.optimizer import OPTIMIZER

_TEXT_ONLY = "recomputes a text loss on logits that are not text"
_ONE_RATE = "ignores audio_learning_rate"
_DEFAULT = "leave it at its default"


def refuse_other_losses(args: Any, model: Any) -> None:
    """Raise UserError for what MS-SWIFT trains with trainers of its own, which know text only:
    all of `swift rlhf` but DPO, classifiers, embeddings and rerankers."""
    if getattr(args, "rlhf_type", None):
        preferences.check(args)
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
    # What of a row is trained its own marks say; MS-SWIFT's default for preferences is no wish.
    if template._loss_scale != ("last_round" if template.compares else "default"):
        yield "loss_scale", template._loss_scale, _TEXT_ONLY
    if template.sequence_parallel_size != 1:
        yield "sequence_parallel_size", template.sequence_parallel_size, _TEXT_ONLY
    if template.truncation_strategy != "raise":
        yield "truncation_strategy", template.truncation_strategy, "cuts clips"
    # None, False or 0 unless they are asked for.
    of_text = ["enable_dft_loss", "enable_channel_loss", "label_smoothing_factor"]
    if not template.compares:
        of_text.append("loss_type")
    for option in of_text:
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
