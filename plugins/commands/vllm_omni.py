"""What vLLM-Omni reads of a checkpoint folder, and whether a folder has it. L4.

vLLM-Omni takes a tensor that is missing or of another shape for a failure of its engine at best; a
name that it does not know it passes over with a line in its log, and missing codec weights with
none. So the folder is checked here.

Everything below was read in the sources of vllm-project/vllm-omni (pull request 3762, release
0.22.0 and later; commits f2484119, 00bff306, 6d1a9881, 9c4d33de, 278b13b6). Nothing of it was run,
for want of a GPU:

- `vllm_omni/model_executor/models/higgs_audio_v2/pipeline.py`: `HiggsAudioV2ForConditionalGeneration` is taken by a
  pipeline of two stages, the language model and the codec; it stops at the token ids 128009 and
  128012.
- `.../higgs_audio_v2_talker.py`, `load_weights` and `_map_simple_name`: the names, here `tensors`. Q, K and V are
  fused, gate and up of either FFN too; there are no biases and no audio tower.
- `.../configuration_higgs_audio_v2.py`, and `_resolve_audio_tokenizer_path` in `.../higgs_audio_v2_code2wav.py`:
  `audio_tokenizer_id`, if not empty, names a codec elsewhere, by default Boson's repository; only
  without it is `audio_tokenizer_subdir` of the folder taken.
- `.../higgs_audio_decoder.py`, `load_higgs_audio_codec`: the codec is `config.json` and one `model.safetensors`, here
  `codec_tensors`. A `model.pth` beside it would be preferred, and unpickled.
- `.../higgs_audio_v2_tokenizer.py`, `_resolve_audio_tokenizer_dir`: references are encoded with a codec of its own,
  unless HIGGS_AUDIO_TOKENIZER_PATH names a folder that holds one, or holds it as
  `audio_tokenizer/`.
- `vllm_omni/entrypoints/openai/tts_adapters/higgs_audio_v2.py`: prompts are made by `AutoProcessor` and its chat
  template. transformers takes the codec's name in `processor_config.json` for a path from the *working folder*: a
  server has to be started in the checkpoint's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import DacConfig, DacModel, HiggsAudioV2TokenizerConfig

from plugins.audio.codec import CODEC_FOLDER
from plugins.errors import problem
from plugins.files.disk import read_json
from plugins.model.config import HiggsAudioV2Config

Shapes = dict[str, tuple[int, ...]]

ARCHITECTURE = "HiggsAudioV2ForConditionalGeneration"
# Written into config.json. Not null: a writer of configs may leave null out, and Boson's repository
# is the default.
CODEC_FIELDS = {"audio_tokenizer_id": "", "audio_tokenizer_subdir": CODEC_FOLDER}
_STOPS = {"<|eot_id|>": 128009, "<|audio_eos|>": 128012}
_WEIGHTS = "weights"


def tensors(config: HiggsAudioV2Config) -> Shapes:
    """Every tensor of the language model -> its shape.

    | in the checkpoint                                    | in vLLM-Omni                 | shape                     |
    |------------------------------------------------------|------------------------------|---------------------------|
    | `model.embed_tokens.weight`                          | `embed_tokens`               | (V, H)                    |
    | `model.norm.weight`                                  | `norm`                       | (H,)                      |
    | `model.embed_audio_tokens.embed_audio_tokens.weight` | `audio_codebook_embeddings`  | (K C, H)                  |
    | `audio_lm_head.weight`                               | `audio_lm_head`              | (K C, H)                  |
    | `text_lm_head.weight`                                | `lm_head`                    | (V, H)                    |
    | per layer, `model.layers.L.`:                        | `layers.L.`                  |                           |
    | `self_attn.q_proj`, `k_proj`, `v_proj`               | `self_attn.qkv_proj`, joined | (Q D, H), (G D, H) twice  |
    | `self_attn.o_proj`                                   | the same                     | (H, Q D)                  |
    | `mlp.gate_proj`, `up_proj`; so `audio_mlp`           | `mlp.gate_up_proj`, joined   | (I, H) twice              |
    | `mlp.down_proj`; so `audio_mlp`                      | the same                     | (H, I)                    |
    | the four norms                                       | the same                     | (H,)                      |

    Q query heads and G groups of size D, I intermediate size, the others as in `plugins`.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    assert config.head_dim is not None, "the config's class computes it"
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    codes = config.num_codebooks * config.codebook_size
    found: Shapes = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "model.embed_audio_tokens.embed_audio_tokens.weight": (codes, hidden),
        "audio_lm_head.weight": (codes, hidden),
        "text_lm_head.weight": (config.vocab_size, hidden),
    }
    layer: Shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        **{
            f"{ffn}.{name}_proj": (inner, hidden)
            for ffn in ("mlp", "audio_mlp")
            for name in ("gate", "up")
        },
        **{f"{ffn}.down_proj": (hidden, inner) for ffn in ("mlp", "audio_mlp")},
        **{
            f"{kind}{at}_layernorm": (hidden,)
            for kind in ("", "audio_")
            for at in ("input", "post_attention")
        },
    }
    for number in range(config.num_hidden_layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def codec_tensors(config: HiggsAudioV2TokenizerConfig) -> Shapes:
    """The tensors of the codec that decode codes -> their shapes: its quantizers, `fc2` and the DAC
    decoder."""
    acoustic: Any = config.acoustic_model_config
    width = config.hidden_size
    found: Shapes = {
        "fc2.weight": (acoustic.hidden_size, width),
        "fc2.bias": (acoustic.hidden_size,),
    }
    for number in range(config.num_quantizers):
        prefix = f"quantizer.quantizers.{number}"
        found[f"{prefix}.codebook.embed"] = (config.codebook_size, config.codebook_dim)
        found[f"{prefix}.project_out.weight"] = (width, config.codebook_dim)
        found[f"{prefix}.project_out.bias"] = (width,)
    with torch.device("meta"):
        decoder = DacModel(DacConfig(**acoustic.to_dict())).decoder
    return found | {
        f"acoustic_decoder.{name}": tuple(tensor.shape)
        for name, tensor in decoder.named_parameters()
    }


def check(folder: Path) -> None:
    """Raises UserError if vLLM-Omni could not load the checkpoint in `folder`, or would load it
    only in part."""
    fields = read_json(folder / "config.json", "export again")
    needed: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": HiggsAudioV2Config.model_type,
        "attention_bias": False,
        "mlp_bias": False,
        **CODEC_FIELDS,
    }
    for name, value in needed.items():
        if fields.get(name) != value:
            raise problem(
                source="vLLM-Omni: config.json",
                field=name,
                value=fields.get(name),
                reason=f"is not {value!r}",
                remedy="export again",
            )
    config = HiggsAudioV2Config.from_pretrained(folder)
    found = _shapes(folder)
    _compare(found, tensors(config), "vLLM-Omni")
    for name in found.keys() - tensors(config).keys():
        reason = "is not read: vLLM-Omni knows no such weight"
        raise problem(
            source="vLLM-Omni",
            field=_WEIGHTS,
            value=name,
            reason=reason,
            remedy="merge with `swift export` if you do not serve with it",
        )
    codec = folder / CODEC_FOLDER
    names = [file.name for file in codec.glob("model*") if file.name != "model.safetensors"]
    if names:
        raise problem(
            source=f"vLLM-Omni: {CODEC_FOLDER}",
            field="files",
            value=names[0],
            reason="is not model.safetensors",
            remedy="export again",
        )
    codec_config = HiggsAudioV2TokenizerConfig.from_pretrained(codec)
    _compare(_shapes(codec), codec_tensors(codec_config), f"vLLM-Omni: {CODEC_FOLDER}")
    if codec_config.num_quantizers != config.num_codebooks:
        reason = f"is not the model's {config.num_codebooks}"
        raise problem(
            source=f"vLLM-Omni: {CODEC_FOLDER}",
            field="num_quantizers",
            value=codec_config.num_quantizers,
            reason=reason,
            remedy="use its own",
        )


