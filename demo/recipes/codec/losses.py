"""How different two waveforms sound, at five resolutions: what the decoder minimises. L4."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor

from plugins.audio.waveforms import SAMPLE_RATE_HZ

# FFT size -> mel bands; none for the two short ones, whose bins are wider than bands.
_BANDS = {128: None, 256: None, 512: 40, 1024: 80, 2048: 128}
_FLOOR = 1e-4  # of full scale: -80 dB
_LINEAR_WEIGHT = 0.3


class SpectralLoss:
    """L1 of log spectra plus 0.3 times the relative L1 of magnitudes, averaged over FFT sizes
    128..2048."""

    def __init__(self) -> None:
        self._windows = {size: torch.hann_window(size) for size in _BANDS}
        self._banks = {
            size: torchaudio.functional.melscale_fbanks(
                size // 2 + 1, 0, SAMPLE_RATE_HZ / 2, bands, SAMPLE_RATE_HZ, mel_scale="slaney"
            )
            for size, bands in _BANDS.items()
            if bands
        }

    def __call__(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Two (B, N) -> scalar."""
        losses = []
        for size in _BANDS:
            ours = self._magnitudes(found, size)
            with torch.no_grad():
                theirs = self._magnitudes(wanted, size)
            linear = (ours - theirs).abs().mean() / theirs.mean().clamp(min=_FLOOR)
            logs = (self._log(ours, size) - self._log(theirs, size)).abs().mean()
            losses.append(logs + _LINEAR_WEIGHT * linear)
        return torch.stack(losses).mean()

    def _magnitudes(self, waveform: Tensor, size: int) -> Tensor:
        """(B, N) -> (B, frames, bins), a sine of amplitude 1 giving 0.5."""
        window = self._windows[size]
        spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True)
        # The gradient of |z| is NaN at 0.
        return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt().transpose(
            1, 2
        ) / window.sum()

    def _log(self, magnitudes: Tensor, size: int) -> Tensor:
        bank = self._banks.get(size)
        return ((magnitudes if bank is None else magnitudes @ bank) + _FLOOR).log()
