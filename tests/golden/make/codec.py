"""The original's codec with small random weights -> tests/golden/codec/, in the format of its Hub
repository.

In: nothing but the constants below. Out: `config.json` and `model.pth` as the original writes and
reads them, and `expected.npz` with a synthetic clip `waveform` (N,), its `codes` (K, F) and what
they are `decoded` to (960 F,). Knows nothing of `plugins`: it runs in the venv that
tests/golden/make/prompts.py describes, and needs there as well

    boson/bin/pip install --no-deps descript-audio-codec==1.0.0 descript-audiotools==0.7.2 argbind
    boson/bin/pip install flatten-dict julius ffmpy importlib_resources rich tensorboard \
        randomname docstring_parser
    boson/bin/python tests/golden/make/codec.py

The original's class fixes some widths (DAC 64 and 1024, HuBERT 768) and downloads its HuBERT. Only
those are made small here, and HuBERT random; everything that computes is the package's own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as original
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

OUT = Path(__file__).resolve().parents[1] / "codec"
# The published file has these fields, with D 256 and codebook_dim 64. Its last bandwidth is beyond
# its 8 codebooks.
CONFIG = {
    "n_filters": 32,
    "D": 16,
    "codebook_dim": 4,
    "target_bandwidths": [0.5, 1, 1.5, 2, 4],
    "ratios": [8, 5, 4, 2, 3],
    "sample_rate": 24000,
    "bins": 1024,
    "n_q": 8,
    "semantic_techer": "hubert_base_general",
}
NUM_FRAMES = 24
ENCODER_WIDTH = 2  # published: 64
DECODER_WIDTH = 64  # published: 1024
SEMANTIC_WIDTH = 64  # published: 768; one head, as HuBERT's heads are 64 wide
HUBERT = HubertConfig(
    hidden_size=SEMANTIC_WIDTH,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=1,
    conv_dim=[8] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


class SmallTokenizer(original.HiggsAudioTokenizer):
    """Its constructor assigns 768 to both of these; here that has no effect."""

    semantic_dim = encoder_semantic_dim = property(
        lambda self: SEMANTIC_WIDTH, lambda self, value: None
    )


def build() -> Any:
    dac = original.dac2
    small_dac = SimpleNamespace(
        Encoder=lambda width, ratios, dim: dac.Encoder(ENCODER_WIDTH, ratios, dim),
        Decoder=lambda dim, width, ratios: dac.Decoder(dim, DECODER_WIDTH, ratios),
    )
    small_hubert = SimpleNamespace(from_pretrained=lambda *args, **kwargs: HubertModel(HUBERT))
    with (
        mock.patch.object(original, "dac2", small_dac),
        mock.patch.object(original, "AutoModel", small_hubert),
    ):
        return SmallTokenizer(**CONFIG, device="cpu").eval()


def randomise(codec: Any) -> None:
    """No tensor may stay at a value that a native codec starts with: a key that went wrong has to
    show."""
    for key, tensor in codec.state_dict().items():
        if key.endswith("inited"):
            tensor.fill_(1)  # else encoding starts k-means
        elif key.endswith(("weight_g", "original0", "alpha", "layer_norm.weight")):
            tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.4))
        elif key.endswith(("bias", "cluster_size", "masked_spec_embed")):
            tensor.normal_(0, 0.1)


def fill_codebooks(codec: Any, samples: Tensor) -> None:
    """Spread each codebook over the residuals it sees, so that the codes vary."""
    seen: list[Tensor] = []
    hook = codec.fc_prior.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    codec._xcodec_encode(samples)
    hook.remove()
    residual = seen[0]  # (F, hidden)
    for layer in codec.quantizer.vq.layers:
        projected = layer.project_in(residual)
        book = layer._codebook
        book.embed.normal_().mul_(projected.std(0)).add_(projected.mean(0))
        book.embed_avg.normal_()
        residual = residual - layer.decode(layer.encode(residual.T[None]))[0].T


def smallest_margin(codec: Any, samples: Tensor) -> float:
    """By how much the nearest entry is nearer than the next one, relative, at the closest call."""
    margins: list[float] = []

    def measure(book: nn.Module, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        nearest = (
            torch.cdist(args[0].flatten(0, -2), book.embed).square().topk(2, largest=False).values
        )
        margins.append(float((1 - nearest[:, 0] / nearest[:, 1]).min()))

    hooks = [layer._codebook.register_forward_hook(measure) for layer in codec.quantizer.vq.layers]
    codec._xcodec_encode(samples)
    for hook in hooks:
        hook.remove()
    return min(margins)


def clip() -> np.ndarray:
    """Two gliding tones over a little noise, with a pause."""
    time_s = np.arange(NUM_FRAMES * 960) / 24_000
    tones = 0.3 * np.sin(2 * np.pi * (140 + 200 * time_s) * time_s) + 0.1 * np.sin(
        2 * np.pi * 1800 * time_s**2
    )
    tones[(time_s > 0.4) & (time_s < 0.5)] = 0
    return (tones + np.random.default_rng(0).normal(0, 0.02, len(time_s))).astype(np.float32)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = build()
    randomise(codec)
    waveform = clip()
    samples = torch.from_numpy(waveform)[None, None]
    fill_codebooks(codec, samples)
    codes = codec.encode(waveform, sr=24_000)
    decoded = codec.decode(codes[None])[0, 0]
    margin = smallest_margin(codec, samples)
    assert codes.shape == (CONFIG["n_q"], NUM_FRAMES)
    assert margin > 1e-3, f"another CPU could round a code to its neighbour: {margin}"
    OUT.mkdir(exist_ok=True)
    (OUT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    torch.save(codec.state_dict(), OUT / "model.pth")
    np.savez_compressed(
        OUT / "expected.npz", waveform=waveform, codes=codes.numpy(), decoded=decoded
    )
    varied = [len(row.unique()) for row in codes]
    num_tensors = len(codec.state_dict())
    print(f"{num_tensors} tensors, {varied} codes per codebook, smallest margin {margin:.1e}")
    print(f"decoded: rms {decoded.std():.3f}, peak {abs(decoded).max():.3f}")


if __name__ == "__main__":
    main()
