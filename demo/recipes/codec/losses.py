"""How different two waveforms sound, at five resolutions: what the decoder minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor

from plugins.audio.waveforms import SAMPLE_RATE_HZ

# FFT size -> mel bands; none for the two short ones, whose bins are wider than bands.
_BANDS = {128: None, 256: None, 512: 40, 1024: 80, 2048: 128}
# A training takes half of the sizes in each step, which halves the price.
TURNS = ((128, 512, 2048), (256, 1024))
_FLOOR = 1e-4  # of full scale: -80 dB
_LINEAR_WEIGHT = 0.3


class SpectralLoss:
    """L1 of log spectra plus 0.3 times the relative L1 of magnitudes, averaged over FFT
    sizes."""

    def __init__(self, device: str = "cpu") -> None:
        self._windows: dict[int, Tensor] = {}
        self._banks: dict[int, Tensor] = {}
        nyquist_hz = SAMPLE_RATE_HZ / 2
        for size, bands in _BANDS.items():
            self._windows[size] = torch.hann_window(size, device=device)
            if bands:
                bank = torchaudio.functional.melscale_fbanks(
                    size // 2 + 1, 0, nyquist_hz, bands, SAMPLE_RATE_HZ, mel_scale="slaney"
                )
                self._banks[size] = bank.to(device)

    def __call__(
        self, decoded: Tensor, wanted: Tensor, *, sizes: Sequence[int] = tuple(_BANDS)
    ) -> Tensor:
        """Two (B, N) -> scalar."""
        losses = []
        for size in sizes:
            ours, theirs = self._magnitudes(decoded, size), self._magnitudes(wanted, size)
            linear = (ours - theirs).abs().mean() / theirs.mean().clamp(min=_FLOOR)
            logs = (self._log(ours, size) - self._log(theirs, size)).abs().mean()
            losses.append(logs + _LINEAR_WEIGHT * linear)
        return torch.stack(losses).mean()

    def _magnitudes(self, waveform: Tensor, size: int) -> Tensor:
        """(B, N) -> (B, frames, bins), a sine of amplitude 1 giving 0.5."""
        window = self._windows[size]
        spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        # The gradient of a root is infinite at 0.
        return (power + 1e-12).sqrt().transpose(1, 2) / window.sum()

    def _log(self, magnitudes: Tensor, size: int) -> Tensor:
        if size in self._banks:
            magnitudes = magnitudes @ self._banks[size]
        return (magnitudes + _FLOOR).log()
