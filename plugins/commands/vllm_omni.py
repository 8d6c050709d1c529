"""What vLLM-Omni reads of a checkpoint folder, and whether a folder has it.

vLLM-Omni takes a tensor that is missing or of another shape for a failure of its engine at best; a
name that it does not know it passes over with a line in its log, and missing codec weights with
none. So the folder is checked here: a folder in, nothing or a UserError out.

Everything below was read in the sources of vllm-project/vllm-omni (pull request 3762, release
0.22.0 and later; commits f2484119, 00bff306, 6d1a9881, 9c4d33de, 278b13b6), most of it in
`vllm_omni/model_executor/models/higgs_audio_v2`. On 2026-11-28 no version that could be had had
other names. Nothing of it was run, for want of a GPU:

- `pipeline.py`: `HiggsAudioV2ForConditionalGeneration` is taken by a pipeline of two stages, the
  language model and the codec; it stops at the token ids 128009 and 128012.
- `higgs_audio_v2_talker.py`, `load_weights` and `_map_simple_name`: the names, here `tensors`.
  Q, K and V are fused, gate and up of either FFN too; there are no biases and no audio tower.
- `configuration_higgs_audio_v2.py`, and `_resolve_audio_tokenizer_path` in
  `higgs_audio_v2_code2wav.py`: `audio_tokenizer_id`, if not empty, names a codec elsewhere, by
  default Boson's repository; only without it is `audio_tokenizer_subdir` of the folder taken.
- `higgs_audio_decoder.py`, `load_higgs_audio_codec`: the codec is `config.json` and one
  `model.safetensors`, here `codec_tensors`. A `model.pth` beside it would be preferred, and
  unpickled.
- `higgs_audio_v2_tokenizer.py`, `_resolve_audio_tokenizer_dir`: references are encoded with a codec
  of its own, unless HIGGS_AUDIO_TOKENIZER_PATH names a folder that holds one, or holds it as
  `audio_tokenizer/`.
- `vllm_omni/entrypoints/openai/tts_adapters/higgs_audio_v2.py`: prompts are made by `AutoProcessor`
  and its chat template. transformers takes the codec's name in `processor_config.json` for a path
  from the *working folder*: a server has to be started in the checkpoint's.
"""

from __future__ import annotations

import shlex
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
# Ids of the published tokenizer, which vLLM-Omni has built in.
_STOPS = {"<|eot_id|>": 128009, "<|audio_eos|>": 128012}
_WEIGHTS = "weights"


