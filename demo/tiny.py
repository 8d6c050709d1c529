"""A tiny Higgs-Audio V2 with tokenizer and codec, random weights, real classes: for the tests, and
where the base begins.

The codec is for the tests: its codebooks are filled with residuals of real speech, so its codes
vary as real ones do; its decoder is random, so what it plays is noise. A trained one lies in
demo/codec/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    HiggsAudioV2TokenizerConfig,
    HiggsAudioV2TokenizerModel,
    PreTrainedTokenizerFast,
)

from plugins.audio.codec import CODEC_FOLDER, NUM_CODEBOOKS, NUM_CODES
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

# Codecs of this class cannot do without a semantic branch; this one is as small as it may be.
SEMANTIC: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 2,
    "num_conv_pos_embedding_groups": 1,
}
SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
]


def build(
    folder: Path, texts: Iterable[str], waveforms: Sequence[np.ndarray], *, seed: int = 0
) -> None:
    """Write a native checkpoint with text head, tokenizer and `audio_tokenizer/` into `folder`.

    texts: for the tokenizer's vocabulary. waveforms: (N,) float32 at 24 kHz, for the codec's
    codebooks."""
    build_model(folder, build_tokenizer(texts), seed=seed)
    build_codec(waveforms).save_pretrained(folder / CODEC_FOLDER)


def build_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **overrides: Any
) -> None:
    """Write a native checkpoint with text head and `tokenizer` into `folder`, no codec. overrides:
    of the config."""
    torch.manual_seed(seed)
    config = build_config(tokenizer, **overrides)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    # Stream EOS starts at zero: untrained, the model never stops by chance, and it learns to as any
    # other code.
    heads = model.audio_lm_head.weight.data.view(NUM_CODEBOOKS, NUM_CODES + 2, -1)
    heads[:, model.config.audio_stream_eos_id] = 0
    model.generation_config.eos_token_id = model.config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_tokenizer(texts: Iterable[str], *, num_merges: int = 100) -> PreTrainedTokenizerFast:
    """A byte-level BPE like Llama-3's, small, with the names of its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges + len(SPECIAL_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_specials(tokenizer)


def with_specials(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers holds it. tokenizer: its vocabulary has SPECIAL_TOKENS."""
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )


def build_config(tokenizer: PreTrainedTokenizerFast, **overrides: Any) -> HiggsAudioV2Config:
    """The proportions of the 3B model (DualFFN, grouped heads), about a million parameters."""
    token_id = tokenizer.convert_tokens_to_ids
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "codebook_size": NUM_CODES + 2,
        "num_codebooks": NUM_CODEBOOKS,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "audio_token_id": token_id("<|AUDIO_OUT|>"),
        "audio_bos_token_id": token_id("<|audio_out_bos|>"),
        "audio_delay_token_id": token_id("<|reserved_special_token_6|>"),
    }
    return HiggsAudioV2Config(**{**values, **overrides})


def build_codec(waveforms: Sequence[np.ndarray]) -> HiggsAudioV2TokenizerModel:
    """24 kHz, hop 960, 8 codebooks of 1024, narrow layers."""
    acoustic = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [8, 5, 4, 2, 3],
        "upsampling_ratios": [8, 5, 4, 2, 3],
        "hidden_size": 16,
    }
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2],
        codebook_dim=16,
        acoustic_model_config=acoustic,
        semantic_model_config=SEMANTIC,
    )
    codec = HiggsAudioV2TokenizerModel(config).eval()
    _fill_codebooks(codec, waveforms)
    return codec


@torch.no_grad()
def _fill_codebooks(codec: Any, waveforms: Sequence[np.ndarray]) -> None:
    """Each codebook gets random residuals of the frames of `waveforms` (codebooks start as zeros,
    all codes 0)."""
    latents: list[torch.Tensor] = []  # (frames, hidden) of each clip, as they reach the codebooks
    hook = codec.fc.register_forward_hook(lambda module, args, output: latents.append(output[0]))
    for waveform in waveforms:
        samples = torch.from_numpy(waveform)
        # On the right, to whole frames: `encode` would pad at both ends.
        padding = -len(samples) % codec.config.hop_length
        codec.encode(torch.nn.functional.pad(samples, (0, padding))[None, None])
    hook.remove()
    residual = torch.cat(latents)
    for quantizer in codec.quantizer.quantizers:
        projected = quantizer.project_in(residual)
        chosen = torch.randint(len(projected), (NUM_CODES,))
        # A little noise: entries drawn twice must not make one of them unreachable.
        noise = 0.01 * projected.std() * torch.randn(NUM_CODES, projected.shape[1])
        quantizer.codebook.embed.copy_(projected[chosen] + noise)
        codes = quantizer.encode(residual.T[None])
        residual = residual - quantizer.decode(codes)[0].T
