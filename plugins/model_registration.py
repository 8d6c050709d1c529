"""MS-SWIFT's model registry: `higgs-audio-v2-3b` and `higgs-audio-v2-7b`.

In: a model folder. Out: config, tokenizer and model, as `plugins.model` loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swift.model import (
    Model,
    ModelGroup,
    ModelLoader,
    ModelMeta,
    MultiModelKeys,
    register_model,
    register_model_arch,
)
from transformers import AutoConfig

from plugins.audio.codec import CODEC_FOLDER
from plugins.errors import problem
from plugins.files.hub import MODELS_3B
from plugins.model import packed_attention
from plugins.model.config import HiggsAudioV2Config
from plugins.model.load import MODEL_TYPES, OriginalConfig, load_config, native_model
from plugins.model.original_format import load_tokenizer
from plugins.ms_swift.template import TEMPLATE_TYPE
from plugins.settings import SETTINGS_FILE

ARCHITECTURE = "HiggsAudioV2ForConditionalGeneration"
_MODEL_ARCH = "higgs_audio_v2"


class HiggsAudioLoader(ModelLoader):
    """Text head loaded, every missing key an error, no remote code, the tokenizer as the processor.

    The native processor would build the codec eagerly, inside ZeRO-3's init context, and does not
    pickle."""

    default_trust_remote_code = False

    def __init__(self, *args: Any, attn_impl: str | None = None, **kwargs: Any) -> None:
        # MS-SWIFT packs with flash attention only. This name of it does not say whose it is: here
        # torch's own. That of the package is `flash_attention_2`.
        if attn_impl == packed_attention.FLASH_ATTENTION:
            attn_impl = packed_attention.NAME
        super().__init__(*args, attn_impl=attn_impl, **kwargs)

    def get_config(self, model_dir: str) -> Any:
        return load_config(Path(model_dir))

    def get_processor(self, model_dir: str, config: Any) -> Any:
        return load_tokenizer(Path(model_dir))

    def get_model(
        self, model_dir: str, config: Any, processor: Any, model_kwargs: dict[str, Any]
    ) -> Any:
        try:
            return native_model(model_dir, config=config, **model_kwargs)
        except ImportError as error:
            if "flash_attention" not in (self.attn_impl or ""):
                raise
            raise problem(
                source="options",
                field="attn_impl",
                value=self.attn_impl,
                reason="needs a package that cannot be used here",
                remedy=f"use {packed_attention.FLASH_ATTENTION}, which torch brings",
            ) from error


def register() -> None:
    """Idempotent."""
    packed_attention.register()
    for config in (HiggsAudioV2Config, OriginalConfig):
        # MS-SWIFT reads config.json with trust_remote_code=True; a class that is registered comes
        # before a file of the checkpoint, so that no code of a checkpoint runs.
        AutoConfig.register(config.model_type, config, exist_ok=True)
    # Only some original checkpoints have a tower: MS-SWIFT freezes it by default (`--freeze_vit`,
    # `--freeze_aligner`).
    keys = MultiModelKeys(
        _MODEL_ARCH,
        language_model=["model", "text_lm_head", "audio_lm_head"],
        vision_tower=["audio_tower"],
        aligner=["audio_tower.audio_encoder_proj"],
    )
    register_model_arch(keys, exist_ok=True)
    model_3b, model_7b = MODEL_TYPES
    published = ModelGroup([Model(name, name) for name in MODELS_3B])
    _register(model_3b, [published], ARCHITECTURE)
    # No 7B weights are public, and only one type may claim the architecture, else MS-SWIFT cannot
    # tell the type of a checkpoint.
    _register(model_7b, [], f"{ARCHITECTURE}7B")


def _register(model_type: str, groups: list[ModelGroup], architecture: str) -> None:
    meta = ModelMeta(
        model_type,
        groups,
        HiggsAudioLoader,
        template=TEMPLATE_TYPE,
        model_arch=_MODEL_ARCH,
        architectures=[architecture],
        additional_saved_files=[
            "processor_config.json",
            "chat_template.jinja",
            CODEC_FOLDER,
            SETTINGS_FILE,
        ],
        is_multimodal=True,
        tags=["audio", "tts"],
    )
    register_model(meta, exist_ok=True)