def tensors(config: HiggsAudioV2Config) -> Shapes:
    """Every tensor of the language model -> its shape.

    | in the checkpoint                        | in vLLM-Omni                | shape             |
    |------------------------------------------|-----------------------------|-------------------|
    | `model.embed_tokens`                     | `embed_tokens`              | (V, H)            |
    | `model.norm`                             | `norm`                      | (H,)              |
    | `model.embed_audio_tokens.`              | `audio_codebook_embeddings` | (K C, H)          |
    | `embed_audio_tokens`                     |                             |                   |
    | `audio_lm_head`                          | `audio_lm_head`             | (K C, H)          |
    | `text_lm_head`                           | `lm_head`                   | (V, H)            |
    | per layer, `model.layers.L.`:            | `layers.L.`                 |                   |
    | `self_attn.q_proj`, `k_proj`, `v_proj`   | `self_attn.qkv_proj`        | (Q D, H), (G D, H)|
    | `self_attn.o_proj`                       | the same                    | (H, Q D)          |
    | `mlp.gate_proj`, `up_proj`; `audio_mlp.` | `mlp.gate_up_proj`          | (I, H) twice      |
    | `mlp.down_proj`; `audio_mlp.`            | the same                    | (H, I)            |
    | the four norms                           | the same                    | (H,)              |

    All names end in `.weight`.
    Q query heads and G groups of size D, I intermediate size, the others as in `plugins`.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    assert config.head_dim is not None, "the config's class computes it"
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    codes = config.num_codebooks * config.codebook_size
    shapes: Shapes = {
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
        # Words pass `mlp`, frames `audio_mlp`, each between norms of its own.
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "audio_mlp.gate_proj": (inner, hidden),
        "audio_mlp.up_proj": (inner, hidden),
        "audio_mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "audio_input_layernorm": (hidden,),
        "audio_post_attention_layernorm": (hidden,),
    }
    for number in range(config.num_hidden_layers):
        for name, shape in layer.items():
            shapes[f"model.layers.{number}.{name}.weight"] = shape
    return shapes


def codec_tensors(config: HiggsAudioV2TokenizerConfig) -> Shapes:
    """The tensors of the codec that decode codes -> their shapes: its quantizers, `fc2` and the DAC
    decoder."""
    acoustic: Any = config.acoustic_model_config
    width = config.hidden_size
    shapes: Shapes = {
        "fc2.weight": (acoustic.hidden_size, width),
        "fc2.bias": (acoustic.hidden_size,),
    }
    for number in range(config.num_quantizers):
        prefix = f"quantizer.quantizers.{number}"
        shapes[f"{prefix}.codebook.embed"] = (config.codebook_size, config.codebook_dim)
        shapes[f"{prefix}.project_out.weight"] = (width, config.codebook_dim)
        shapes[f"{prefix}.project_out.bias"] = (width,)
    # The decoder's names and shapes are transformers' own: counted there, without memory.
    with torch.device("meta"):
        decoder = DacModel(DacConfig(**acoustic.to_dict())).decoder
    for name, tensor in decoder.named_parameters():
        shapes[f"acoustic_decoder.{name}"] = tuple(tensor.shape)
    return shapes


def check(folder: Path) -> None:
    """Raises UserError if vLLM-Omni could not load the checkpoint in `folder`, or would load it
    only in part."""
    fields = read_json(folder / "config.json", "export again")
    needed: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": HiggsAudioV2Config.model_type,
        # Its layers have no biases, and would leave those of a checkpoint out.
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
    shapes = _shapes(folder)
    _compare(shapes, tensors(config), "vLLM-Omni")
    for name in shapes.keys() - tensors(config).keys():
        raise problem(
            source="vLLM-Omni",
            field=_WEIGHTS,
            value=name,
            reason="is not read: vLLM-Omni knows no such weight",
            remedy="merge with `swift export` if you do not serve with it",
        )
    _check_codec(folder / CODEC_FOLDER, config.num_codebooks)


def _check_codec(codec: Path, num_codebooks: int) -> None:
    source = f"vLLM-Omni: {CODEC_FOLDER}"
    for file in codec.glob("model*"):
        if file.name != "model.safetensors":
            raise problem(
                source=source,
                field="files",
                value=file.name,
                reason="is not model.safetensors",
                remedy="export again",
            )
    config = HiggsAudioV2TokenizerConfig.from_pretrained(codec)
    _compare(_shapes(codec), codec_tensors(config), source)
    if config.num_quantizers != num_codebooks:
        raise problem(
            source=source,
            field="num_quantizers",
            value=config.num_quantizers,
            reason=f"is not the model's {num_codebooks}",
            remedy="use its own",
        )


def remarks(tokenizer: Any) -> list[str]:
    """What does not hinder loading, but serving."""
    notes = []
    for name, token_id in _STOPS.items():
        ours = tokenizer.convert_tokens_to_ids(name)
        if ours != token_id:
            taken = f"vLLM-Omni stops at token {token_id}, taking it for {name}"
            notes.append(f"{taken}, which is {ours} here: it would not stop by itself")
    return notes


def launch_line(folder: str, name: str) -> str:
    """The shell command that serves `folder` as model `name`."""
    # From inside the folder: transformers looks for the codec in the working folder.
    serve = f'vllm serve "$PWD" --omni --served-model-name {shlex.quote(name)}'
    return f'cd {shlex.quote(folder)} && HIGGS_AUDIO_TOKENIZER_PATH="$PWD" {serve}'


def _shapes(folder: Path) -> Shapes:
    """Of the tensors that are there, from the headers of the files."""
    shapes: Shapes = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open has no __iter__)
                shapes[name] = tuple(weights.get_slice(name).get_shape())
    return shapes


def _compare(present: Shapes, needed: Shapes, source: str) -> None:
    for name, shape in needed.items():
        if name not in present:
            reason = "is missing"
            unknown = [other for other in present if other not in needed]
            if unknown:  # perhaps the same weight under another name
                reason += f" (there is {unknown[0]!r}, which is not asked for)"
            raise problem(
                source=source,
                field=_WEIGHTS,
                value=name,
                reason=reason,
                remedy="export again from a complete checkpoint",
            )
        if present[name] != shape:
            raise problem(
                source=source,
                field=_WEIGHTS,
                value=name,
                reason=f"has shape {list(present[name])}, config.json says {list(shape)}",
                remedy="export again from a checkpoint with its own config.json",
            )
