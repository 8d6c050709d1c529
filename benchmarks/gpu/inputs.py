"""Models of random weights and batches for them, on the device of a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.collate import durations_like
from benchmarks.samples import make_sample, tokens_of
from demo.tiny import build_config, build_tokenizer
from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.data.wording import INSTRUCTION
from plugins.model import packed_attention
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.settings import HiggsAudioSettings
from plugins.speaking.voices import request
from plugins.training.preflight.probe import on_device

Batch = dict[str, Any]
Shape = Mapping[str, Any]

LARGE: Shape = {}  # the defaults of its config: the published 3B model
SMALL: Shape = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
TINY: Shape = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
_SMALL_VOCABULARY = 1200
TEXT = "The harbour lights went out one by one."

# What keeps the rows of a pack apart without a mask of their square.
PACKED_ATTENTION = packed_attention.NAME


# Training.


def config_of(shape: Shape, **options: Any) -> HiggsAudioV2Config:
    """A smaller shape has a small vocabulary, whose last tokens are the special ones."""
    ids: dict[str, Any] = {}
    if shape:
        last = _SMALL_VOCABULARY - 1
        ids = {"vocab_size": last + 1, "audio_token_id": last, "audio_delay_token_id": last - 1}
        ids |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "audio_bos_token_id": 4}
    return HiggsAudioV2Config(codebook_size=1026, **shape, **ids, **options)


def build(config: HiggsAudioV2Config, dtype: torch.dtype, device: str) -> Any:
    """In training. Made on the device: nothing has to be sent there."""
    torch.manual_seed(0)
    with torch.device(device):
        model = HiggsAudioV2ForConditionalGeneration._from_config(
            config, dtype=dtype, use_text_head=True
        )
    return model.train()


def training_batch(model: Any, sizes: Sequence[tuple[int, int]], *, packed: bool = False) -> Batch:
    """sizes: text tokens and frames of each row."""
    generator, tokens = torch.Generator().manual_seed(0), tokens_of(model.config)
    samples = [make_sample(tokens, *size, generator) for size in sizes]
    return on_device(model, collate(samples, tokens, training=True, packed=packed))


def speech_like(num_rows: int, *, scale: float) -> list[tuple[int, int]]:
    """Text tokens and frames of rows as long as those of LJSpeech, times `scale`."""
    seconds = durations_like("LJSpeech", num_rows, seed=0)
    frames = np.maximum((seconds * 25 * scale).astype(int), 4).tolist()
    return [(8 + round(52 * scale) + num_frames // 5, num_frames) for num_frames in frames]


def num_tokens(batch: Batch) -> int:
    """Without padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel()


@contextmanager
def native_layers(model: Any) -> Iterator[None]:
    """Inside, our layers have no routes, and do as transformers' own."""
    body = model.model
    hooks, with_kwargs = dict(body._forward_pre_hooks), dict(body._forward_pre_hooks_with_kwargs)
    body._forward_pre_hooks.clear()
    body._forward_pre_hooks_with_kwargs.clear()
    try:
        yield
    finally:
        body._forward_pre_hooks.update(hooks)
        body._forward_pre_hooks_with_kwargs.update(with_kwargs)


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    packed_attention.register()
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def linear_names(model: Any) -> list[str]:
    """What `target_modules: all-linear` means: all but the heads."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("model."):
            names.append(name)
    return names


# Speaking.


def speaking_model(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Any, Any, SpecialTokens]:
    """And a tokenizer of a few tokens, inside the vocabulary of the model. It never stops by
    chance: the EOS of each codebook scores zero."""
    tokenizer = build_tokenizer([TEXT, INSTRUCTION])
    size = dict(shape) or HiggsAudioV2Config().to_dict()
    names = (*SMALL, "vocab_size")
    overrides = {name: size[name] for name in names if name in size}
    config = build_config(tokenizer, **overrides)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = HiggsAudioV2ForConditionalGeneration._from_config(config, dtype=dtype)
    tokens = SpecialTokens.from_config(config, tokenizer)
    head = model.audio_lm_head.weight.data.view(tokens.num_codebooks, tokens.codebook_size, -1)
    head[:, tokens.stream_eos] = 0
    return model.eval(), tokenizer, tokens


def prompts(
    model: Any, tokenizer: Any, tokens: SpecialTokens, num_rows: int, num_frames: int
) -> dict[str, Tensor]:
    """Of one length: a text and the codes of a reference, each row's own."""
    samples = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_rows):
        dialogue = request(TEXT, None, [], HiggsAudioSettings())
        sample = encode(dialogue, tokenizer, tokens, open_turn=True)
        codes = torch.randint(1024, (tokens.num_codebooks, num_frames), generator=generator)
        placeholders = [tokens.audio] * (num_frames + 2)
        placeholders += [tokens.audio_delay] * (tokens.num_codebooks - 1)
        heard = [tokens.audio_bos, *placeholders, tokens.audio_eos]
        ids = [sample.input_ids[0], *heard, *sample.input_ids[1:]]
        samples.append(EncodedSample(ids, [], [codes], [False]))
    return on_device(model, collate(samples, tokens, training=False))
