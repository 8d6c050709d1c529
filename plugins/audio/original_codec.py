"""The codec's original format (`config.json` and `model.pth` of boson-multimodal) <-> native
folders. L1.

    original folder --to_native--> native config, native key -> tensor original folder
    --save_native--> native folder, with `original.safetensors` for what a native codec does not
    keep such a folder --to_original--> original folder, its config and every tensor equal to the
    bit

Both formats hold the same tensors under different names, except for the convolutions of DAC: the
original keeps them split by weight norm (g, v), a native codec has the product g v / |v|. What
HuBERT looks like the original downloads; here it is read off the shapes of its weights. No code of
a checkpoint is executed. This file knows nothing of encoding or decoding."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor
from transformers import DacFeatureExtractor, HiggsAudioV2TokenizerConfig

from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.files.hub import new_folder

WEIGHTS = "model.pth"
SIDECAR = "original.safetensors"
# The last one before `main` became native, in April 2026; other projects pin it too.
ORIGINAL_REVISION = "9d4988fbd4ad07b4cac3a5fa462741a41810dbec"
_DOWNLOAD = f"download bosonai/higgs-audio-v2-tokenizer again (`main` is native, {ORIGINAL_REVISION} is original)"

# Original keys that no native codec has, and why. Optional.
DROPPED = {
    "semantic_model.masked_spec_embed": "HuBERT's mask vector, for its own training; the codec never masks",
}
_FIELDS = (
    "D",
    "codebook_dim",
    "target_bandwidths",
    "ratios",
    "sample_rate",
    "bins",
    "n_q",
    "semantic_techer",
)
_LEAST = {"D": 1, "codebook_dim": 1, "sample_rate": 1, "bins": 2, "n_q": 1}
# What a native codec cannot do, and the values that it needs.
_REQUIRED = {"downsample_mode": "step_down", "vq_scale": 1}
_TEACHERS = ("hubert_base_general", "hubert_base")

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

# DAC's layers in the original's order: it numbers what transformers names.
_UNIT = ("snake1", "conv1", "snake2", "conv2")
_BLOCKS = {
    "acoustic_encoder": (
        "encoder.block",
        ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"),
    ),
    "acoustic_decoder": (
        "decoder_2.model",
        ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"),
    ),
}
_RENAMED = {
    "quantizer.quantizers.": "quantizer.vq.layers.",
    "fc.": "fc_prior.",
    "fc1.": "fc_post1.",
    "fc2.": "fc_post2.",
}
# (g, v) of weight norm: torch has an old and a new way of naming them.
_PAIRS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)

Sources = dict[
    str, tuple[str, ...]
]  # native key -> the original's, two of them for (g, v) of a merged weight


def is_original(folder: Path) -> bool:
    """Whether `folder` is, or was meant to be, a codec in the original format: its weights may be
    missing or wrong."""
    only_original_weights = (folder / WEIGHTS).is_file() and not (
        folder / "model.safetensors"
    ).is_file()
    return only_original_weights or "semantic_techer" in _read_config(folder / "config.json")


def other_model(model_type: str | None, keys: Iterable[str]) -> str | None:
    """Whose `config.json` (by its `model_type`) or weights (by their keys) these are; None: not
    known to be others'."""
    if model_type is not None:
        return _MODEL_TYPES.get(model_type, f"a model of type {model_type!r}")
    prefixes = tuple(_PREFIXES)
    found = next((key for key in keys if key.startswith(prefixes)), None)
    return (
        None
        if found is None
        else next(name for prefix, name in _PREFIXES.items() if found.startswith(prefix))
    )


def to_native(folder: Path) -> tuple[HiggsAudioV2TokenizerConfig, dict[str, Tensor]]:
    """Config and weights for `HiggsAudioV2TokenizerModel`: every key filled, every key of the
    original used.

    Raises UserError for a missing, damaged or unsafe file, for another model's, for a key that is
    missing, unknown or of another shape, and for variants of the architecture that the native class
    cannot express."""
    config, sources, weights = _open(folder)
    return config, _native_weights(sources, weights)


