"""Weights on disk, of both formats: which key lies where, complete and of the right shapes. L2.

Native checkpoints and those of boson-multimodal ("original") differ in names only; matrices that
were trained in part (`PartiallyFrozen*`) lie in the original's files as two halves. Everything is
checked before a tensor is read: transformers starts missing weights at random with a warning and
drops the text head in silence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plugins.errors import problem
from plugins.files.disk import read_json
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

Format = Literal["native", "original"]
TEXT_HEAD = "text_lm_head.weight"

# (original prefix, native prefix)
_PREFIXES = (
    ("audio_codebook_embeddings.", "model.embed_audio_tokens.embed_audio_tokens."),
    ("audio_decoder_proj.audio_lm_head.", "audio_lm_head."),
    ("audio_decoder_proj.text_lm_head.", "text_lm_head."),
    ("embed_tokens.", "model.embed_tokens."),
    ("norm.", "model.norm."),
    ("layers.", "model.layers."),
    ("audio_encoder_proj.", "audio_tower.audio_encoder_proj."),
    ("audio_tower.", "audio_tower."),
)
# Buffers of older releases that are computed, not learned.
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.|audio_codebook_weights$)")
_HALF = re.compile(r"\.(embedding|linear)_(frozen|trainable)\.weight$")
# Duplicates of the heads under their original names, which a converted checkpoint may hold beside
# its own.
_DUPLICATES = {"audio_decoder_proj.audio_lm_head.weight", "audio_decoder_proj.text_lm_head.weight"}


@dataclass(frozen=True)
class Part:
    """One tensor of one open safetensors file."""

    file: Path
    opened: Any
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.opened.get_slice(self.key).get_shape())


@dataclass(frozen=True)
class Source:
    """Where one weight lies: in one tensor, or in the two halves of a matrix that was trained in
    part."""

    parts: tuple[Part, ...]  # concatenated on dim 0

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [part.shape for part in self.parts]
        return (
            shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])
        )

    def read(self) -> Tensor:
        """Mapped from the file, copied only if it has two parts."""
        tensors = [part.opened.get_tensor(part.key) for part in self.parts]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def sources_of(
    folder: Path, config: HiggsAudioV2Config, source_format: Format, *, text_head: bool = True
) -> dict[str, Source]:
    """Native key -> where it lies in the files of `folder`.

    text_head: it must be there; else it is left out. Raises UserError for a missing or damaged
    file, and for a key that is missing, surplus or of another shape."""
    found: dict[str, list[Part]] = {}
    for file in _files(folder):
        opened = _open(file)
        for key in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
            native = _native_key(key) if source_format == "original" else key
            if native is not None and not (source_format == "native" and key in _DUPLICATES):
                found.setdefault(native, []).append(Part(file, opened, key))
    # Of two halves, `..._frozen` comes before `..._trainable`.
    sources = {
        key: Source(tuple(sorted(parts, key=lambda part: part.key))) for key, parts in found.items()
    }
    expected = _expected_shapes(config)
    for native, source in sources.items():
        names = ", ".join(part.key for part in source.parts)
        if native not in expected:
            reason = "is not a weight of this model"
            raise problem(
                source=str(folder),
                field="weights",
                value=names,
                reason=reason,
                remedy="check that config.json belongs to these weights",
            )
        if source.shape != expected[native]:
            reason = f"has shape {list(source.shape)}, config.json says {list(expected[native])}"
            raise problem(
                source=str(folder),
                field="weights",
                value=names,
                reason=reason,
                remedy="download it again, with its config.json",
            )
    if not text_head:
        expected.pop(TEXT_HEAD)
    missing = [key for key in expected if key not in found]
    if TEXT_HEAD in missing:
        name = original_key(TEXT_HEAD) if source_format == "original" else TEXT_HEAD
        reason = "is missing: the checkpoint was saved without its text head, which training needs"
        raise problem(
            source=str(folder),
            field="weights",
            value=name,
            reason=reason,
            remedy="start from the published checkpoint",
        )
    if missing:
        name = original_key(missing[0]) if source_format == "original" else missing[0]
        reason = f"is missing ({len(missing)} keys in all)"
        raise problem(
            source=str(folder),
            field="weights",
            value=name,
            reason=reason,
            remedy="download it again; it is no complete checkpoint",
        )
    return {key: sources[key] for key in expected}


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        remedy = "download it again"
        weight_map = read_json(index, remedy).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise problem(
                source=str(index),
                field="weight_map",
                value=weight_map,
                reason="does not map weights to files",
                remedy=remedy,
            )
        names = sorted(set(weight_map.values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        remedy = "download the whole checkpoint into this folder"
        raise problem(
            source=str(folder),
            field="weights",
            value="*.safetensors",
            reason="not found",
            remedy=remedy,
        )
    return [folder / name for name in names]


def _open(file: Path) -> Any:
    if not file.is_file():
        raise problem(
            source=str(file),
            field="weights",
            value=file.name,
            reason="is in the index but not there",
            remedy="download it again",
        )
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise problem(
            source=str(file),
            field="weights",
            value=file.name,
            reason=f"is damaged ({error})",
            remedy="download it again",
        ) from None


def _expected_shapes(config: HiggsAudioV2Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _native_key(key: str) -> str | None:
    """The native name of an original key, None for a buffer that is computed; unknown keys stay as
    they are."""
    if _COMPUTED.search(key):
        return None
    key = _HALF.sub(".weight", key)
    for original, native in _PREFIXES:
        if key.startswith(original):
            return native + key.removeprefix(original)
    return key


def original_key(key: str) -> str:
    for original, native in _PREFIXES:
        if key.startswith(native):
            return original + key.removeprefix(native)
    raise AssertionError(key)
