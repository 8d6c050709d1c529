"""Checkpoints of boson-multimodal (`model_type: higgs_audio`) <-> native ones: configs and whole
folders. L2.

    original folder --native_config--> `plugins.model.load.native_model`
    either folder --convert--> a folder of the other format, file by file, never half written

No code of a checkpoint is executed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import HiggsAudioV2TokenizerConfig, PreTrainedTokenizerFast

from plugins.audio.codec import CODEC_FOLDER
from plugins.audio.original_codec import is_original as is_original_codec
from plugins.audio.original_codec import save_native, to_original
from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.files.hub import check_new_folder, local_folder, new_folder
from plugins.files.untrusted import ADAPTER_CONFIG, check_model
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.model.weights import Format, Source, original_key, sources_of
from plugins.settings import SETTINGS_FILE

MODEL_TYPE = "higgs_audio"

# What a native model cannot do, and the values that it needs.
_REQUIRED = {
    "use_delay_pattern": True,
    "audio_embed_avg": False,
    "use_audio_out_embed_projector": False,
    "use_audio_out_self_attention": False,
    "use_rq_transformer": False,
    "audio_decoder_proj_num_layers": 0,
}
_SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "initializer_range", "rms_norm_eps", "attention_bias", "attention_dropout", "mlp_bias", "head_dim",
)  # fmt: skip
# The published native checkpoint says 2048 where the original says 131072, from which MS-SWIFT
# takes its default `max_length`, and writes Llama-3's rope in eighths, so that its original length
# stays below that.
_MAX_POSITIONS = {"native": 2048, "original": 131072}
_ROPE_SCALE = 1 / 8
_DOWNLOAD = "download the file again"
# Read by humans and by the original's loader; weights, configs and codec are written anew.
_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "LICENSE*",
    "*.md",
    SETTINGS_FILE,
)


def model_type_of(folder: Path) -> str | None:
    """What `config.json` says, None without one. Raises UserError if it is no JSON."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    return read_json(file, _DOWNLOAD).get("model_type")


def format_of(folder: Path) -> Format:
    """Which format the model in `folder` has. Raises UserError if it is no Higgs-Audio V2."""
    model_type = model_type_of(folder)
    if model_type == MODEL_TYPE:
        return "original"
    if model_type != HiggsAudioV2Config.model_type:
        remedy = "give the folder of a Higgs-Audio V2 checkpoint, native or original"
        raise problem(
            source=str(folder / "config.json"),
            field="model_type",
            value=model_type,
            reason="is no Higgs-Audio V2",
            remedy=remedy,
        )
    return "native"


# Config.


