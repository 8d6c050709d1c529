"""Weights on disk, of both formats: which key lies where, complete and of the right shapes.

Native checkpoints and those of boson-multimodal ("original") differ in names only; matrices that
were trained in part (`PartiallyFrozen*`) lie in the original's files as two halves. Everything is
checked before a tensor is read: transformers starts missing weights at random with a warning and
drops the text head in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

Format = Literal["native", "original"]
TEXT_HEAD = "text_lm_head.weight"
_AGAIN = "download it again"

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
        shape = self.parts[0].shape
        for half in self.parts[1:]:
            shape = (shape[0] + half.shape[0], *shape[1:])
        return shape

    def read(self) -> Tensor:
        """Mapped from the file, copied only if it has two parts."""
        tensors = [part.opened.get_tensor(part.key) for part in self.parts]
        if len(tensors) == 1:
            return tensors[0]
        return torch.cat(tensors)


def sources_of(
    folder: Path, config: HiggsAudioV2Config, source_format: Format, *, text_head: bool = True
) -> dict[str, Source]:
    """Native key -> where it lies in the files of `folder`.

    text_head: it must be there; else it is left out. Raises UserError for a missing or damaged
    file, and for a key that is missing, surplus or of another shape."""
    sources = _sources(folder, source_format)
    expected = _expected_shapes(config, folder)
    for native, source in sources.items():
        _check_shape(source, expected.get(native), folder)
    if not text_head:
        expected.pop(TEXT_HEAD)
    _check_complete(sources, expected, folder, source_format)
    return {key: sources[key] for key in expected}


def _sources(folder: Path, source_format: Format) -> dict[str, Source]:
    """All weights of `folder` under their native keys, whatever they are."""
    parts: dict[str, list[Part]] = {}
    for file in _files(folder):
        opened = _open(file)
        for key in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
            native = _native_key(key, source_format)
            if native is not None:
                parts.setdefault(native, []).append(Part(file, opened, key))
    sources = {}
    for native, halves in parts.items():
        # `..._frozen` comes before `..._trainable`, whatever the order of the files.
        halves.sort(key=lambda part: part.key)
        sources[native] = Source(tuple(halves))
    return sources


def _check_shape(source: Source, expected: tuple[int, ...] | None, folder: Path) -> None:
    """expected: None for a key that the model does not have."""
    names = ", ".join(part.key for part in source.parts)
    if expected is None:
        remedy = "check that config.json belongs to these weights"
        raise _wrong(folder, names, "is not a weight of this model", remedy)
    if source.shape != expected:
        reason = f"has shape {list(source.shape)}, config.json says {list(expected)}"
        raise _wrong(folder, names, reason, "download it again, with its config.json")


def _check_complete(
    sources: dict[str, Source], expected: Iterable[str], folder: Path, source_format: Format
) -> None:
    missing = [key for key in expected if key not in sources]
    if not missing:
        return
    reason = f"is missing ({len(missing)} keys in all)"
    remedy = "download it again; it is no complete checkpoint"
    key = missing[0]
    # The likeliest one, whatever else is missing: transformers saves without it.
    if TEXT_HEAD in missing:
        reason = "is missing: the checkpoint was saved without its text head, which training needs"
        remedy = "start from the published checkpoint"
        key = TEXT_HEAD
    if source_format == "original":
        key = original_key(key)
    raise _wrong(folder, key, reason, remedy)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in _names_in(index)]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        remedy = "download the whole checkpoint into this folder"
        raise _wrong(folder, "*.safetensors", "not found", remedy)
    return files


def _names_in(index: Path) -> list[str]:
    weight_map = read_json(index, _AGAIN).get("weight_map")
    if isinstance(weight_map, dict):
        names = set(weight_map.values())
        if all(isinstance(name, str) for name in names):
            return sorted(names)
    raise problem(
        source=str(index),
        field="weight_map",
        value=weight_map,
        reason="does not map weights to files",
        remedy=_AGAIN,
    )


def _open(file: Path) -> Any:
    if not file.is_file():
        raise _wrong(file, file.name, "is in the index but not there", _AGAIN)
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise _wrong(file, file.name, f"is damaged ({error})", _AGAIN) from None


def _wrong(source: Path, value: str, reason: str, remedy: str) -> UserError:
    return problem(source=str(source), field="weights", value=value, reason=reason, remedy=remedy)


def _expected_shapes(config: HiggsAudioV2Config, folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    except Exception as error:  # what a wrong value raises depends on the field
        raise problem(
            source=str(folder / "config.json"),
            field="content",
            value=" ".join(f"{type(error).__name__}: {error}".split()),
            reason="is what building this model ends in",
            remedy="download the file again",
        ) from error
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _native_key(key: str, source_format: Format) -> str | None:
    """The native name, None for a buffer that is computed and for a duplicate; unknown keys stay
    as they are."""
    if source_format == "native":
        return None if key in _DUPLICATES else key
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
