"""A checkpoint of any kind -> model and tokenizer to speak with. L3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from plugins.errors import problem
from plugins.model import load as checkpoint
from plugins.model.original_format import load_tokenizer
from plugins.settings import HiggsAudioSettings

MODEL_TYPES = ("higgs-audio-v2-3b", "higgs-audio-v2-7b")
Quantization = Literal["4bit", "8bit"]


def load_model(
    path: str,
    *,
    model_type: str | None = None,
    adapters: str | Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    attn_impl: str | None = None,
    quantization: Quantization | None = None,
) -> tuple[Any, Any]:
    """`model, tokenizer` for `HiggsAudioGenerator(model, tokenizer)`: the seed document's
    `get_model_tokenizer`.

    path: folder or Hub id of a base or merged model, native or original, or a LoRA folder, which
    names its base; links such as MS-SWIFT's `best` and `last` too. adapters: a LoRA folder on it,
    or several by name. dtype, device: default bfloat16 on the first GPU, else float32 on the CPU.
    attn_impl: of transformers, for example `flash_attention_2`. quantization: with bitsandbytes
    (extra `quantization`); codec and audio head stay as they are. model_type: only checked; the
    sizes stand in the checkpoint.

    Raises UserError for weights that are missing, surplus or of another shape, and for adapters of
    another model."""
    if model_type not in (None, *MODEL_TYPES):
        raise problem(
            source="request",
            field="model_type",
            value=model_type,
            reason="is unknown",
            remedy=f"use one of {', '.join(MODEL_TYPES)}",
        )
    named = {"default": adapters} if isinstance(adapters, str) else dict(adapters or {})
    folder, own = checkpoint.base_and_adapters(path, next(iter(named.values()), None))
    if own is not None and not named:
        named = {"default": own}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    options: dict[str, Any] = {"dtype": dtype}
    if attn_impl is not None:
        options["attn_implementation"] = attn_impl
    if quantization is not None:
        options |= {
            "quantization_config": _quantization(quantization, dtype),
            "device_map": {"": device},
        }
    model: Any = checkpoint.load_model(folder, text_head=False, **options)
    # Each adapter has prompts of its own; without any, those of the model.
    model.higgs_audio_settings = {
        name: HiggsAudioSettings.of_checkpoint(Path(each))
        for name, each in (named or {"": folder}).items()
    }
    model = checkpoint.with_adapters(model, named)
    return (model if quantization else model.to(device)), load_tokenizer(Path(folder))


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
