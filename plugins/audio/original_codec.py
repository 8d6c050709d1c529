"""The codec's original format (`config.json` and `model.pth` of boson-multimodal) <-> native
folders.

    original folder --to_native-->   native config, native key -> tensor
    original folder --save_native--> native folder, with `original.safetensors` for what a native
                                     codec does not keep
    such a folder   --to_original--> original folder, config and every tensor equal to the bit

No code of a checkpoint is executed. This file knows nothing of encoding or decoding."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor
from transformers import DacFeatureExtractor, HiggsAudioV2TokenizerConfig

from plugins.audio.original_codec_config import Shapes, native_config
from plugins.audio.original_codec_keys import (
    DOWNLOAD,
    ORIGINAL_REVISION,
    Sources,
    check_weights,
    damaged,
    native_weights,
    sources_of,
)
from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.files.hub import new_folder

WEIGHTS = "model.pth"
SIDECAR = "original.safetensors"

# Whose `config.json` or weights these are, if not the original codec's.
_MODEL_TYPES = {
    "higgs_audio": "the generation model in its original format",
    "higgs_audio_v2": "the generation model",
    "higgs_audio_v2_tokenizer": "the native codec",
    "xcodec": "X-Codec",
    "dac": "a plain DAC",
    "hubert": "a plain HuBERT",
}
_PREFIXES = {
    "audio_decoder_proj.": "the generation model in its original format",
    "audio_codebook_embeddings.": "the generation model in its original format",
    "model.embed_audio_tokens.": "the generation model",
    "audio_lm_head.": "the generation model",
    "acoustic_decoder.": "the native codec",
    "decoder.model.": "a plain DAC",
    "decoder.conv_t": "a plain DAC",
    "feature_extractor.conv_layers.": "a plain HuBERT",
    "hubert.": "a plain HuBERT",
}


def is_original(folder: Path) -> bool:
    """Whether `folder` is, or was meant to be, a codec in the original format: its weights may be
    missing or wrong."""
    if (folder / WEIGHTS).is_file() and not (folder / "model.safetensors").is_file():
        return True
    return "semantic_techer" in _read_config(folder / "config.json")


def other_model(model_type: str | None, keys: Iterable[str]) -> str | None:
    """Whose `config.json` (by its `model_type`) or weights (by their keys) these are; None: not
    known to be others'."""
    if model_type is not None:
        return _MODEL_TYPES.get(model_type, f"a model of type {model_type!r}")
    # Prefixes of several owners may match further down; the first key decides.
    for key in keys:
        for prefix, owner in _PREFIXES.items():
            if key.startswith(prefix):
                return owner
    return None


def to_native(folder: Path) -> tuple[HiggsAudioV2TokenizerConfig, dict[str, Tensor]]:
    """Config and weights for `HiggsAudioV2TokenizerModel`: every key filled, every key of the
    original used.

    Raises UserError for a missing, damaged or unsafe file, for another model's, for a key that is
    missing, unknown or of another shape, and for variants of the architecture that the native class
    cannot express."""
    config, sources, weights = _open(folder)
    return config, native_weights(sources, weights)


def save_native(folder: Path, target: Path) -> None:
    """Write original codec `folder` as the new native folder `target`, which appears only when it
    is complete.

    Raises UserError as `to_native` does, and if `target` exists.
    """
    config, sources, weights = _open(folder)
    model = _empty_model(config)
    model.load_state_dict(native_weights(sources, weights), strict=True, assign=True)
    extractor = DacFeatureExtractor(sampling_rate=config.sample_rate, hop_length=config.hop_length)
    # Tensors that a native codec holds as they are; the others go into the sidecar.
    as_they_are = {names[0]: native for native, names in sources.items() if len(names) == 1}
    kept = {key: tensor.contiguous() for key, tensor in weights.items() if key not in as_they_are}
    native_names = {key: as_they_are.get(key) for key in weights}  # in order; None: in the sidecar
    remembered = {
        "config.json": (folder / "config.json").read_text(encoding="utf-8"),
        "keys": json.dumps(native_names),
    }
    with new_folder(target, folder) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
        save_file(kept, unfinished / SIDECAR, metadata=remembered)


