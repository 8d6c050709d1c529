"""The codec of two voices that was here before -> an encoder and a decoder to train on, and the
codec that is written.

Its class is that of transformers, with narrow layers: 24 kHz, hop 960, 8 codebooks of 1024. Between
encoder, codebooks and decoder lies the identity, so that each is trained by itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerModel

from demo.recipes.codec.corpus import HOP
from demo.recipes.codec.targets import LATENT, SOUND
from demo.run import CODEC
from plugins.audio import waveforms as audio
from plugins.errors import UserError
from plugins.files import disk

_EARLIER = "7c954d5:demo/codec"  # in the repository's history
_LOUDNESS = 0.55  # of our speech beside what the earlier codec heard
_PIECE, _MARGIN = 500, 25  # frames; the encoder hears 24 to either side


def earlier(folder: Path) -> Any:
    """The codec of `slt` and `rms`, fetched into `folder`.

    Raises UserError where the repository's history is not at hand."""
    for name in ("config.json", "model.safetensors"):
        if (folder / name).exists():
            continue
        command = ["git", "show", f"{_EARLIER}/{name}"]
        try:
            content = subprocess.run(command, cwd=CODEC, check=True, capture_output=True).stdout
        except (OSError, subprocess.CalledProcessError):
            reason = f"no {_EARLIER}, the codec to start from"
            raise UserError(f"git: {reason}; git fetch --unshallow") from None
        with disk.replace_when_done(folder / name) as new:
            new.write_bytes(content)
    return load(folder)


def load(folder: Path) -> Any:
    """Raises ImportError without torchaudio, as its class does."""
    return HiggsAudioV2TokenizerModel.from_pretrained(folder).eval()


@torch.no_grad()
def encoder(codec: Any, wide: Any, *, seed: int) -> Any:
    """wide: an encoder of more channels. Returns it with what the codec's own computes, but for its
    last layer, which has other latents to learn; the new channels are random and begin unheard."""
    torch.manual_seed(seed)
    for name, module in wide.named_modules():
        if isinstance(module, nn.Conv1d):
            fan_in = module.in_channels * module.kernel_size[0]
            nn.init.normal_(module.weight, std=0.8 / fan_in**0.5)
            if ".res_unit" in name and name.endswith("conv2"):
                module.weight.mul_(0.2)  # near the identity: larger ones explode behind Snake
            nn.init.zeros_(module.bias)
    known = codec.acoustic_encoder.state_dict()
    for name, value in wide.state_dict().items():
        if name.startswith("conv2"):
            continue
        narrow = known[name]
        corner = tuple(slice(size) for size in narrow.shape)
        if value.ndim == 3 and name.endswith("weight"):
            value[: len(narrow)] = 0
        value[corner] = narrow
    return wide


@torch.no_grad()
def decoder(codec: Any, samples: np.ndarray, latents: Tensor) -> Any:
    """The codec's own, its first layer fed with the nearest linear map of `latents` to what it knew
    for the same speech.

    samples: (F * HOP,) int16. latents: (F, LATENT), of which it hears the sound only."""
    known = encode(codec.acoustic_encoder, samples, loudness=1 / _LOUDNESS)
    affine = torch.cat([latents[:, :SOUND], torch.ones(len(latents), 1)], 1)
    solution = torch.linalg.lstsq(affine, known).solution
    nearest, shift = solution[:-1], solution[-1]
    before, last = codec.acoustic_decoder.conv1, codec.acoustic_decoder.conv2
    first = nn.Conv1d(LATENT, before.out_channels, before.kernel_size, padding=before.padding)
    first.bias.copy_(before.bias + torch.einsum("oik,i->o", before.weight, shift))
    first.weight.zero_()
    first.weight[:, :SOUND] = torch.einsum("oik,ji->ojk", before.weight, nearest)
    codec.acoustic_decoder.conv1 = first
    last.weight.mul_(_LOUDNESS)
    last.bias.mul_(_LOUDNESS)
    return codec.acoustic_decoder


@torch.no_grad()
def encode(encoder: Any, samples: np.ndarray, *, loudness: float = 1.0) -> Tensor:
    """(F * HOP,) int16 -> (F, LATENT), in pieces that know their neighbours."""
    latents = []
    num_frames = len(samples) // HOP
    for first in range(0, num_frames, _PIECE):
        before, last = min(first, _MARGIN), min(first + _PIECE, num_frames)
        heard = audio.to_float(samples[(first - before) * HOP : (last + _MARGIN) * HOP])
        # (1, 1, N) -> (1, LATENT, F); the margins go again.
        piece = encoder(loudness * torch.from_numpy(heard)[None, None])[0].T
        latents.append(piece[before : before + last - first])
    return torch.cat(latents)


@torch.no_grad()
def set_codebooks(codec: Any, books: Tensor) -> None:
    """books: (K, NUM_CODES, LATENT)."""
    for quantizer, book in zip(codec.quantizer.quantizers, books, strict=True):
        quantizer.codebook.embed.copy_(book)


@torch.no_grad()
def codebooks(codec: Any) -> Tensor:
    """(K, NUM_CODES, LATENT)."""
    books = [quantizer.codebook.embed for quantizer in codec.quantizer.quantizers]
    return torch.stack(books).float().cpu()


def save(codec: Any, folder: Path) -> None:
    """Weights as fp16; config.json says float32, so that they are loaded as such: HuBERT's
    convolutions need it."""
    # Half the bytes: the repository carries them.
    codec.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