def remarks(tokenizer: Any) -> list[str]:
    """What does not hinder loading, but serving."""
    return [
        f"vLLM-Omni stops at token {token_id}, taking it for {name}, which is {tokenizer.convert_tokens_to_ids(name)} "
        "here: it would not stop by itself"
        for name, token_id in _STOPS.items()
        if tokenizer.convert_tokens_to_ids(name) != token_id
    ]


def launch_line(folder: str, name: str) -> str:
    """The shell command that serves `folder` as model `name`."""
    serve = f'vllm serve "$PWD" --omni --served-model-name {shlex.quote(name)}'
    return f'cd {shlex.quote(folder)} && HIGGS_AUDIO_TOKENIZER_PATH="$PWD" {serve}'


def _shapes(folder: Path) -> Shapes:
    found: Shapes = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
                found[key] = tuple(opened.get_slice(key).get_shape())
    return found


def _compare(
    found: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]], where: str
) -> None:
    for name, shape in needed.items():
        if name not in found:
            near = [other for other in found if other not in needed]
            reason = "is missing" + (
                f" (there is {near[0]!r}, which is not asked for)" if near else ""
            )
            raise problem(
                source=where,
                field=_WEIGHTS,
                value=name,
                reason=reason,
                remedy="export again from a complete checkpoint",
            )
        if found[name] != shape:
            reason = f"has shape {list(found[name])}, config.json says {list(shape)}"
            raise problem(
                source=where,
                field=_WEIGHTS,
                value=name,
                reason=reason,
                remedy="export again from a checkpoint with its own config.json",
            )
