"""A whole folder, of a model or of a codec -> a new folder of the other format, file by file, which
appears only when it is complete.

Original (boson-multimodal's) and native folders hold the same tensors, to the bit, under other
names. No more than one file of weights is in memory. This file knows no key and no field: see
`plugins.model.weights` and `plugins.model.original_format`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import HiggsAudioV2TokenizerConfig

from plugins.audio.codec import CODEC_FOLDER
from plugins.audio.original_codec import is_original as is_original_codec
from plugins.audio.original_codec import save_native, to_original
from plugins.errors import UserError, problem
from plugins.files.hub import check_new_folder, local_folder, new_folder
from plugins.files.untrusted import ADAPTER_CONFIG
from plugins.model.original_format import (
    format_of,
    generation_config,
    load_config,
    load_tokenizer,
    model_type_of,
    original_config,
)
from plugins.model.weights import Format, Source, original_key, sources_of
from plugins.settings import SETTINGS_FILE

# Read by humans and by the original's loader; weights, configs and codec are written anew.
_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "LICENSE*",
    "*.md",
    SETTINGS_FILE,
)


def convert(source: Path, target: Path, *, to: Format, show_progress: bool = True) -> None:
    """Write `source`, the folder or Hub id of a model or of a codec, into the new folder `target`
    in the other format.

    Tensors keep their values and types to the bit. Raises UserError if `source` is not of the other
    format or not complete, or if `target` exists or lies in it; `target` appears only when it is
    complete."""
    source = Path(local_folder(str(source), option="source"))
    check_new_folder(target, source)
    if (source / ADAPTER_CONFIG).is_file():
        raise problem(
            source=str(source),
            field="folder",
            value=ADAPTER_CONFIG,
            reason="says that these are LoRA weights, no whole model",
            remedy=f"merge it first: swift export --adapters {source} --merge_lora true",
        )
    if model_type_of(source) == HiggsAudioV2TokenizerConfig.model_type or is_original_codec(source):
        _convert_codec(source, target, to=to)
    else:
        _convert_model(source, target, to=to, show_progress=show_progress)


def _convert_codec(source: Path, target: Path, *, to: Format) -> None:
    if is_original_codec(source) == (to == "original"):
        raise _is_already(source, to, "codec")
    if to == "native":
        save_native(source, target)
    else:
        to_original(source, target)


def _convert_model(source: Path, target: Path, *, to: Format, show_progress: bool) -> None:
    source_format = format_of(source)
    if source_format == to:
        raise _is_already(source, to, "checkpoint")
    # Whatever is wrong with the source is found before anything is written.
    config = load_config(source)
    tokenizer = load_tokenizer(source)
    sources = sources_of(source, config, source_format)
    with new_folder(target, source) as unfinished:
        for pattern in _COPIED:
            for file in filter(Path.is_file, source.glob(pattern)):
                shutil.copy2(file, unfinished / file.name)
        if (source / CODEC_FOLDER).is_dir():  # `Codec` reads both formats
            shutil.copytree(source / CODEC_FOLDER, unfinished / CODEC_FOLDER)
        _write_weights(sources, unfinished, to=to, show_progress=show_progress)
        if to == "native":
            config.save_pretrained(unfinished)
            generation = generation_config(config)
        else:
            _write_json(unfinished / "config.json", original_config(config, tokenizer))
            # As transformers writes it for a class without defaults of its own.
            generation = {"_from_model_config": True}
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                generation[name] = getattr(config, name)
        _write_json(unfinished / "generation_config.json", generation)


def _is_already(source: Path, to: Format, kind: str) -> UserError:
    return problem(
        source=str(source),
        field="format",
        value=to,
        reason="is what it is already",
        remedy=f"name the {kind} of the other format",
    )


def _write_weights(
    sources: dict[str, Source], folder: Path, *, to: Format, show_progress: bool
) -> None:
    """One file per file of the source, so that no more than one of them is in memory."""
    by_file: dict[str, list[str]] = {}
    # Halves of a matrix may lie in two files; the first one says where the whole goes.
    for native, source in sources.items():
        by_file.setdefault(source.parts[0].file.name, []).append(native)
    files = tqdm(sorted(by_file.items()), desc=f"to {to}", unit="file", disable=not show_progress)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for name, keys in files:
        tensors: dict[str, Tensor] = {}
        for key in keys:
            written = key if to == "native" else original_key(key)
            tensors[written] = sources[key].read().contiguous()
            num_bytes += tensors[written].nbytes
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(by_file) > 1:
        index = {
            "metadata": {"total_size": num_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        _write_json(folder / "model.safetensors.index.json", index)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