class _Fields(dict[str, Any]):
    """An object of a config.json: a field that is missing is named when it is asked for."""

    def __init__(self, file: Path, path: str, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise problem(
                source=str(file),
                field=path,
                value=fields,
                reason="is no JSON object",
                remedy=_DOWNLOAD,
            )
        super().__init__(fields)
        self._file = file
        self._path = path

    def __missing__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        raise problem(
            source=str(self._file), field=path, value=None, reason="is missing", remedy=_DOWNLOAD
        )

    def part(self, name: str) -> _Fields:
        return _Fields(self._file, name if not self._path else f"{self._path}.{name}", self[name])


def load_config(folder: Path) -> HiggsAudioV2Config:
    """The native config of a native or original folder.

    Raises UserError if it is of neither, damaged, or holds an entry that `plugins.files.untrusted`
    refuses."""
    is_original = format_of(folder) == "original"
    check_model(folder)
    try:
        return native_config(folder) if is_original else HiggsAudioV2Config.from_pretrained(folder)
    except UserError:
        raise
    # What a field of the wrong type raises depends on the field.
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
        said = " ".join(str(error).split())
        raise problem(
            source=str(folder / "config.json"),
            field="content",
            value=said,
            reason="is no config of this model",
            remedy=_DOWNLOAD,
        ) from error


def native_config(folder: Path) -> HiggsAudioV2Config:
    """The native config of an original folder; the ids that it does not name come from the folder's
    tokenizer.

    Raises UserError for variants of the architecture that the native class cannot express.
    """
    file = folder / "config.json"
    original = _Fields(file, "", read_json(file, _DOWNLOAD))
    text = original.part("text_config")
    _check_variant(original, text, file)
    tokenizer = load_tokenizer(folder)

    def token_id(name: str) -> int:
        found: Any = tokenizer.convert_tokens_to_ids(name)
        if found is None or found == tokenizer.unk_token_id:
            raise problem(
                source=str(folder),
                field="tokenizer",
                value=name,
                reason="is not in the vocabulary",
                remedy="add the published tokenizer",
            )
        return found

    rope = text.part("rope_scaling") if text.get("rope_scaling") else {"rope_type": "default"}
    has_tower = not original["skip_audio_tower"]
    tower: dict[str, Any] = {}
    if has_tower:
        if not original.get("encode_whisper_embed", True):
            reason = "switches off the audio tower that skip_audio_tower keeps: the original then hears codes only"
            remedy = "set it to true, or skip_audio_tower to true and remove the tower's weights"
            raise problem(
                source=str(file),
                field="encode_whisper_embed",
                value=original["encode_whisper_embed"],
                reason=reason,
                remedy=remedy,
            )
        tower["audio_encoder_config"] = original["audio_encoder_config"]
        tower["audio_in_token_id"] = original["audio_in_token_idx"]
    if not has_tower and not original["encode_audio_in_tokens"]:
        reason = "leaves no way to hear a reference: there is no audio tower either"
        raise problem(
            source=str(file),
            field="encode_audio_in_tokens",
            value=False,
            reason=reason,
            remedy="set it to true",
        )
    config = HiggsAudioV2Config(
        **{name: text[name] for name in _SHAPE if name in text},
        **tower,
        rope_parameters={**_rescaled(rope, _ROPE_SCALE), "rope_theta": text["rope_theta"]},
        max_position_embeddings=_MAX_POSITIONS["native"],
        num_codebooks=original["audio_num_codebooks"],
        codebook_size=original["audio_codebook_size"] + 2,  # stream BOS and EOS
        audio_stream_bos_id=original["audio_stream_bos_id"],
        audio_stream_eos_id=original["audio_stream_eos_id"],
        audio_token_id=original["audio_out_token_idx"],
        audio_bos_token_id=token_id("<|audio_out_bos|>"),
        audio_delay_token_id=token_id("<|reserved_special_token_6|>"),
        encode_audio_in_tokens=original["encode_audio_in_tokens"],
        pad_token_id=original["pad_token_id"],
        bos_token_id=token_id("<|begin_of_text|>"),
        eos_token_id=token_id("<|eot_id|>"),
        architectures=[HiggsAudioV2ForConditionalGeneration.__name__],
        dtype=original.get("torch_dtype"),
    )
    config.name_or_path = str(folder)
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """What tokenizer.json says. Raises UserError if there is none, or it is damaged.

    `AutoTokenizer` would take whichever class of transformers tokenizer_config.json names.
    """
    remedy = "put the tokenizer's files of the published checkpoint into this folder"
    if not any(folder.glob("tokenizer*")):
        raise problem(
            source=str(folder),
            field="tokenizer",
            value="tokenizer.json",
            reason="not found",
            remedy=remedy,
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # a damaged file can raise anything inside the parser
        reason = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
        raise problem(
            source=str(folder), field="tokenizer", value="tokenizer*", reason=reason, remedy=remedy
        ) from error


def _check_variant(original: _Fields, text: _Fields, file: Path) -> None:
    remedy = "only DualFFN checkpoints with a delay pattern, as Boson publishes them, can be loaded"
    layers = list(range(text["num_hidden_layers"]))
    if (
        not original["audio_adapter_type"].startswith("dual_ffn")
        or original["audio_dual_ffn_layers"] != layers
    ):
        value = f"{original['audio_adapter_type']} in layers {original['audio_dual_ffn_layers']}"
        raise problem(
            source=str(file),
            field="audio_adapter_type",
            value=value,
            reason="is not an audio FFN in every layer",
            remedy=remedy,
        )
    for name, needed in _REQUIRED.items():
        if original.get(name, needed) != needed:
            raise problem(
                source=str(file),
                field=name,
                value=original[name],
                reason=f"is not {needed}",
                remedy=remedy,
            )
    if original["audio_ffn_intermediate_size"] != text["intermediate_size"]:
        value = original["audio_ffn_intermediate_size"]
        raise problem(
            source=str(file),
            field="audio_ffn_intermediate_size",
            value=value,
            reason="is not that of the text FFN",
            remedy=remedy,
        )


def _rescaled(rope: dict[str, Any], scale: float) -> dict[str, Any]:
    """Llama-3's rope with another original length: wavelengths are compared with length / factor,
    which stays."""
    if rope["rope_type"] != "llama3":
        return rope
    length = int(rope["original_max_position_embeddings"] * scale)
    factors = {name: rope[name] * scale for name in ("low_freq_factor", "high_freq_factor")}
    return {**rope, **factors, "original_max_position_embeddings": length}


def _original_config(config: HiggsAudioV2Config, tokenizer: Any) -> dict[str, Any]:
    rope = dict(config.rope_parameters or {})
    theta = rope.pop("rope_theta")
    text = {
        **{name: getattr(config, name) for name in _SHAPE},
        "model_type": "llama",
        "max_position_embeddings": _MAX_POSITIONS["original"],
        "rope_theta": theta,
        "rope_scaling": _rescaled(rope, 1 / _ROPE_SCALE)
        if rope["rope_type"] != "default"
        else None,
        "tie_word_embeddings": False,
    }
    has_tower = config.audio_encoder_config is not None
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["HiggsAudioModel"],
        "text_config": text,
        "audio_encoder_config": config.audio_encoder_config
        or {"model_type": "higgs_audio_encoder"},
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(config.num_hidden_layers)),
        "audio_ffn_hidden_size": config.hidden_size,
        "audio_ffn_intermediate_size": config.intermediate_size,
        **_REQUIRED,
        "skip_audio_tower": not has_tower,
        "encode_whisper_embed": has_tower,
        "encode_audio_in_tokens": config.encode_audio_in_tokens,
        "audio_num_codebooks": config.num_codebooks,
        "audio_codebook_size": config.codebook_size - 2,
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_out_bos_token": "<|audio_out_bos|>",
        "audio_in_token": "<|AUDIO|>",
        "audio_out_token": "<|AUDIO_OUT|>",
        "audio_in_token_idx": tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        "audio_out_token_idx": config.audio_token_id,
        "audio_out_bos_token_id": config.audio_bos_token_id,
        "audio_eos_token_id": tokenizer.convert_tokens_to_ids("<|audio_eos|>"),
        "pad_token_id": config.pad_token_id,
        "torch_dtype": str(config.dtype).removeprefix("torch.")
        if config.dtype is not None
        else None,
    }


