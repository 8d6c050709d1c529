"""What MS-SWIFT's tuner options train: what was meant, in fact, and found again by loading.

    tuner options      --settle-->          the same, with names of modules that are there
    model with adapter --lost-->            trainable weights that loading would not bring back
    first step         --check_gradients--> trainable weights that nothing depends on
    first save         --check_saved-->     weights that are not in the file

peft and MS-SWIFT pass over a name that matches nothing, and over a weight that nothing uses. The
last three checks know no names: they hold for options that nobody has thought of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from swift.utils import get_logger

from plugins.errors import UserError, did_you_mean, problem
from plugins.model.load import RANDOM_BASE

logger = get_logger()

_NO_ADAPTER = "makes no adapter of this model that could be loaded to speak"
_UNAVAILABLE = {
    "adalora": "cannot be resumed, and its orthogonality term is not part of our loss",
    "vera": "is not loaded to speak: peft makes its projections anew instead of reading them",
    **dict.fromkeys(
        ("adapter", "bone", "dummy", "ia3", "llamapro", "longlora", "lora_llm", "reft"),
        _NO_ADAPTER,
    ),
}
# Read by `--tuner_type full` only, with the value that says nothing.
_OF_FULL: dict[str, Any] = {
    "freeze_parameters": [],
    "freeze_parameters_regex": None,
    "freeze_parameters_ratio": 0,
    "trainable_parameters": [],
    "trainable_parameters_regex": None,
}
# The module that holds the weight has the name of the one around it. Of a name that matches both,
# peft trains a copy that is never run.
_CODES = "embed_audio_tokens"
_MOST_NAMES = 5


def settle(args: Any, model: Any) -> None:
    """Let the tuner options of `args`, MS-SWIFT's, name the modules of `model`; changes `args`.

    model: before anything wraps it. Raises UserError for a tuner or initialisation that cannot be
    spoken with, for a name that matches nothing, and for an option that would be ignored.
    """
    tuner = args.tuner_type
    if tuner in _UNAVAILABLE:
        remedy = "use lora, boft, fourierft or full"
        raise _refused("tuner_type", tuner, _UNAVAILABLE[tuner], remedy)
    if not args.safe_serialization:
        reason = "writes pickles, which are never read"
        raise _refused("safe_serialization", False, reason, "leave it out")
    if tuner == "full":
        if args.adapters:
            reason = "is ignored by tuner_type full"
            remedy = "merge it into the model first: higgs-audio export"
            raise _refused("adapters", args.adapters[0], reason, remedy)
        _check_parameters(args, model)
        return
    if args.use_swift_lora:
        raise _refused("use_swift_lora", True, _NO_ADAPTER, "leave it out")
    if str(args.init_weights).startswith(RANDOM_BASE):
        reason = "changes the base at random, otherwise each time that it is loaded"
        raise _refused("init_weights", args.init_weights, reason, "use pissa, which is exact")
    for option, nothing in _OF_FULL.items():
        if (value := getattr(args, option)) != nothing:
            reason = f"is ignored by tuner_type {tuner}"
            remedy = "name modules in target_modules or modules_to_save, or use tuner_type full"
            raise _refused(option, value, reason, remedy)
    _settle_modules(args, model)


def _settle_modules(args: Any, model: Any) -> None:
    """`target_modules` and `modules_to_save`, each matched as peft does it."""
    paths = list(dict(model.named_modules()))
    if isinstance(args.target_modules, str):  # an expression: peft raises if it matches nothing
        args.target_modules = _meant(args.target_modules)
    else:
        args.target_modules = list(map(_meant, args.target_modules))
        names = sorted(set(args.target_modules) - {"all-linear", "all-embedding"})
        dotted = [f".{path}" for path in paths]
        for name in names:
            if not _ends_one_of(dotted, f".{name}"):
                raise _unknown("target_modules", name, paths)
        if names and "all-linear" in args.target_modules:
            reason = "are ignored beside all-linear"
            remedy = "name every module instead, or put these into modules_to_save"
            raise _refused("target_modules", names, reason, remedy)
    args.modules_to_save = list(map(_meant, args.modules_to_save))
    words: set[str] = set()
    if args.tuner_type == "lora":
        # Only LoRA's configuration is made with these words resolved.
        words = {"all-embedding", "all-norm"}
    for name in sorted(set(args.modules_to_save) - words):
        # Without the dot: peft compares letters here, not names.
        if not _ends_one_of(paths, name):
            raise _unknown("modules_to_save", name, paths)


def _ends_one_of(paths: list[str], ending: str) -> bool:
    return any(path.endswith(ending) for path in paths)


def _meant(name: str) -> str:
    """The audio FFN as transformers calls it; of two modules of one name, the inner one."""
    meant = name.replace("audio_ffn", "audio_mlp")
    if meant in (_CODES, f"model.{_CODES}"):
        meant = f"{meant}.{_CODES}"
    if meant != name:
        logger.info(f"{name!r} is taken for {meant!r}")
    return meant


def _unknown(option: str, name: str, paths: list[str]) -> UserError:
    leaves = {path.rpartition(".")[2] for path in paths}
    known = filter(str.isidentifier, leaves)  # neither the number of a layer nor the model itself
    return _refused(option, name, "matches no module", did_you_mean(name, known))


def _refused(option: str, value: Any, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)


def _check_parameters(args: Any, model: Any) -> None:
    """Raise UserError if an option of a full fine-tuning names parameters that are not there."""
    names = list(dict(model.named_parameters()))
    tops = {".".join(name.split(".")[:2]).removesuffix(".weight") for name in names}
    arch = model.model_meta.model_arch
    # MS-SWIFT adds these by itself: not every checkpoint has a tower.
    own = {*arch.language_model, *arch.vision_tower, *arch.aligner, *arch.generator}
    for option in ("freeze_parameters", "trainable_parameters"):
        for prefix in getattr(args, option):
            if prefix not in own and not any(name.startswith(prefix) for name in names):
                reason = "is the beginning of no parameter's name"
                raise _refused(option, prefix, reason, did_you_mean(prefix, tops))
        option = f"{option}_regex"
        pattern = getattr(args, option)
        if pattern is None:
            continue
        try:
            expression = re.compile(pattern)
        except re.error as error:
            reason = f"is no regular expression ({error})"
            raise _refused(option, pattern, reason, "mend it") from None
        if not any(map(expression.search, names)):
            raise _refused(option, pattern, "matches no parameter", did_you_mean(pattern, tops))


def adapter_keys(model: Any) -> set[str]:
    """What a saved adapter of `model` is to hold; nothing if `model` has none.

    To be called before DeepSpeed or FSDP wraps it: afterwards it would need all ranks.
    """
    if not isinstance(model, PeftModel):
        return set()
    return set(get_peft_model_state_dict(model, save_embedding_layers=False))


def lost(model: Any) -> list[str]:
    """Trainable weights of a PeftModel that would not be found again after saving and loading.

    Saves into memory and loads the same values into the same model: no weight changes.
    """
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    trainable = set(dict(_trainable(model)))
    try:
        loaded: Any = set_peft_model_state_dict(model, saved)
    except KeyError as error:  # two modules of `modules_to_save`, one inside the other, share a key
        return [str(error.args[0])]
    return sorted(trainable.intersection(loaded.missing_keys)) + list(loaded.unexpected_keys)


def _trainable(model: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def check_gradients(trainer: Any) -> None:
    """After a backward pass: raise UserError, on each rank, for trainable weights without gradient.

    A gradient of zeros is one: LoRA's A has it at first, and the audio half in a batch of text.
    """
    if trainer.is_deepspeed_enabled:  # keeps gradients to itself
        return
    trainable = list(_trainable(trainer.model))
    has_gradient = [int(weight.grad is not None) for _, weight in trainable]
    reached = torch.tensor(has_gradient, device=trainer.args.device)
    if dist.is_initialized():
        dist.all_reduce(reached, dist.ReduceOp.MAX)  # a rank may have had text only
    names = []
    for (name, _), is_reached in zip(trainable, reached.tolist(), strict=True):
        if not is_reached:
            names.append(name)
    if names:
        raise problem(
            source="training",
            field="trainable parameter",
            value=names[0],
            reason=f"has no gradient after the first step: it is not what runs ({_listed(names)})",
            remedy="leave it out of modules_to_save, target_modules or trainable_parameters",
        )


def check_saved(folder: Path, keys: set[str]) -> None:
    """Raise UserError if the adapter in `folder`, just saved, does not hold one of `keys`."""
    if not keys:
        return
    file = folder / SAFETENSORS_WEIGHTS_NAME
    with safe_open(file, framework="pt") as weights:
        missing = sorted(keys.difference(weights.keys()))
    if missing:
        raise problem(
            source=str(file),
            field="weights",
            value=missing[0],
            reason=f"was trained and is not in the file ({_listed(missing)})",
            remedy="train without the option that names it",
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    return f"{len(names)} in all: {shown}"
