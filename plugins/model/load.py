"""Strict loading of checkpoints, native or original. L2.

transformers drops the text head in silence and starts missing weights at random with a warning;
here a missing or surplus key is an error that names it. No code of a checkpoint is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from plugins.errors import problem
from plugins.files.disk import read_json
from plugins.files.hub import local_folder
from plugins.files.untrusted import ADAPTER_CONFIG, NamedByCheckpoint, check_adapter
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.model.original_format import MODEL_TYPE, format_of, generation_config, load_config
from plugins.model.weights import sources_of

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Begins the names of LoRA initialisations that change the base, each time otherwise.
RANDOM_BASE = "pissa_niter"
_HEAD = "text_lm_head"


def base_and_adapters(path: str, adapters: str | None = None) -> tuple[str, str | None]:
    """The folder of the base model and that of its LoRA weights: `path` may be a LoRA folder, which
    names its base."""
    file = Path(path) / ADAPTER_CONFIG
    if adapters is None and file.is_file():
        base = read_json(file, "copy it again from the training's folder").get(
            "base_model_name_or_path"
        )
        if not isinstance(base, str) or not base:
            remedy = "write the folder of the base model there"
            raise problem(
                source=str(file),
                field="base_model_name_or_path",
                value=base,
                reason="names no model",
                remedy=remedy,
            )
        path, adapters = NamedByCheckpoint(base), path
    return local_folder(path), adapters


def with_adapters(model: Any, adapters: Mapping[str, str]) -> Any:
    """`model` as a PeftModel with the LoRA weights of each folder of `adapters` (name -> folder),
    the first one active; without adapters as it is.

    Raises UserError if weights are pickled, do not fit this model or are not all there, and for an
    adapter of a kind that `plugins.files.untrusted` refuses."""
    if not adapters:
        return model
    from peft import PeftConfig, PeftModel

    tuned = None
    for name, folder in adapters.items():
        for needed in (ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
            if not (Path(folder) / needed).is_file():
                raise problem(
                    source=folder,
                    field="adapters",
                    value=needed,
                    reason="not found",
                    remedy="give the folder of a LoRA checkpoint",
                )
        check_adapter(Path(folder))
        _refuse_random_base(Path(folder))
        file, remedy = (
            Path(folder) / _ADAPTER_WEIGHTS,
            "give the base that it was trained on, or copy it again",
        )
        try:
            if tuned is None:
                # `PeftModel.from_pretrained` would load too: AdaLoRA cuts its ranks each time.
                config = PeftConfig.from_pretrained(folder)
                config.inference_mode = True
                tuned = PeftModel(model, config, adapter_name=name)
            # peft passes over a weight that finds no place, and tells only who loads by this call.
            report = tuned.load_adapter(folder, name)
        # A wrong shape, a file that breaks off, a module of `modules_to_save` that is not in it.
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            reason = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
            raise problem(
                source=str(file), field="weights", value=file.name, reason=reason, remedy=remedy
            ) from error
        speaks_only = model.text_lm_head is None
        lost = [
            key
            for key in (*report.unexpected_keys, *report.missing_keys)
            if not (speaks_only and _HEAD in key)
        ]
        if lost:
            raise problem(
                source=str(file),
                field="weights",
                value=lost[0],
                reason=f"does not belong to both ({len(lost)} such weights)",
                remedy=remedy,
            )
    assert tuned is not None
    tuned.set_adapter(next(iter(adapters)))
    return tuned


def _refuse_random_base(folder: Path) -> None:
    file = folder / ADAPTER_CONFIG
    name = read_json(file, "copy it again from the training's folder").get("init_lora_weights")
    if isinstance(name, str) and name.startswith(RANDOM_BASE):
        reason = "changes the base at random: the one that it was trained on is lost"
        remedy = f"give {folder / 'converted' / 'default'}, which MS-SWIFT writes beside it"
        raise problem(
            source=str(file), field="init_lora_weights", value=name, reason=reason, remedy=remedy
        )


def bare(model: Any) -> Any:
    """The model itself, LoRA layers in place, of a PeftModel or of what is none."""
    return (
        model.get_base_model()
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        else model
    )


class OriginalConfig(HiggsAudioV2Config):
    """What `AutoConfig` makes of an original config.json, for hosts that read it by themselves: the
    native config."""

    model_type = MODEL_TYPE

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return load_config(Path(pretrained_model_name_or_path))


def load_model(
    path: str, *, text_head: bool = True, **kwargs: Any
) -> HiggsAudioV2ForConditionalGeneration:
    """The model of folder `path`, as a native one; `kwargs` go to `from_pretrained` (dtype,
    device_map, config, ...).

    text_head: needed for training; speaking does without. Raises UserError if weights, the text
    head or any key is missing, surplus, damaged or of another shape."""
    folder = Path(path)
    config = load_config(folder)
    source_format = format_of(folder)
    kwargs.setdefault("config", config)
    found = sources_of(folder, config, source_format, text_head=text_head)
    if source_format == "original":
        weights = {key: source.read() for key, source in found.items()}
        model = HiggsAudioV2ForConditionalGeneration.from_pretrained(
            None, state_dict=weights, use_text_head=text_head, **kwargs
        )
        model.generation_config = GenerationConfig(**generation_config(config))
        # LoRA checkpoints name their base by it.
        model.name_or_path = model.config.name_or_path = str(folder)
        return model
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(
        path, use_text_head=text_head, **kwargs
    )
