"""The codec of transformers' class with narrow layers: 24 kHz, hop 960, 8 codebooks of 1024, 3.6 MB
in fp16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

from demo.recipes.codec.targets import LATENT
from demo.tiny import SEMANTIC


def build(*, seed: int) -> Any:
    """The untrained codec. Raises ImportError without torchaudio, as its class does."""
    acoustic = {
        "encoder_hidden_size": 6,
        "decoder_hidden_size": 256,
        "downsampling_ratios": [8, 5, 4, 2, 3],
        # Small steps first: a quarter faster than the mirror order.
        "upsampling_ratios": [2, 3, 4, 5, 8],
        "hidden_size": LATENT,
    }
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2],
        codebook_dim=LATENT,
        acoustic_model_config=acoustic,
        semantic_model_config=SEMANTIC,  # `_pass_latents` cuts it off
    )
    torch.manual_seed(seed)
    codec = HiggsAudioV2TokenizerModel(config)
    _initialise(codec.acoustic_encoder)
    _initialise(codec.acoustic_decoder)
    # The waveform starts quiet.
    with torch.no_grad():
        codec.acoustic_decoder.conv2.weight.mul_(0.03)
    _pass_latents(codec)
    return codec


@torch.no_grad()
def _initialise(part: nn.Module) -> None:
    """Weights of 0.8 / sqrt(fan in), residual units near the identity: larger ones explode behind
    Snake."""
    for name, module in part.named_modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            taps = module.kernel_size[0]
            if isinstance(module, nn.ConvTranspose1d):
                taps /= module.stride[0]  # an output sees no more of them
            nn.init.normal_(module.weight, std=0.8 / (module.in_channels * taps) ** 0.5)
            if ".res_unit" in name and name.endswith("conv2"):
                module.weight.mul_(0.2)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _pass_latents(codec: Any) -> None:
    """What lies between encoder, codebooks and decoder becomes the identity, without the semantic
    columns."""
    between = [codec.fc, codec.fc2]
    for quantizer in codec.quantizer.quantizers:
        between += [quantizer.project_in, quantizer.project_out]
    for linear in between:
        linear.weight.zero_()
        linear.weight[:LATENT, :LATENT].copy_(torch.eye(LATENT))
        linear.bias.zero_()


@torch.no_grad()
def set_codebooks(codec: Any, books: Tensor) -> None:
    """books: (K, NUM_CODES, LATENT)."""
    for quantizer, book in zip(codec.quantizer.quantizers, books, strict=True):
        quantizer.codebook.embed.copy_(book)


def save(codec: Any, folder: Path) -> None:
    """Weights as fp16; config.json says float32, so that they are loaded as such: HuBERT's
    convolutions need it."""
    # Half the bytes: the repository carries them.
    codec.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