def convert(source: Path, target: Path, *, to: Format, show_progress: bool = True) -> None:
    """Write `source`, the folder or Hub id of a model or of a codec, into the new folder `target`
    in the other format.

    Tensors keep their values and types to the bit. Raises UserError if `source` is not of the other
    format or not complete, or if `target` exists or lies in it; `target` appears only when it is
    complete."""
    source = Path(local_folder(str(source), option="source"))
    check_new_folder(target, source)
    if (source / ADAPTER_CONFIG).is_file():
        remedy = f"merge it first: swift export --adapters {source} --merge_lora true"
        raise problem(
            source=str(source),
            field="folder",
            value=ADAPTER_CONFIG,
            reason="says that these are LoRA weights, no whole model",
            remedy=remedy,
        )
    if model_type_of(source) == HiggsAudioV2TokenizerConfig.model_type or is_original_codec(source):
        _convert_codec(source, target, to=to)
        return
    source_format = format_of(source)
    if source_format == to:
        raise problem(
            source=str(source),
            field="format",
            value=to,
            reason="is what it is already",
            remedy="name the checkpoint of the other format",
        )
    config = load_config(source)
    tokenizer = load_tokenizer(source)
    sources = sources_of(source, config, source_format)
    with new_folder(target, source) as unfinished:
        for pattern in _COPIED:
            for file in source.glob(pattern):
                if file.is_file():
                    shutil.copy2(file, unfinished / file.name)
        if (source / CODEC_FOLDER).is_dir():
            shutil.copytree(
                source / CODEC_FOLDER, unfinished / CODEC_FOLDER
            )  # `Codec` reads both formats
        _write_weights(sources, unfinished, to=to, show_progress=show_progress)
        if to == "native":
            config.save_pretrained(unfinished)
            _write_json(unfinished / "generation_config.json", generation_config(config))
        else:
            _write_json(unfinished / "config.json", _original_config(config, tokenizer))
            ids = {
                name: getattr(config, name)
                for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            }
            _write_json(unfinished / "generation_config.json", {"_from_model_config": True, **ids})


def _convert_codec(source: Path, target: Path, *, to: Format) -> None:
    if is_original_codec(source) == (to == "original"):
        raise problem(
            source=str(source),
            field="format",
            value=to,
            reason="is what it is already",
            remedy="name the codec of the other format",
        )
    (save_native if to == "native" else to_original)(source, target)


def _write_weights(
    sources: dict[str, Source], folder: Path, *, to: Format, show_progress: bool
) -> None:
    """One file per file of the source, so that no more than one of them is in memory."""
    by_file: dict[str, list[str]] = {}
    for native, source in sources.items():
        by_file.setdefault(source.parts[0].file.name, []).append(native)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for name, keys in tqdm(
        sorted(by_file.items()), desc=f"to {to}", unit="file", disable=not show_progress
    ):
        tensors = {
            key if to == "native" else original_key(key): sources[key].read().contiguous()
            for key in keys
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(by_file) > 1:
        index = {
            "metadata": {"total_size": num_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        _write_json(folder / "model.safetensors.index.json", index)


def generation_config(config: HiggsAudioV2Config) -> dict[str, Any]:
    """The defaults of the published native checkpoint, repetition-aware sampling among them."""
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.95,
        "ras_win_len": 7,
        "ras_win_max_num_repeat": 2,
    }


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
