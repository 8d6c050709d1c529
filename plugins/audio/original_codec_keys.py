"""The keys of the codec's weights: which of the original's make which native one, complete and of
the right shapes.

    native keys, keys of `model.pth` --sources_of--> native key -> one original key, or two (g, v)
    those, tensors of `model.pth`    --native_weights--> native key -> tensor

The tensors are the same under other names, except for the convolutions of DAC: the original keeps
them split by weight norm (g, v), a native codec has the product g v / |v|. This file reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from plugins.errors import UserError, problem

# The last one before `main` became native, in April 2026; other projects pin it too.
ORIGINAL_REVISION = "9d4988fbd4ad07b4cac3a5fa462741a41810dbec"
DOWNLOAD = (
    "download bosonai/higgs-audio-v2-tokenizer again"
    f" (`main` is native, {ORIGINAL_REVISION} is original)"
)

# Original keys that no native codec has, and why. Optional.
DROPPED = {
    "semantic_model.masked_spec_embed": "HuBERT's mask vector, for its own training: never used",
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

# Native key -> the original's, two of them for (g, v) of a merged weight.
Sources = dict[str, tuple[str, ...]]


def damaged(file: Path, *, field: str, value: object, reason: str) -> UserError:
    """A `problem` of an original codec's file that another download mends."""
    return problem(source=str(file), field=field, value=value, reason=reason, remedy=DOWNLOAD)


def sources_of(native_keys: Iterable[str], weights: Collection[str], *, num_blocks: int) -> Sources:
    """For each native key the keys of `weights` it is made of, there or not; num_blocks: those of
    DAC's encoder, one per ratio."""
    sources: Sources = {}
    for native in native_keys:
        if native.startswith(tuple(_BLOCKS)):
            key = _acoustic_key(native, num_blocks)
            if key.endswith(".weight"):
                sources[native] = pair(key.removesuffix(".weight"), weights)
            else:
                sources[native] = (key,)
        elif ".parametrizations.weight.original" in native:
            # HuBERT's positions stay split in a native codec too.
            stem, _, index = native.partition(".parametrizations.weight.original")
            sources[native] = (pair(stem, weights)[int(index)],)
        else:
            sources[native] = (_renamed(native),)
    return sources


def pair(stem: str, weights: Collection[str]) -> tuple[str, str]:
    """The keys of (g, v), spelled as in `weights`; in the old way if it has neither."""
    for g, v in _PAIRS:
        if f"{stem}.{g}" in weights or f"{stem}.{v}" in weights:
            return f"{stem}.{g}", f"{stem}.{v}"
    return f"{stem}.weight_g", f"{stem}.weight_v"


def check_weights(
    sources: Sources, weights: Mapping[str, Tensor], shapes: Mapping[str, list[int]], file: Path
) -> None:
    """Raise UserError, naming `file`, for a key of `weights` that is missing, unknown or of another
    shape than the native `shapes` ask for."""
    needed = {name for names in sources.values() for name in names}
    missing = [name for names in sources.values() for name in names if name not in weights]
    unknown = [key for key in weights if key not in needed and key not in DROPPED]
    not_a_key = f"is not a key of the codec ({len(unknown)} such keys)"
    if missing:
        reason = f"is missing ({len(missing)} in all)"
        if unknown:
            reason += f", and {unknown[0]!r} {not_a_key}"
        raise damaged(file, field="weights", value=missing[0], reason=reason)
    if unknown:
        raise damaged(file, field="weights", value=unknown[0], reason=not_a_key)
    for native, names in sources.items():
        for key, shape in zip(names, _shapes(names, shapes[native]), strict=True):
            if list(weights[key].shape) != shape:
                reason = f"has shape {list(weights[key].shape)}, config.json asks for {shape}"
                raise damaged(file, field="weights", value=key, reason=reason)


def native_weights(sources: Sources, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Native key -> tensor: that of `weights`, or the product of its (g, v)."""
    native_tensors = {}
    for native, names in sources.items():
        if len(names) == 1:
            native_tensors[native] = weights[names[0]]
        else:
            g, v = names
            native_tensors[native] = _merged(weights[g], weights[v])
    return native_tensors


def _shapes(names: tuple[str, ...], shape: list[int]) -> list[list[int]]:
    """Of the original keys `names` that make a native weight of `shape`."""
    if len(names) == 1:
        return [shape]
    return [[shape[0]] + [1] * (len(shape) - 1), shape]  # g: one number per row of v


def _merged(g: Tensor, v: Tensor) -> Tensor:
    """g v / |v|, the norm over all but the first dimension. In fp64: the same weight whatever the
    machine."""
    v_fp64 = v.double()
    return (v_fp64 * (g.double() / v_fp64.flatten(1).norm(dim=1).view_as(g))).to(v.dtype)


def _acoustic_key(native: str, num_blocks: int) -> str:
    """acoustic_encoder.block.0.res_unit2.conv1.bias -> encoder.block.1.block.1.block.1.bias"""
    side, *path, kind = native.split(".")
    root, layers = _BLOCKS[side]
    if path[0] == "block":
        _, block, layer, *inner = path
        # The first convolution is number 0.
        numbers = [int(block) + 1, layers.index(layer), *map(_UNIT.index, inner)]
    else:
        numbers = [{"conv1": 0, "snake1": num_blocks + 1, "conv2": num_blocks + 2}[path[0]]]
    return f"{root}.{'.block.'.join(map(str, numbers))}.{kind}"


def _renamed(native: str) -> str:
    key = native.replace(".codebook.", "._codebook.")
    for prefix, renamed in _RENAMED.items():
        if key.startswith(prefix):
            key = renamed + key.removeprefix(prefix)
            break  # `fc_prior.` is no prefix to be renamed again
    # Each convolution of the semantic coders sits in a wrapper, except for those of width 1.
    if "coder_semantic." in key and not re.search(r"res_units\.\d+\.conv2", key):
        stem, _, kind = key.rpartition(".")
        key = f"{stem}.conv.{kind}"
    return key
