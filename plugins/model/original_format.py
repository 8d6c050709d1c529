"""What a checkpoint's folder says it is, and its `config.json`: that of boson-multimodal
(`model_type: higgs_audio`, "original") <-> the native one.

    folder of either format     --load_config-->     native config
    native config, tokenizer    --original_config--> the content of an original config.json

No code of a checkpoint is executed. This file reads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerFast

from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.files.untrusted import check_model
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.model.weights import Format

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
# Fields of the same names and values in both.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "head_dim",
)
# The published native checkpoint says 2048 where the original says 131072, from which MS-SWIFT
# takes its default `max_length`, and writes Llama-3's rope in eighths, so that its original length
# stays below that.
_MAX_POSITIONS = {"native": 2048, "original": 131072}
_ROPE_SCALE = 1 / 8
_DOWNLOAD = "download the file again"


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
        raise problem(
            source=str(folder / "config.json"),
            field="model_type",
            value=model_type,
            reason="is no Higgs-Audio V2",
            remedy="give the folder of a Higgs-Audio V2 checkpoint, native or original",
        )
    return "native"


def load_config(folder: Path) -> HiggsAudioV2Config:
    """The native config of a native or original folder.

    Raises UserError if it is of neither, damaged, or holds an entry that `plugins.files.untrusted`
    refuses."""
    source_format = format_of(folder)
    check_model(folder)
    check_generation_config(folder)
    try:
        if source_format == "original":
            return native_config(folder)
        return HiggsAudioV2Config.from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # what a field of the wrong type raises depends on the field
        raise _no_config(folder / "config.json", error) from error


def check_generation_config(folder: Path) -> None:
    """Raise UserError if transformers would stumble over the folder's generation_config.json, which
    it reads beside the weights."""
    file = folder / "generation_config.json"
    if file.is_file():
        try:
            GenerationConfig.from_pretrained(folder)
        except Exception as error:  # depends on the field, too
            raise _no_config(file, error) from error


def _no_config(file: Path, error: Exception) -> UserError:
    return problem(
        source=str(file),
        field="content",
        value=" ".join(str(error).split()) or type(error).__name__,
        reason="is no config of this model",
        remedy=_DOWNLOAD,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """What tokenizer.json says. Raises UserError if there is none, or it is damaged.

    `AutoTokenizer` would take whichever class of transformers tokenizer_config.json names.
    """

    def wrong(value: str, reason: str) -> UserError:
        return problem(
            source=str(folder),
            field="tokenizer",
            value=value,
            reason=reason,
            remedy="put the tokenizer's files of the published checkpoint into this folder",
        )

    if not any(folder.glob("tokenizer*")):
        raise wrong("tokenizer.json", "not found")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer("Hello.")  # some entries are looked at only then
        return tokenizer
    except Exception as error:  # a damaged file can raise anything inside the parser
        reason = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
        raise wrong("tokenizer*", reason) from error


def native_config(folder: Path) -> HiggsAudioV2Config:
    """The native config of an original folder; the ids that it does not name come from the folder's
    tokenizer.

    Raises UserError for variants of the architecture that the native class cannot express.
    """
    file = folder / "config.json"
    # A field that is missing is named; `get` is for those that older releases lack.
    original = _Fields(file, "", read_json(file, _DOWNLOAD))
    text = original.part("text_config")
    _check_variant(original, text)
    tokenizer = load_tokenizer(folder)
    rope: dict[str, Any] = {"rope_type": "default"}
    if text.get("rope_scaling"):
        rope = text.part("rope_scaling")
    config = HiggsAudioV2Config(
        **{name: text[name] for name in _SHAPE if name in text},
        **_tower(original),
        rope_parameters={**_rescaled(rope, _ROPE_SCALE), "rope_theta": text["rope_theta"]},
        max_position_embeddings=_MAX_POSITIONS["native"],
        num_codebooks=original["audio_num_codebooks"],
        codebook_size=original["audio_codebook_size"] + 2,  # stream BOS and EOS
        audio_stream_bos_id=original["audio_stream_bos_id"],
        audio_stream_eos_id=original["audio_stream_eos_id"],
        audio_token_id=original["audio_out_token_idx"],
        audio_bos_token_id=_token_id(tokenizer, "<|audio_out_bos|>", folder),
        audio_delay_token_id=_token_id(tokenizer, "<|reserved_special_token_6|>", folder),
        encode_audio_in_tokens=original["encode_audio_in_tokens"],
        pad_token_id=original["pad_token_id"],
        bos_token_id=_token_id(tokenizer, "<|begin_of_text|>", folder),
        eos_token_id=_token_id(tokenizer, "<|eot_id|>", folder),
        architectures=[HiggsAudioV2ForConditionalGeneration.__name__],
        dtype=original.get("torch_dtype"),
    )
    # LoRA checkpoints name their base by it.
    config.name_or_path = str(folder)
    return config


def original_config(config: HiggsAudioV2Config, tokenizer: Any) -> dict[str, Any]:
    """The content of an original config.json."""
    rope = dict(config.rope_parameters or {})
    theta = rope.pop("rope_theta")
    has_rope_scaling = rope["rope_type"] != "default"
    text = {
        **{name: getattr(config, name) for name in _SHAPE},
        "model_type": "llama",
        "max_position_embeddings": _MAX_POSITIONS["original"],
        "rope_theta": theta,
        "rope_scaling": _rescaled(rope, 1 / _ROPE_SCALE) if has_rope_scaling else None,
        "tie_word_embeddings": False,
    }
    has_tower = config.audio_encoder_config is not None
    dtype = None if config.dtype is None else str(config.dtype).removeprefix("torch.")
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["HiggsAudioModel"],
        "text_config": text,
        # The original's constructor wants one even where it skips the tower.
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
        "torch_dtype": dtype,
    }


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


class _Fields(dict[str, Any]):
    """An object of a config.json: a field that is missing is named when it is asked for."""

    def __init__(self, file: Path, path: str, fields: Any) -> None:
        self.file = file
        self._path = path
        if not isinstance(fields, dict):
            raise self._wrong(path, fields, "is no JSON object", _DOWNLOAD)
        super().__init__(fields)

    def __missing__(self, name: str) -> Any:
        raise self._wrong(self._path_of(name), None, "is missing", _DOWNLOAD)

    def part(self, name: str) -> _Fields:
        return _Fields(self.file, self._path_of(name), self[name])

    def wrong(self, name: str, reason: str, remedy: str) -> UserError:
        """What is wrong with the value of field `name`, which is there."""
        return self._wrong(self._path_of(name), self[name], reason, remedy)

    def _path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _wrong(self, path: str, value: object, reason: str, remedy: str) -> UserError:
        file = str(self.file)
        return problem(source=file, field=path, value=value, reason=reason, remedy=remedy)


def _check_variant(original: _Fields, text: _Fields) -> None:
    remedy = "only DualFFN checkpoints with a delay pattern, as Boson publishes them, can be loaded"
    every_layer = list(range(text["num_hidden_layers"]))
    is_dual = original["audio_adapter_type"].startswith("dual_ffn")
    if not is_dual or original["audio_dual_ffn_layers"] != every_layer:
        raise problem(
            source=str(original.file),
            field="audio_adapter_type",
            value=f"{original['audio_adapter_type']} in layers {original['audio_dual_ffn_layers']}",
            reason="is not an audio FFN in every layer",
            remedy=remedy,
        )
    for name, needed in _REQUIRED.items():
        if original.get(name, needed) != needed:
            raise original.wrong(name, f"is not {needed}", remedy)
    if original["audio_ffn_intermediate_size"] != text["intermediate_size"]:
        raise original.wrong("audio_ffn_intermediate_size", "is not that of the text FFN", remedy)


def _tower(original: _Fields) -> dict[str, Any]:
    """The native config's fields of the audio tower; none without one."""
    if original["skip_audio_tower"]:
        if not original["encode_audio_in_tokens"]:
            raise original.wrong(
                "encode_audio_in_tokens",
                "leaves no way to hear a reference: there is no audio tower either",
                "set it to true",
            )
        return {}
    if not original.get("encode_whisper_embed", True):
        raise original.wrong(
            "encode_whisper_embed",
            "switches off the audio tower that skip_audio_tower keeps: the original then hears"
            " codes only",
            "set it to true, or skip_audio_tower to true and remove the tower's weights",
        )
    return {
        "audio_encoder_config": original["audio_encoder_config"],
        "audio_in_token_id": original["audio_in_token_idx"],
    }


def _token_id(tokenizer: PreTrainedTokenizerFast, name: str, folder: Path) -> int:
    token: Any = tokenizer.convert_tokens_to_ids(name)
    if token is None or token == tokenizer.unk_token_id:
        raise problem(
            source=str(folder),
            field="tokenizer",
            value=name,
            reason="is not in the vocabulary",
            remedy="add the published tokenizer",
        )
    return token


def _rescaled(rope: dict[str, Any], scale: float) -> dict[str, Any]:
    """Llama-3's rope with another original length: wavelengths are compared with length / factor,
    which stays."""
    if rope["rope_type"] != "llama3":
        return rope
    length = int(rope["original_max_position_embeddings"] * scale)
    factors = {name: rope[name] * scale for name in ("low_freq_factor", "high_freq_factor")}
    return {**rope, **factors, "original_max_position_embeddings": length}
