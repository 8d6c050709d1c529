"""Which entries of a checkpoint's files are refused: those that let a library import, fetch or run
something.

    config.json, generation_config.json --check_model-->       nothing, or a UserError that
    config.json of a codec              --check_codec-->       names file and entry
    adapter_config.json                 --check_adapter-->
    a base or codec that such a file names --NamedByCheckpoint--> never fetched from a hub

`trust_remote_code=False`, with which everything is loaded here, is about `auto_map` and
`custom_generate` alone. The entries below are honoured by transformers 5.19, peft 0.20 and MS-SWIFT
4.6 without being asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.errors import UserError, problem
from plugins.files.disk import read_json

ADAPTER_CONFIG = "adapter_config.json"

# Those that transformers ships. Any other name is an address on a hub, whose code is downloaded and
# run.
ATTENTION = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
_REFUSED = {
    # A kernel of a hub for most methods, compiled code for some; weights here are always plain
    # tensors.
    "quantization_config": "chooses the library that reads the weights",
    "transformers_weights": "puts another file in the place of the weights that are checked",
    "configuration_files": "puts another file in the place of this one",
    # {"harmless": "_attn_implementation"} would let `harmless` mean what is refused by its name.
    "attribute_map": "gives other entries another meaning",
}
_CODEC_PARTS = {"acoustic_model_config": "dac", "semantic_model_config": "hubert"}
# Of peft: matrices beside those of the base. Others load further adapters or tokenizers, from a hub
# too.
_ADAPTERS = ("LORA", "ADALORA", "BOFT", "FOURIERFT", "VERA")
# Of MS-SWIFT: the one imports what its files name, the other downloads a model.
_FETCHING = ("REFT", "SIDE")
_REMEDY = "remove the entry if you trust the rest"


class NamedByCheckpoint(str):
    """A folder or Hub id that a checkpoint's file names, and nobody typed:
    `plugins.files.hub.local_folder` looks it up on this machine, and downloads it only if it is a
    published one."""


def check_model(folder: Path) -> None:
    """Raise UserError if a config of the model in `folder` holds an entry that is refused."""
    if (folder / ADAPTER_CONFIG).is_file():
        # transformers would load it into the model, unchecked.
        raise problem(
            source=str(folder),
            field="folder",
            value=ADAPTER_CONFIG,
            reason="lies beside a whole model, which it would change",
            remedy="give its folder with --adapters",
        )
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            _check_entries(folder / name)


def check_codec(folder: Path) -> None:
    """As `check_model`; and the codec's two parts must be those of every such codec: transformers
    would build any model that their configs name."""
    check_model(folder)
    file = folder / "config.json"
    fields = read_json(file, "download the file again") if file.is_file() else {}
    for part, expected in _CODEC_PARTS.items():
        config = fields.get(part)
        if not isinstance(config, dict):
            continue  # none, or nothing that transformers could build
        model_type = config.get("model_type", expected)
        if model_type != expected:
            raise problem(
                source=str(file),
                field=f"{part}.model_type",
                value=model_type,
                reason=f"is not {expected!r}",
                remedy="give a codec folder",
            )


def check_adapter(folder: Path) -> None:
    """Raise UserError if `folder`, or one below it, which MS-SWIFT loads too, holds an adapter of
    another kind than matrices beside those of the base."""
    for file in sorted([*folder.glob(ADAPTER_CONFIG), *folder.glob(f"*/{ADAPTER_CONFIG}")]):
        fields = read_json(file, "copy it again from the training's folder")
        if "peft_type" in fields and fields["peft_type"] not in _ADAPTERS:
            raise problem(
                source=str(file),
                field="peft_type",
                value=fields["peft_type"],
                reason="is not available for this model",
                remedy=f"train one of {', '.join(_ADAPTERS)}",
            )
        if str(swift_type := fields.get("swift_type")).upper() in _FETCHING:
            raise problem(
                source=str(file),
                field="swift_type",
                value=swift_type,
                reason="is not available for this model",
                remedy="train LoRA",
            )
        if megatron := fields.get("megatron_config"):
            reason = "lets peft import a module by its name"
            raise _refused(file, "megatron_config", megatron, reason)


def _check_entries(file: Path) -> None:
    for path, name, value in _entries(read_json(file, "download the file again")):
        if "attn_implementation" in name:
            _check_attention(file, path, value)
        elif name in _REFUSED and value:
            raise _refused(file, path, value, _REFUSED[name])


def _check_attention(file: Path, path: str, value: object) -> None:
    """value: a name, or one per part of the model."""
    names = value.values() if isinstance(value, dict) else [value]
    for attention in names:
        if isinstance(attention, str) and attention not in ATTENTION:
            reason = f"is none of {', '.join(ATTENTION)}: it would be fetched from a hub and run"
            raise _refused(file, path, attention, reason)


def _refused(file: Path, path: str, value: object, reason: str) -> UserError:
    return problem(source=str(file), field=path, value=value, reason=reason, remedy=_REMEDY)


def _entries(fields: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Path with dots, name and value of each entry at any depth."""
    waiting: list[tuple[str, Any]] = [("", fields)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, dict):
            for name, entry in value.items():
                yield f"{prefix}{name}", name, entry
                waiting.append((f"{prefix}{name}.", entry))
        elif isinstance(value, list):
            waiting += [(f"{prefix}{i}.", entry) for i, entry in enumerate(value)]
