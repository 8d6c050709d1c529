"""A checkpoint of any kind -> the model to train (`native_model`), or model and tokenizer to speak
with (`load_model`).

In: a folder or Hub id, native or original, base, merged or LoRA. transformers drops the text head
in silence and starts missing weights at random with a warning; here a missing or surplus key is an
error that names it. No code of a checkpoint is executed. This file knows nothing of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from plugins.errors import UserError, problem
from plugins.files.checkpoints import checkpoint_in
from plugins.files.disk import read_json
from plugins.files.hub import local_folder
from plugins.files.installation import require_device
from plugins.files.untrusted import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    NamedByCheckpoint,
    check_adapter,
)
from plugins.model.adapter_scale import require_scale, scale_adapters
from plugins.model.config import HiggsAudioV2Config
from plugins.model.joined import join
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.model.original_format import (
    MODEL_TYPE,
    format_of,
    generation_config,
    load_config,
    load_tokenizer,
)
from plugins.model.weights import sources_of
from plugins.settings import HiggsAudioSettings

MODEL_TYPES = ("higgs-audio-v2-3b", "higgs-audio-v2-7b")
Quantization = Literal["4bit", "8bit"]

# Begins the names of LoRA initialisations that change the base, each time otherwise.
RANDOM_BASE = "pissa_niter"
_HEAD = "text_lm_head"
_COPY_AGAIN = "copy it again from the training's folder"


def load_model(
    path: str,
    *,
    model_type: str | None = None,
    adapters: str | Mapping[str, str] | None = None,
    adapter_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    attn_impl: str | None = None,
    quantization: Quantization | None = None,
) -> tuple[Any, Any]:
    """`model, tokenizer` for `HiggsAudioGenerator(model, tokenizer)`: the seed document's
    `get_model_tokenizer`.

    path: folder or Hub id of a base or merged model, native or original, or a LoRA folder, which
    names its base; links such as MS-SWIFT's `best` and `last` too, and the output folder of a
    training, whose newest whole checkpoint is taken. adapters: a LoRA folder on it, or several by
    name. adapter_scale: how much of what they add is added, 0 to 4; what was trained whole
    (`modules_to_save`) stays as it was trained. dtype, device: default bfloat16 on the first GPU,
    else float32 on the CPU. attn_impl: of transformers, for example `flash_attention_2`.
    quantization: with bitsandbytes; codec and audio head stay as they are. model_type: only
    checked; the sizes stand in the checkpoint.

    Raises UserError for weights that are missing, surplus or of another shape, for adapters of
    another model, and for those that cannot be scaled."""
    require_scale(adapter_scale)
    if model_type not in (None, *MODEL_TYPES):
        raise problem(
            source="request",
            field="model_type",
            value=model_type,
            reason="is unknown",
            remedy=f"use one of {', '.join(MODEL_TYPES)}",
        )
    if device is not None:
        require_device(device)
    folder, named = _base_and_named(path, adapters)
    require_scale(adapter_scale, has_adapter=bool(named))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    options: dict[str, Any] = {"dtype": dtype}
    if attn_impl is not None:
        options["attn_implementation"] = attn_impl
    if quantization is not None:
        # bitsandbytes quantises while weights arrive on their device.
        options["quantization_config"] = _quantization(quantization, dtype)
        options["device_map"] = {"": device}
    model: Any = native_model(folder, text_head=False, **options)
    _keep_origins(model, folder, named)
    model = with_adapters(model, named)
    scale_adapters(model, adapter_scale, named)
    if quantization is None:
        model = model.to(device)
    if device.startswith("cuda"):
        join(bare(model))
    return model, load_tokenizer(Path(folder))


def _keep_origins(model: Any, folder: str, named: dict[str, str]) -> None:
    """On the model: the settings that it was trained with, and the folders of its adapters, both
    by the adapter's name. Each adapter has prompts of its own; without any, those of the model."""
    model.higgs_audio_settings = {}
    for name, trained in (named or {"": folder}).items():
        model.higgs_audio_settings[name] = HiggsAudioSettings.of_checkpoint(Path(trained))
    model.higgs_audio_adapters = named


def _base_and_named(
    path: str, adapters: str | Mapping[str, str] | None
) -> tuple[str, dict[str, str]]:
    """Folders: that of the base, and those of the adapters by name."""
    if isinstance(adapters, str):
        adapters = {"default": adapters}
    named: dict[str, str] = {}
    for name, trained in (adapters or {}).items():
        named[name] = checkpoint_in(trained, option="adapters")
    folder, own_adapter = base_and_adapters(path, next(iter(named.values()), None))
    if own_adapter is not None and not named:
        named = {"default": own_adapter}
    return folder, named


