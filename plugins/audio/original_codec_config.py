"""An original codec's `config.json`, and the shapes of its weights -> the native config.

What DAC and HuBERT look like the original fixes in its code or downloads; here it is read off the
shapes of their weights. This file checks the config's fields, not the weights' names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HiggsAudioV2TokenizerConfig

from plugins.audio.original_codec_keys import damaged, pair
from plugins.errors import UserError, problem
from plugins.files.sizes import check_sizes

_LEAST = {"D": 1, "codebook_dim": 1, "sample_rate": 1, "bins": 2, "n_q": 1}
# As the original spells it: a teacher is meant.
_FIELDS = (*_LEAST, "target_bandwidths", "ratios", "semantic_techer")
# What a native codec cannot do, and the values that it needs.
_REQUIRED = {"downsample_mode": "step_down", "vq_scale": 1}
_TEACHERS = ("hubert_base_general", "hubert_base")


class Shapes:
    """The shapes of the tensors of `weights`, which were read from `file`."""

    def __init__(self, weights: Mapping[str, Tensor], file: Path) -> None:
        self.weights = weights
        self._file = file

    def of(self, key: str) -> torch.Size:
        """Raises UserError if there is no such weight."""
        if key not in self.weights:
            raise damaged(self._file, field="weights", value=key, reason="is missing")
        return self.weights[key].shape

    def of_convolution(self, stem: str) -> torch.Size:
        """Of v, the half of weight norm that has the shape of the product."""
        return self.of(pair(stem, self.weights)[1])


def native_config(
    original: dict[str, Any], shapes: Shapes, file: Path
) -> HiggsAudioV2TokenizerConfig:
    """original: the content of `file`, a config.json.

    Raises UserError for a field that is missing or of the wrong kind, and for variants that the
    native class cannot express."""
    for name in _FIELDS:
        if name not in original:
            raise damaged(file, field=name, value=None, reason="is missing")
    _check_types(original, file)
    _check_variant(original, file)
    acoustic = {
        # The original's constructor fixes these two widths, 64 and 1024.
        "encoder_hidden_size": shapes.of_convolution("encoder.block.0")[0],
        "decoder_hidden_size": shapes.of_convolution("decoder_2.model.0")[0],
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
        semantic_model_config=_hubert(shapes),
    )


def _check_types(original: dict[str, Any], file: Path) -> None:
    def wrong(name: str, kind: str) -> UserError:
        return damaged(file, field=name, value=original[name], reason=f"is no {kind}")

    check_sizes(file, original)
    for name, least in _LEAST.items():
        if not _is_whole(original[name], least):
            raise wrong(name, f"whole number from {least} up")
    ratios = original["ratios"]
    if not isinstance(ratios, list) or not ratios or not all(map(_is_whole, ratios)):
        raise wrong("ratios", "list of whole numbers above 0")
    bandwidths = original["target_bandwidths"]
    if not isinstance(bandwidths, list) or not all(map(_is_positive, bandwidths)):
        raise wrong("target_bandwidths", "list of numbers above 0")
    semantic_hz = original.get("semantic_sample_rate")
    if semantic_hz is not None and not _is_whole(semantic_hz):
        raise wrong("semantic_sample_rate", "whole number from 1 up")


def _is_whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least  # True and False are ints, too


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _check_variant(original: dict[str, Any], file: Path) -> None:
    def unknown(name: str, reason: str) -> UserError:
        return problem(
            source=str(file),
            field=name,
            value=original[name],
            reason=reason,
            remedy="the native codec has no such variant",
        )

    for name, needed in _REQUIRED.items():
        if original.get(name, needed) != needed:
            raise unknown(name, f"is not {needed!r}")
    if original["semantic_techer"] not in _TEACHERS:
        raise unknown("semantic_techer", f"is none of {', '.join(_TEACHERS)}")


def _bandwidths(original: dict[str, Any], file: Path) -> list[float]:
    """Those of `target_bandwidths` that `n_q` codebooks reach.

    The original ignores the others (the published one lists 4 kbit/s, which would be 16 codebooks);
    a native codec has as many codebooks as its last bandwidth asks for."""
    # Both rounded up, as the original does: 24000 / 960 is 25, other rates may not divide.
    frame_rate = math.ceil(original["sample_rate"] / math.prod(original["ratios"]))
    bits_per_s = frame_rate * math.ceil(math.log2(original["bins"]))  # of one codebook
    last_num = 0
    reached = []
    for bandwidth in original["target_bandwidths"]:
        num_codebooks = int(1000 * bandwidth // bits_per_s)
        if num_codebooks <= original["n_q"]:
            reached.append(bandwidth)
            last_num = num_codebooks
    if last_num != original["n_q"]:
        raise problem(
            source=str(file),
            field="target_bandwidths",
            value=original["target_bandwidths"],
            reason=f"has none for n_q {original['n_q']}",
            remedy=f"add {original['n_q'] * bits_per_s / 1000} (kbit/s)",
        )
    return reached


def _hubert(shapes: Shapes) -> dict[str, Any]:
    """The sizes of the semantic model, which has HuBERT's base architecture."""
    root = "semantic_model.encoder"
    hidden = shapes.of("semantic_model.feature_projection.projection.weight")[0]
    _, group_width, num_positions = shapes.of_convolution(f"{root}.pos_conv_embed.conv")
    last_layer = 0
    for key in shapes.weights:
        if match := re.match(rf"{re.escape(root)}\.layers\.(\d{{1,9}})\.", key):
            last_layer = max(last_layer, min(int(match[1]), len(shapes.weights)))
    # Seven in HuBERT base and large; their kernels and strides are the same everywhere.
    convolutions = "semantic_model.feature_extractor.conv_layers.{}.conv.weight"
    return {
        "hidden_size": hidden,
        "num_hidden_layers": last_layer + 1,
        "num_attention_heads": hidden // 64,  # no weight tells; so it is in HuBERT base and large
        "intermediate_size": shapes.of(f"{root}.layers.0.feed_forward.intermediate_dense.weight")[
            0
        ],
        "conv_dim": [shapes.of(convolutions.format(i))[0] for i in range(7)],
        "num_conv_pos_embeddings": num_positions,
        "num_conv_pos_embedding_groups": hidden // group_width,
        "mask_time_prob": 0.0,  # else it owns a mask vector
    }
