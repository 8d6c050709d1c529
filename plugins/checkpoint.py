"""Strict loading of checkpoints, native or original. L2.

transformers drops the text head in silence and starts missing weights at random with a warning; here a missing or
surplus key is an error that names it. No code of a checkpoint is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from plugins.errors import problem, read_json
from plugins.hub import local_folder
from plugins.model_config import HiggsAudioV2Config
from plugins.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.original_format import ADAPTER_CONFIG, MODEL_TYPE, format_of, generation_config, load_config
from plugins.weights import sources_of


def base_and_adapters(path: str, adapters: str | None = None) -> tuple[str, str | None]:
    """The folder of the base model and that of its LoRA weights: `path` may be a LoRA folder, which names its base."""
    file = Path(path) / ADAPTER_CONFIG
    if adapters is None and file.is_file():
        base = read_json(file, "copy it again from the training's folder").get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            remedy = "write the folder of the base model there"
            raise problem(str(file), "base_model_name_or_path", base, "names no model", remedy)
        path, adapters = base, path
    return local_folder(path), adapters


def with_adapters(model: Any, adapters: str | None) -> Any:
    """`model` with the LoRA layers of folder `adapters` in place, or as it is. Raises UserError if there are none."""
    if adapters is None:
        return model
    from peft import PeftModel

    if not (Path(adapters) / ADAPTER_CONFIG).is_file():
        remedy = "give the folder of a LoRA checkpoint"
        raise problem(adapters, ADAPTER_CONFIG, None, "not found", remedy)
    return PeftModel.from_pretrained(model, adapters).get_base_model()


class OriginalConfig(HiggsAudioV2Config):
    """What `AutoConfig` makes of an original config.json, for hosts that read it by themselves: the native config."""

    model_type = MODEL_TYPE

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return load_config(Path(pretrained_model_name_or_path))


def load_model(path: str, *, text_head: bool = True, **kwargs: Any) -> HiggsAudioV2ForConditionalGeneration:
    """The model of folder `path`, as a native one; `kwargs` go to `from_pretrained` (dtype, device_map, config, ...).

    text_head: needed for training; speaking does without. Raises UserError if weights, the text head or any key is
    missing, surplus, damaged or of another shape.
    """
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
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(path, use_text_head=text_head, **kwargs)
