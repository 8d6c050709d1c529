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

from safetensors import SafetensorError, safe_open

from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.files.sizes import check_pattern, check_sizes, entries

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

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
    "sub_configs": "gives other entries another meaning",
}
_CODEC_PARTS = {"acoustic_model_config": "dac", "semantic_model_config": "hubert"}
# Of peft: matrices beside those of the base. Others load further adapters or tokenizers, from a hub
# too.
_ADAPTERS = ("LORA", "ADALORA", "BOFT", "FOURIERFT", "VERA")
# Of MS-SWIFT: the one imports what its files name, the other downloads a model.
_FETCHING = ("REFT", "SIDE")
_ADAPTER_REFUSED = {
    "megatron_config": "lets peft import a module by its name",
    "layer_replication": "makes a model of other layers than the base has",
}
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
        for name, reason in _ADAPTER_REFUSED.items():
            if value := fields.get(name):
                raise _refused(file, name, value, reason)
        check_sizes(file, fields)
        for path, pattern in _patterns(fields):
            check_pattern(file, path, pattern)
        _check_ranks(file, fields)


def _patterns(fields: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What peft takes for a regular expression."""
    for name in ("target_modules", "exclude_modules"):
        yield name, fields.get(name)  # a list of them holds names
    for name in ("layers_pattern", "modules_to_save"):
        value = fields.get(name)
        for pattern in value if isinstance(value, list) else [value]:
            yield name, pattern
    for name in ("rank_pattern", "alpha_pattern", "n_frequency_pattern"):
        value = fields.get(name)
        for pattern in value if isinstance(value, dict) else ():
            yield name, pattern


def _check_ranks(file: Path, fields: dict[str, Any]) -> None:
    """A rank is a side of the matrices in the file of weights: more would be memory that is filled
    before anybody compares."""
    weights = file.with_name(ADAPTER_WEIGHTS)
    if not weights.is_file():
        return  # told by whoever reads them
    try:
        with safe_open(weights, framework="numpy") as opened:
            shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
    except (SafetensorError, OSError):
        return  # told by whoever reads them, too
    largest = max((side for shape in shapes for side in shape), default=0)
    ranks = [(name, fields.get(name)) for name in ("r", "init_r", "target_r", "n_frequency")]
    for pattern in ("rank_pattern", "n_frequency_pattern"):
        if isinstance(fields.get(pattern), dict):
            ranks += [(pattern, rank) for rank in fields[pattern].values()]
    for name, rank in ranks:
        if isinstance(rank, int | float) and rank > largest:
            raise problem(
                source=str(file),
                field=name,
                value=rank,
                reason=f"is more than the longest side of any matrix in {weights.name}, {largest}",
                remedy="copy both files again from the training's folder",
            )


def _check_entries(file: Path) -> None:
    fields = read_json(file, "download the file again")
    check_sizes(file, fields)
    for path, name, value in entries(fields):
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
