"""What a spectral loss cannot say: networks that learn to tell decoded speech from recorded.

With the loss alone the decoder gives the mean of all sounds that a code may stand for, which sounds
muffled. Here three small networks look at complex spectra of different sizes, one of them per step;
the decoder learns to be taken for a recording by them, and to give what they see in it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

_SIZES = (512, 1024, 2048)  # of the FFT
_CHANNELS = (2, 12, 24, 32, 32)
_KERNELS = ((3, 7), (3, 5), (3, 5), (3, 3))  # frames, bins
_WEIGHT, _FEATURE_WEIGHT = 0.1, 0.5  # beside a spectral loss of 0.3 to 0.4


class Judge(nn.Module):
    """A spectrum of one size -> a map of scores, high for recordings."""

    window: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.layers = nn.ModuleList()
        for (inputs, outputs), kernel in zip(pairwise(_CHANNELS), _KERNELS, strict=True):
            # Every third bin, but for the last layer.
            stride = (1, 1) if kernel == (3, 3) else (1, 3)
            self.layers.append(_convolution(inputs, outputs, kernel, stride))
        self.score = _convolution(_CHANNELS[-1], 1, (3, 3), (1, 1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, N) -> scores (B, 1, frames, bands) and the activations before them."""
        spectrum = torch.stft(
            waveform, self.size, self.size // 4, window=self.window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        # The root of the magnitude, the phase as it is: quiet parts count too.
        compressed = torch.view_as_real(spectrum) * (power + 1e-4).pow(-0.25)[..., None]
        signal = compressed.permute(0, 3, 2, 1)  # (B, 2, frames, bins)
        activations = []
        for layer in self.layers:
            signal = nn.functional.leaky_relu(layer(signal), 0.1)
            activations.append(signal)
        return self.score(signal), activations


def _convolution(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    return nn.utils.parametrizations.weight_norm(layer)


def judges(*, seed: int) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList(map(Judge, _SIZES))


def judge_loss(judge: nn.Module, decoded: Tensor, recorded: Tensor) -> Tensor:
    """Two (B, N) -> scalar: how badly it tells them apart."""
    real, fake = judge(recorded)[0], judge(decoded.detach())[0]
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def decoder_loss(judge: nn.Module, decoded: Tensor, recorded: Tensor) -> Tensor:
    """Two (B, N) -> scalar: how well the judge tells them apart, and how differently it sees
    them."""
    with torch.no_grad():
        _, theirs = judge(recorded)
    scores, ours = judge(decoded)
    distances = []
    for our, their in zip(ours, theirs, strict=True):
        distances.append((our - their).abs().mean() / their.abs().mean().clamp(min=1e-4))
    return _FEATURE_WEIGHT * torch.stack(distances).mean() - _WEIGHT * scores.mean()