def native_model(
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
    # Handed in, not set afterwards: `from_pretrained` may dispatch the layers to several devices,
    # and accelerate keeps the forward that each of them has then.
    kwargs.setdefault("native_layers", HiggsAudioSettings.from_env().native_layers)
    sources = sources_of(folder, config, source_format, text_head=text_head)
    if source_format == "native":
        # Checked above, to the last key; transformers then reads the files by itself.
        try:
            return HiggsAudioV2ForConditionalGeneration.from_pretrained(
                path, use_text_head=text_head, **kwargs
            )
        # Entries that only real tensors stumble over, such as a dtype that is a number.
        except (AttributeError, NotImplementedError) as error:
            raise problem(
                source=str(folder / "config.json"),
                field="content",
                value=" ".join(str(error).split()),
                reason="is what loading this model ends in",
                remedy="download the file again",
            ) from error
    weights = {key: source.read() for key, source in sources.items()}
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        None, state_dict=weights, use_text_head=text_head, **kwargs
    )
    model.generation_config = GenerationConfig(**generation_config(config))
    # LoRA checkpoints name their base by it.
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def base_and_adapters(path: str, adapters: str | None = None) -> tuple[str, str | None]:
    """The folder of the base model and that of its LoRA weights: `path` may be a LoRA folder, which
    names its base. Of the output folder of a training the newest whole checkpoint is meant."""
    path = checkpoint_in(path, option="model")
    if adapters is not None:
        adapters = checkpoint_in(adapters, option="adapters")
    file = Path(path) / ADAPTER_CONFIG
    if adapters is None and file.is_file():
        base = read_json(file, _COPY_AGAIN).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise problem(
                source=str(file),
                field="base_model_name_or_path",
                value=base,
                reason="names no model",
                remedy="write the folder of the base model there",
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
        _check_adapter_folder(Path(folder))
        try:
            if tuned is None:
                # `PeftModel.from_pretrained` would load too: AdaLoRA cuts its ranks each time.
                config = PeftConfig.from_pretrained(folder)
                config.inference_mode = True
                tuned = PeftModel(model, config, adapter_name=name)
            # peft passes over a weight that finds no place, and tells only who loads by this call.
            report = tuned.load_adapter(folder, name)
        except ImportError:
            raise
        # A wrong shape, a file that breaks off, a module of `modules_to_save` that is not in it; an
        # entry of another type raises what peft happens to do with it.
        except Exception as error:
            reason = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
            raise _wrong_adapter(folder, ADAPTER_WEIGHTS, reason) from error
        # A model that only speaks has no text head for the adapter's.
        speaks_only = model.text_lm_head is None
        # peft looks for the name anywhere: adapter "b" would miss all keys of "base_model".
        missing = [key for key in report.missing_keys if name in key.split(".")]
        lost = []
        for key in (*report.unexpected_keys, *missing):
            if not (speaks_only and _HEAD in key):
                lost.append(key)
        if lost:
            reason = f"does not belong to both ({len(lost)} such weights)"
            raise _wrong_adapter(folder, lost[0], reason)
    assert tuned is not None
    tuned.set_adapter(next(iter(adapters)))
    return tuned


def bare(model: Any) -> Any:
    """The model itself, LoRA layers in place, of a PeftModel or of what is none."""
    is_peft = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    return model.get_base_model() if is_peft else model


class OriginalConfig(HiggsAudioV2Config):
    """What `AutoConfig` makes of an original config.json, for hosts that read it by themselves: the
    native config."""

    model_type = MODEL_TYPE

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> Any:
        return load_config(Path(pretrained_model_name_or_path))


def _check_adapter_folder(folder: Path) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise problem(
                source=str(folder),
                field="adapters",
                value=name,
                reason="not found",
                remedy="give the folder of a LoRA checkpoint",
            )
    check_adapter(folder)
    _refuse_random_base(folder)


def _wrong_adapter(folder: str, value: str, reason: str) -> UserError:
    return problem(
        source=str(Path(folder) / ADAPTER_WEIGHTS),
        field="weights",
        value=value,
        reason=reason,
        remedy="give the base that it was trained on, or copy it again",
    )


def _refuse_random_base(folder: Path) -> None:
    file = folder / ADAPTER_CONFIG
    name = read_json(file, _COPY_AGAIN).get("init_lora_weights")
    if isinstance(name, str) and name.startswith(RANDOM_BASE):
        reason = "changes the base at random: the one that it was trained on is lost"
        remedy = f"give {folder / 'converted' / 'default'}, which MS-SWIFT writes beside it"
        raise problem(
            source=str(file), field="init_lora_weights", value=name, reason=reason, remedy=remedy
        )


def _quantization(bits: Quantization, dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        install = 'pip install -e ".[quantization]"'
        raise problem(
            source="request",
            field="quantization",
            value=bits,
            reason="needs bitsandbytes",
            remedy=install,
        ) from None
    from transformers import BitsAndBytesConfig

    kept = ["audio_lm_head"]  # a fifth of a percent of the weights, and every code goes through it
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