def save_native(folder: Path, target: Path) -> None:
    """Write original codec `folder` as the new native folder `target`, which appears only when it
    is complete.

    Raises UserError as `to_native` does, and if `target` exists.
    """
    from transformers import HiggsAudioV2TokenizerModel

    config, sources, weights = _open(folder)
    with torch.device("meta"):
        model = HiggsAudioV2TokenizerModel(config)
    model.load_state_dict(_native_weights(sources, weights), strict=True, assign=True)
    extractor = DacFeatureExtractor(sampling_rate=config.sample_rate, hop_length=config.hop_length)
    as_they_are = {names[0]: native for native, names in sources.items() if len(names) == 1}
    kept = {key: tensor.contiguous() for key, tensor in weights.items() if key not in as_they_are}
    remembered = {
        "config.json": (folder / "config.json").read_text(encoding="utf-8"),
        "keys": json.dumps(
            {key: as_they_are.get(key) for key in weights}
        ),  # in order; null: the tensor is here
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
        reason = "not found: this folder was not converted from an original codec"
        remedy = (
            f"download revision {ORIGINAL_REVISION} of bosonai/higgs-audio-v2-tokenizer instead"
        )
        raise problem(
            source=str(native_folder), field="codec", value=SIDECAR, reason=reason, remedy=remedy
        )
    try:
        native = load_file(native_folder / "model.safetensors")
        with safe_open(native_folder / SIDECAR, framework="pt") as sidecar:
            remembered = sidecar.metadata() or {}
            kept = {key: sidecar.get_tensor(key) for key in sidecar.keys()}  # noqa: SIM118 (no __iter__)
        config_text, keys = remembered["config.json"], json.loads(remembered["keys"])
        weights = {key: native[name] if name else kept[key] for key, name in keys.items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        remedy = "convert the original codec again"
        raise problem(
            source=str(native_folder),
            field="weights",
            value=str(error),
            reason="is missing or damaged",
            remedy=remedy,
        ) from None
    _, sources = _match(json.loads(config_text), weights, native_folder)
    for key, tensor in _native_weights(sources, weights).items():
        # Merging on another machine may round differently.
        found = native.get(key)
        if (
            found is None
            or found.shape != tensor.shape
            or not torch.allclose(tensor, found, rtol=1e-6, atol=0)
        ):
            reason = (
                "has changed since the codec was converted: the original format would lose that"
            )
            raise problem(
                source=str(native_folder),
                field="weights",
                value=key,
                reason=reason,
                remedy="convert the original codec again",
            )
    with new_folder(target, native_folder) as unfinished:
        (unfinished / "config.json").write_text(config_text, encoding="utf-8")
        torch.save(weights, unfinished / WEIGHTS)


# Reading.


def _open(folder: Path) -> tuple[HiggsAudioV2TokenizerConfig, Sources, dict[str, Tensor]]:
    original = _read_config(folder / "config.json")
    if "model_type" in original:
        model_type = original["model_type"]
        reason = (
            f"is the config of {other_model(model_type, ())}, not of a codec in the original format"
        )
        raise problem(
            source=str(folder / "config.json"),
            field="model_type",
            value=model_type,
            reason=reason,
            remedy=_DOWNLOAD,
        )
    weights = _read_weights(folder / WEIGHTS)
    config, sources = _match(original, weights, folder)
    return config, sources, weights


def _match(
    original: dict[str, Any], weights: dict[str, Tensor], folder: Path
) -> tuple[HiggsAudioV2TokenizerConfig, Sources]:
    config = _native_config(original, weights, folder)
    expected = _expected_shapes(config)
    sources = _sources(expected, weights, num_blocks=len(original["ratios"]))
    _check_keys(sources, weights, folder / WEIGHTS)
    _check_shapes(sources, weights, expected, folder / WEIGHTS)
    return config, sources


def _read_config(file: Path) -> dict[str, Any]:
    """Empty without a file: what is missing then is said where it is needed."""
    return read_json(file, _DOWNLOAD) if file.is_file() else {}


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise problem(
            source=str(file.parent),
            field="weights",
            value=file.name,
            reason="not found",
            remedy=_DOWNLOAD,
        )
    try:
        # Only files in torch's zip format can be mapped; older ones are read.
        weights = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # a damaged file can raise anything inside the parser
        raise _unreadable(file, str(error)) from None
    if not isinstance(weights, Mapping):
        raise problem(
            source=str(file),
            field="weights",
            value=type(weights).__name__,
            reason="is no state dict",
            remedy=_DOWNLOAD,
        )
    other = other_model(None, weights)
    if other is not None:
        reason = f"holds the weights of {other}, not of a codec in the original format"
        raise problem(
            source=str(file.parent),
            field="weights",
            value=file.name,
            reason=reason,
            remedy=_DOWNLOAD,
        )
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise problem(
                source=str(file),
                field="weights",
                value=key,
                reason=f"is a {type(value).__name__}, not a tensor",
                remedy=_DOWNLOAD,
            )
    return dict(weights)


def _unreadable(file: Path, said: str) -> UserError:
    asked_for = re.search(r"GLOBAL (\S+)", said)
    if asked_for is None:
        return problem(
            source=str(file),
            field="weights",
            value=file.name,
            reason="is damaged or is no file of torch.save",
            remedy=_DOWNLOAD,
        )
    reason = "is no part of a state dict: refused, no code of this file was run"
    return problem(
        source=str(file), field="weights", value=asked_for[1], reason=reason, remedy=_DOWNLOAD
    )


# Config.


def _native_config(
    original: dict[str, Any], weights: dict[str, Tensor], folder: Path
) -> HiggsAudioV2TokenizerConfig:
    file = folder / "config.json"
    for name in _FIELDS:
        if name not in original:
            raise problem(
                source=str(file), field=name, value=None, reason="is missing", remedy=_DOWNLOAD
            )
    _check_types(original, file)
    for name, needed in _REQUIRED.items():
        if original.get(name, needed) != needed:
            raise problem(
                source=str(file),
                field=name,
                value=original[name],
                reason=f"is not {needed!r}",
                remedy="the native codec has no such variant",
            )
    if original["semantic_techer"] not in _TEACHERS:
        reason = f"is none of {', '.join(_TEACHERS)}"
        remedy = "the native codec has no such variant"
        raise problem(
            source=str(file),
            field="semantic_techer",
            value=original["semantic_techer"],
            reason=reason,
            remedy=remedy,
        )

    def shape_of(key: str) -> torch.Size:
        if key not in weights:
            raise problem(
                source=str(folder / WEIGHTS),
                field="weights",
                value=key,
                reason="is missing",
                remedy=_DOWNLOAD,
            )
        return weights[key].shape

    # The original's constructor fixes these two widths, 64 and 1024: `config.json` is silent about
    # them.
    acoustic = {
        "encoder_hidden_size": shape_of(_pair("encoder.block.0", weights)[1])[0],
        "decoder_hidden_size": shape_of(_pair("decoder_2.model.0", weights)[1])[0],
        "downsampling_ratios": original["ratios"],
        "upsampling_ratios": original["ratios"],
        "hidden_size": original["D"],
    }
    return HiggsAudioV2TokenizerConfig(
        target_bandwidths=_bandwidths(original, file),
        sample_rate=original["sample_rate"],
        semantic_sample_rate=original.get("semantic_sample_rate") or 16_000,
        codebook_size=original["bins"],
        codebook_dim=original["codebook_dim"],
        acoustic_model_config=acoustic,
        semantic_model_config=_hubert(weights, shape_of),
    )


def _check_types(original: dict[str, Any], file: Path) -> None:
    def is_whole(value: Any, least: int = 1) -> bool:
        return type(value) is int and value >= least

    for name, least in _LEAST.items():
        if not is_whole(original[name], least):
            raise problem(
                source=str(file),
                field=name,
                value=original[name],
                reason=f"is no whole number from {least} up",
                remedy=_DOWNLOAD,
            )
    ratios, bandwidths = original["ratios"], original["target_bandwidths"]
    if not isinstance(ratios, list) or not ratios or not all(map(is_whole, ratios)):
        raise problem(
            source=str(file),
            field="ratios",
            value=ratios,
            reason="is no list of whole numbers above 0",
            remedy=_DOWNLOAD,
        )
    if not isinstance(bandwidths, list) or not all(
        type(value) in (int, float) and value > 0 for value in bandwidths
    ):
        raise problem(
            source=str(file),
            field="target_bandwidths",
            value=bandwidths,
            reason="is no list of numbers above 0",
            remedy=_DOWNLOAD,
        )
    semantic_hz = original.get("semantic_sample_rate")
    if semantic_hz is not None and not is_whole(semantic_hz):
        raise problem(
            source=str(file),
            field="semantic_sample_rate",
            value=semantic_hz,
            reason="is no whole number from 1 up",
            remedy=_DOWNLOAD,
        )


def _bandwidths(original: dict[str, Any], file: Path) -> list[float]:
    """Those of `target_bandwidths` that `n_q` codebooks reach.

    The original ignores the others (the published one lists 4 kbit/s, which would be 16 codebooks);
    a native codec has as many codebooks as its last bandwidth asks for."""
    frame_rate = math.ceil(original["sample_rate"] / math.prod(original["ratios"]))
    bits_per_s = frame_rate * math.ceil(math.log2(original["bins"]))
    num_codebooks = {
        bandwidth: int(1000 * bandwidth // bits_per_s)
        for bandwidth in original["target_bandwidths"]
    }
    reached = [bandwidth for bandwidth, num in num_codebooks.items() if num <= original["n_q"]]
    if not reached or num_codebooks[reached[-1]] != original["n_q"]:
        reason = f"has none for n_q {original['n_q']}"
        remedy = f"add {original['n_q'] * bits_per_s / 1000} (kbit/s)"
        raise problem(
            source=str(file),
            field="target_bandwidths",
            value=original["target_bandwidths"],
            reason=reason,
            remedy=remedy,
        )
    return reached


def _hubert(weights: Collection[str], shape_of: Callable[[str], torch.Size]) -> dict[str, Any]:
    """The sizes of the semantic model, which has HuBERT's base architecture."""
    root = "semantic_model.encoder"
    hidden = shape_of("semantic_model.feature_projection.projection.weight")[0]
    _, group_width, num_positions = shape_of(_pair(f"{root}.pos_conv_embed.conv", weights)[1])
    layers = {
        int(found[1])
        for key in weights
        if (found := re.match(rf"{re.escape(root)}\.layers\.(\d+)\.", key))
    }
    convolutions = [
        f"semantic_model.feature_extractor.conv_layers.{i}.conv.weight" for i in range(7)
    ]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": max(layers, default=0) + 1,
        "num_attention_heads": hidden // 64,  # no weight tells; so it is in HuBERT base and large
        "intermediate_size": shape_of(f"{root}.layers.0.feed_forward.intermediate_dense.weight")[0],
        "conv_dim": [shape_of(key)[0] for key in convolutions],
        "num_conv_pos_embeddings": num_positions,
        "num_conv_pos_embedding_groups": hidden // group_width,
        "mask_time_prob": 0.0,  # else it owns a mask vector
    }


# Weights.


def _expected_shapes(config: HiggsAudioV2TokenizerConfig) -> dict[str, list[int]]:
    from transformers import HiggsAudioV2TokenizerModel

    with torch.device("meta"):
        model = HiggsAudioV2TokenizerModel(config)
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def _sources(native_keys: Iterable[str], weights: Collection[str], *, num_blocks: int) -> Sources:
    sources: Sources = {}
    for native in native_keys:
        if native.startswith(tuple(_BLOCKS)):
            key = _acoustic_key(native, num_blocks)
            is_normed = key.endswith(".weight")
            sources[native] = _pair(key.removesuffix(".weight"), weights) if is_normed else (key,)
        elif ".parametrizations.weight.original" in native:
            stem, _, index = native.partition(".parametrizations.weight.original")
            sources[native] = (_pair(stem, weights)[int(index)],)
        else:
            sources[native] = (_renamed(native),)
    return sources


def _pair(stem: str, weights: Collection[str]) -> tuple[str, str]:
    """The keys of (g, v), spelled as in `weights`."""
    pairs = [(f"{stem}.{g}", f"{stem}.{v}") for g, v in _PAIRS]
    return next((pair for pair in pairs if any(key in weights for key in pair)), pairs[0])


def _acoustic_key(native: str, num_blocks: int) -> str:
    """acoustic_encoder.block.0.res_unit2.conv1.bias -> encoder.block.1.block.1.block.1.bias"""
    side, *path, kind = native.split(".")
    root, layers = _BLOCKS[side]
    if path[0] == "block":
        _, block, layer, *inner = path
        numbers = [int(block) + 1, layers.index(layer), *map(_UNIT.index, inner)]
    else:
        numbers = [{"conv1": 0, "snake1": num_blocks + 1, "conv2": num_blocks + 2}[path[0]]]
    return f"{root}.{'.block.'.join(map(str, numbers))}.{kind}"


def _renamed(native: str) -> str:
    prefix = next((prefix for prefix in _RENAMED if native.startswith(prefix)), "")
    key = _RENAMED.get(prefix, "") + native.removeprefix(prefix).replace(
        ".codebook.", "._codebook."
    )
    # Each convolution of the semantic coders sits in a wrapper, except for those of width 1.
    if "coder_semantic." in key and not re.search(r"res_units\.\d+\.conv2", key):
        stem, _, kind = key.rpartition(".")
        key = f"{stem}.conv.{kind}"
    return key


def _check_keys(sources: Sources, weights: Collection[str], file: Path) -> None:
    needed = {name: None for names in sources.values() for name in names}
    missing = [key for key in needed if key not in weights]
    unknown = [key for key in weights if key not in needed and key not in DROPPED]
    if missing:
        renamed = (
            f", and {unknown[0]!r} is not a key of the codec ({len(unknown)} such keys)"
            if unknown
            else ""
        )
        raise problem(
            source=str(file),
            field="weights",
            value=missing[0],
            reason=f"is missing ({len(missing)} in all){renamed}",
            remedy=_DOWNLOAD,
        )
    if unknown:
        reason = f"is not a key of the codec ({len(unknown)} such keys)"
        raise problem(
            source=str(file), field="weights", value=unknown[0], reason=reason, remedy=_DOWNLOAD
        )


def _check_shapes(
    sources: Sources, weights: Mapping[str, Tensor], expected: Mapping[str, list[int]], file: Path
) -> None:
    for native, names in sources.items():
        shape = expected[native]
        needed = [shape] if len(names) == 1 else [[shape[0]] + [1] * (len(shape) - 1), shape]
        for key, asked in zip(names, needed, strict=True):
            if list(weights[key].shape) != asked:
                reason = f"has shape {list(weights[key].shape)}, config.json asks for {asked}"
                raise problem(
                    source=str(file), field="weights", value=key, reason=reason, remedy=_DOWNLOAD
                )


def _native_weights(sources: Sources, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        native: weights[names[0]]
        if len(names) == 1
        else _merged(*(weights[name] for name in names))
        for native, names in sources.items()
    }


def _merged(g: Tensor, v: Tensor) -> Tensor:
    """g v / |v|, the norm over all but the first dimension. In fp64: the same weight whatever the
    machine."""
    v_fp64 = v.double()
    return (v_fp64 * (g.double() / v_fp64.flatten(1).norm(dim=1).view_as(g))).to(v.dtype)
