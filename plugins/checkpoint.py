"""Strict loading of native checkpoints. L2.

transformers drops the text head in silence and starts missing weights at random with a warning; here a missing or
surplus key is an error that names it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import HiggsAudioV2Config

from plugins.errors import problem
from plugins.modeling import HiggsAudioV2ForConditionalGeneration

_TEXT_HEAD = "text_lm_head.weight"
# Duplicates of the heads under their original names, which transformers' conversion script leaves behind.
_DUPLICATES = {"audio_decoder_proj.audio_lm_head.weight", "audio_decoder_proj.text_lm_head.weight"}


def local_folder(path: str) -> str:
    """`path` if it is a folder, else the local snapshot of that Hub id. Raises UserError if it is neither."""
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(path))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = f"is neither a folder nor a Hub id that can be downloaded ({type(error).__name__})"
        raise problem("command line", "model", path, reason, "give the folder of a checkpoint") from error


def load_model(path: str, *, text_head: bool = True, **kwargs: Any) -> HiggsAudioV2ForConditionalGeneration:
    """The native model of folder `path`; `kwargs` go to `from_pretrained` (dtype, device_map, config, ...).

    text_head: needed for training; speaking does without. Raises UserError if weights, the text head or any key is
    missing, or if a key is surplus.
    """
    folder = Path(path)
    config = folder / "config.json"
    model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if model_type != HiggsAudioV2Config.model_type:
        reason = "is the format of boson-multimodal" if model_type == "higgs_audio" else "is no Higgs-Audio V2"
        raise problem(
            str(config), "model_type", model_type, reason, "download `main` of the Hub repository: it is native"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.safetensors.index.json")):
        raise problem(
            str(path), "weights", "*.safetensors", "not found", "download the whole checkpoint into this folder"
        )
    loaded: Any = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        path, use_text_head=text_head, output_loading_info=True, **kwargs
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if _TEXT_HEAD in missing:
        reason = "is missing: the checkpoint was saved without its text head, which training needs"
        raise problem(str(path), "weights", _TEXT_HEAD, reason, "start from the published checkpoint")
    if missing:
        reason = f"is missing ({len(missing)} keys in all)"
        raise problem(
            str(path), "weights", missing[0], reason, "download it again; it is no complete native checkpoint"
        )
    surplus = sorted(key for key in report["unexpected_keys"] if key not in {_TEXT_HEAD, *_DUPLICATES})
    if surplus:
        reason = f"is not a weight of this model ({len(surplus)} such keys)"
        raise problem(str(path), "weights", surplus[0], reason, "check that config.json belongs to these weights")
    return model
