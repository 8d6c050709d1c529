"""MS-SWIFT's model registry: `higgs-audio-v2-3b` and `higgs-audio-v2-7b`. L3: glue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import swift
from swift.model import (
    Model,
    ModelGroup,
    ModelLoader,
    ModelMeta,
    MultiModelKeys,
    model_meta,
    register_model,
    register_model_arch,
)
from swift.tuners import Swift
from swift.utils import get_logger
from transformers import AutoConfig

from plugins.audio.codec import CODEC_FOLDER
from plugins.files.hub import MODELS_3B
from plugins.files.untrusted import check_adapter, check_model
from plugins.model.config import HiggsAudioV2Config
from plugins.model.load import OriginalConfig, load_config, native_model
from plugins.model.original_format import format_of, load_tokenizer
from plugins.ms_swift.template import TEMPLATE_TYPE
from plugins.settings import SETTINGS_FILE

logger = get_logger()

MODEL_TYPES = ("higgs-audio-v2-3b", "higgs-audio-v2-7b")
ARCHITECTURE = "HiggsAudioV2ForConditionalGeneration"
_MODEL_ARCH = "higgs_audio_v2"


class HiggsAudioLoader(ModelLoader):
    """Text head loaded, every missing key an error, no remote code, the tokenizer as the processor.

    The native processor would build the codec eagerly, inside ZeRO-3's init context, and does not
    pickle."""

    default_trust_remote_code = False

    def get_config(self, model_dir: str) -> Any:
        return load_config(Path(model_dir))

    def get_processor(self, model_dir: str, config: Any) -> Any:
        return load_tokenizer(Path(model_dir))

    def get_model(
        self, model_dir: str, config: Any, processor: Any, model_kwargs: dict[str, Any]
    ) -> Any:
        return native_model(model_dir, config=config, **model_kwargs)


def refuse_untrusted_files() -> None:
    """Let MS-SWIFT look at the files of a model or an adapter as `plugins.files.untrusted` does,
    before it loads them.

    4.6 reads config.json with trust_remote_code=True (`_get_model_info`), asked or not: with a
    model type that transformers does not know, a stranger's `auto_map` runs a file of his. Adapters
    of all kinds pass `Swift.from_pretrained`. Other model types are left alone. Idempotent."""
    if not swift.__version__.startswith("4.6."):
        logger.warning(
            f"code of foreign checkpoints may be run: untested ms-swift {swift.__version__} (need 4.6)"
        )
        return
    original, load_adapter = model_meta._get_model_info, Swift.from_pretrained
    if getattr(original, "_refuses", False):
        return

    def _get_model_info(model_dir: str, model_type: str | None, quantization_config: Any) -> Any:
        if model_type in MODEL_TYPES:
            format_of(Path(model_dir))
            check_model(Path(model_dir))
        return original(model_dir, model_type, quantization_config)

    def from_pretrained(model: Any, model_id: str, *args: Any, **kwargs: Any) -> Any:
        if getattr(getattr(model, "model_meta", None), "model_type", None) in MODEL_TYPES:
            check_adapter(Path(model_id))
        return load_adapter(model, model_id, *args, **kwargs)

    _get_model_info._refuses = True  # type: ignore[attr-defined]
    model_meta._get_model_info = _get_model_info
    Swift.from_pretrained = staticmethod(from_pretrained)


def register() -> None:
    """Idempotent."""
    refuse_untrusted_files()
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
    for model_type in MODEL_TYPES:
        is_3b = model_type == MODEL_TYPES[0]
        meta = ModelMeta(
            model_type,
            [ModelGroup([Model(name, name) for name in MODELS_3B])]
            if is_3b
            else [],  # no 7B weights are public
            HiggsAudioLoader,
            template=TEMPLATE_TYPE,
            model_arch=_MODEL_ARCH,
            # Only one type may claim the architecture, else MS-SWIFT cannot tell the type of a
            # checkpoint.
            architectures=[ARCHITECTURE] if is_3b else [f"{ARCHITECTURE}7B"],
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
