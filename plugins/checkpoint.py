"""Strict loading of checkpoints, native or original. L2.

transformers drops the text head in silence and starts missing weights at random with a warning; here a missing or
surplus key is an error that names it. No code of a checkpoint is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugins.errors import problem
from plugins.model_config import HiggsAudioV2Config
from plugins.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.original_format import MODEL_TYPE, model_type_of, native_config
from plugins.weights import sources_of


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


def load_config(folder: Path) -> HiggsAudioV2Config:
    """The native config of a native or original folder. Raises UserError if it is of neither."""
    model_type = model_type_of(folder)
    if model_type == MODEL_TYPE:
        return native_config(folder)
    if model_type != HiggsAudioV2Config.model_type:
        remedy = "give the folder of a Higgs-Audio V2 checkpoint, native or original"
        raise problem(str(folder / "config.json"), "model_type", model_type, "is no Higgs-Audio V2", remedy)
    return HiggsAudioV2Config.from_pretrained(folder)


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
    is_original = model_type_of(folder) == MODEL_TYPE
    kwargs.setdefault("config", config)
    found = sources_of(folder, config, "original" if is_original else "native", text_head=text_head)
    if is_original:
        weights = {key: source.read() for key, source in found.items()}
        return HiggsAudioV2ForConditionalGeneration.from_pretrained(
            None, state_dict=weights, use_text_head=text_head, **kwargs
        )
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(path, use_text_head=text_head, **kwargs)