def to_original(native_folder: Path, target: Path) -> None:
    """Write what `save_native` was given as the new folder `target`, equal to the bit.

    Raises UserError if `native_folder` is not from `save_native`, if a weight that the original
    splits has changed since, and if `target` exists."""
    if not (native_folder / SIDECAR).is_file():
        remedy = f"download revision {ORIGINAL_REVISION} of bosonai/higgs-audio-v2-tokenizer"
        raise problem(
            source=str(native_folder),
            field="codec",
            value=SIDECAR,
            reason="not found: this folder was not converted from an original codec",
            remedy=f"{remedy} instead",
        )
    native, weights, config_text = _remembered(native_folder)
    _, sources = _match(json.loads(config_text), weights, native_folder)
    # The (g, v) of the sidecar would undo in silence what has been trained since.
    for key, tensor in native_weights(sources, weights).items():
        if not _is_same(native.get(key), tensor):
            reason = (
                "has changed since the codec was converted: the original format would lose that"
            )
            raise _not_convertible(native_folder, key, reason)
    with new_folder(target, native_folder) as unfinished:
        (unfinished / "config.json").write_text(config_text, encoding="utf-8")
        torch.save(weights, unfinished / WEIGHTS)


def _remembered(native_folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """The weights of `native_folder`, and those and the config that `save_native` was given."""
    try:
        native = load_file(native_folder / "model.safetensors")
        with safe_open(native_folder / SIDECAR, framework="pt") as sidecar:
            remembered = sidecar.metadata() or {}
            kept = {}
            for key in sidecar.keys():  # noqa: SIM118 (no __iter__)
                kept[key] = sidecar.get_tensor(key)
        weights = {}
        for key, native_name in json.loads(remembered["keys"]).items():
            weights[key] = native[native_name] if native_name else kept[key]
        return native, weights, remembered["config.json"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _not_convertible(native_folder, str(error), "is missing or damaged") from None


def _is_same(native: Tensor | None, merged: Tensor) -> bool:
    if native is None or native.shape != merged.shape:
        return False
    # Merging on another machine may round differently.
    return torch.allclose(merged, native, rtol=1e-6, atol=0)


def _not_convertible(native_folder: Path, value: str, reason: str) -> UserError:
    return problem(
        source=str(native_folder),
        field="weights",
        value=value,
        reason=reason,
        remedy="convert the original codec again",
    )


def _open(folder: Path) -> tuple[HiggsAudioV2TokenizerConfig, Sources, dict[str, Tensor]]:
    file = folder / "config.json"
    original = _read_config(file)
    if "model_type" in original:
        model_type = original["model_type"]
        other = other_model(model_type, ())
        reason = f"is the config of {other}, not of a codec in the original format"
        raise damaged(file, field="model_type", value=model_type, reason=reason)
    # The weights come first: sizes that the config is silent about are read off their shapes.
    weights = _read_weights(folder / WEIGHTS)
    config, sources = _match(original, weights, folder)
    return config, sources, weights


def _match(
    original: dict[str, Any], weights: dict[str, Tensor], folder: Path
) -> tuple[HiggsAudioV2TokenizerConfig, Sources]:
    file = folder / WEIGHTS
    config = native_config(original, Shapes(weights, file), folder / "config.json")
    try:
        expected = _empty_model(config).state_dict()
    except Exception as error:  # what a wrong value raises depends on the field
        value, reason = str(error), "is what building this codec ends in"
        raise damaged(folder / "config.json", field="content", value=value, reason=reason) from None
    shapes = {key: list(tensor.shape) for key, tensor in expected.items()}
    sources = sources_of(shapes, weights, num_blocks=len(original["ratios"]))
    check_weights(sources, weights, shapes, file)
    return config, sources


def _empty_model(config: HiggsAudioV2TokenizerConfig) -> Any:
    """Without weights: on the meta device, where nothing is computed."""
    from transformers import HiggsAudioV2TokenizerModel

    with torch.device("meta"):
        return HiggsAudioV2TokenizerModel(config)


def _read_config(file: Path) -> dict[str, Any]:
    """Empty without a file: what is missing then is said where it is needed."""
    return read_json(file, DOWNLOAD) if file.is_file() else {}


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise damaged(file.parent, field="weights", value=file.name, reason="not found")
    # Only files in torch's zip format can be mapped; older ones are read.
    is_zip = zipfile.is_zipfile(file)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged file can raise anything inside the parser
        raise _unreadable(file, str(error)) from None
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        raise damaged(file, field="weights", value=kind, reason="is no state dict")
    other = other_model(None, weights)
    if other is not None:
        reason = f"holds the weights of {other}, not of a codec in the original format"
        raise damaged(file.parent, field="weights", value=file.name, reason=reason)
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            reason = f"is a {type(value).__name__}, not a tensor"
            raise damaged(file, field="weights", value=key, reason=reason)
    return dict(weights)


def _unreadable(file: Path, message: str) -> UserError:
    """message: torch's, which names the function that a pickle asks for."""
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused is None:
        reason = "is damaged or is no file of torch.save"
        return damaged(file, field="weights", value=file.name, reason=reason)
    reason = "is no part of a state dict: refused, no code of this file was run"
    return damaged(file, field="weights", value=refused[1], reason=reason)
