"""The golden models of boson-multimodal as ours: the tiny one without a tower, and what belongs to
the one with a tower (tests/golden/README.md)."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.settings import HiggsAudioSettings

AUDIO, DELAY = 304, 302
TOKENS = SpecialTokens(
    begin_of_text=2,
    header_start=3,
    header_end=7,
    end_of_turn=298,
    end_of_message=-1,
    scene_start=-1,
    scene_end=-1,
    audio_bos=301,
    reference_bos=299,
    audio_eos=300,
    audio=AUDIO,
    audio_delay=DELAY,
    pad=1,
    stream_bos=1024,
    stream_eos=1025,
    num_codebooks=8,
    codebook_size=1026,
)
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
)
# Written down here once more: `plugins.model.weights` is what the tests are about.
_NATIVE_KEYS = (
    (r"^audio_codebook_embeddings\.", "model.embed_audio_tokens.embed_audio_tokens."),
    (r"^(embed_tokens|norm|layers)\.", r"model.\1."),
    (r"^audio_decoder_proj\.(audio|text)_lm_head\.", r"\1_lm_head."),
)

TOWER = GOLDEN / "audio_tower"
TOWER_CASES = json.loads((TOWER / "cases.json").read_text(encoding="utf-8"))
CLIP_POSITIONS = TOWER_CASES.pop("clip_positions")


def native_key(key: str) -> str:
    for pattern, replacement in _NATIVE_KEYS:
        key = re.sub(pattern, replacement, key)
    return key


def golden_model() -> HiggsAudioV2ForConditionalGeneration:
    """The tiny original's weights, with the layers that the settings ask for."""
    file = GOLDEN / "tiny_original_config.json"
    original = json.loads(file.read_text(encoding="utf-8"))["text_config"]
    config = HiggsAudioV2Config(
        **{name: original[name] for name in _SHAPE},
        rope_parameters={**original["rope_scaling"], "rope_theta": original["rope_theta"]},
        codebook_size=1026,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=298,
        audio_token_id=AUDIO,
        audio_bos_token_id=301,
        audio_delay_token_id=DELAY,
        attn_implementation="eager",
    )
    layers = HiggsAudioSettings.from_env().native_layers
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True, native_layers=layers)
    weights = {}
    for key, tensor in load_file(GOLDEN / "tiny_original.safetensors").items():
        is_computed = "rotary" in key or key == "audio_codebook_weights"
        if not is_computed:
            weights[native_key(key)] = tensor
    model.load_state_dict(weights, strict=True)
    return model.train()


def golden_batch(name: str) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """The golden sample through our collator: each `<|AUDIO_OUT|>` becomes F + 2 + 7
    placeholders."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    samples = []
    for case in meta["samples"]:
        ids: list[int] = []
        labels: list[int] = []
        clips = [torch.tensor(codes) for codes in case["codes"]]
        clips_in_order = iter(clips)
        for token, label in zip(case["input_ids"], case["label_ids"], strict=True):
            if token == AUDIO:
                num_frames = next(clips_in_order).shape[1] + 2
                ids += [AUDIO] * num_frames + [DELAY] * 7
                labels += [-100] * (num_frames + 7)
            else:
                ids.append(token)
                labels.append(label)
        trained = [False] * (len(clips) - 1) + [True]
        samples.append(EncodedSample(ids, labels, clips, trained, name))
    return collate(samples, TOKENS, training=True), meta, np.load(GOLDEN / f"{name}.npz")


def without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: values for key, values in batch.items() if "labels" not in key}


def tower_waveform(num_samples: int, seed: int) -> np.ndarray:
    """The formula of tests/golden/make/audio_tower.py."""
    t = np.arange(num_samples) / 16_000
    tone = np.sin(2 * np.pi * (150 + 40 * seed + 20 * t) * t + 3 * np.sin(2 * np.pi * 5 * t))
    noise = np.random.RandomState(seed).standard_normal(num_samples)
    return ((0.3 + 0.2 * np.sin(2 * np.pi * 0.7 * t)) * tone + 0.02 * noise).astype(np.float32)
