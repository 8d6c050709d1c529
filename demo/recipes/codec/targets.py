"""What a codec frame should say: waveform -> log-mel -> 32 latents, and residual codebooks of
latents.

A latent learnt from the sound alone stalls on two cores (no formants after 2500 steps), so it is
given: the encoder only has to regress it, and the codebooks are fitted in seconds."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor

from demo.recipes.codec.corpus import HOP
from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES
from plugins.audio.waveforms import SAMPLE_RATE_HZ

LATENT = 32  # dimensions kept of 256: 97.6 % of the variance
_FFT, _MELS, _PER_FRAME = 1024, 64, 4
_MEL_HOP = HOP // _PER_FRAME
_CHUNK = 1000  # frames at a time
_FLOOR = 1e-3  # about -60 dB below a loud vowel


def log_mel(samples: Tensor) -> Tensor:
    """(F * HOP,) float32 -> (F, 256): four log-mel spectra (0-8 kHz) per frame."""
    bank = torchaudio.functional.melscale_fbanks(_FFT // 2 + 1, 0, 8000, _MELS, SAMPLE_RATE_HZ)
    window = torch.hann_window(_FFT)
    margin = (_FFT - _MEL_HOP) // 2  # the first spectrum lies over the middle of the first 10 ms
    padded = torch.nn.functional.pad(samples, (margin, margin))
    frames = len(samples) // HOP
    features = []
    for first in range(0, frames, _CHUNK):
        last = min(first + _CHUNK, frames)
        part = padded[first * HOP : last * HOP + 2 * margin]
        spectrum = torch.stft(
            part, _FFT, _MEL_HOP, window=window, center=False, return_complex=True
        ).abs()
        # (4 spectra per frame, bins) -> (frames, 4 * mels)
        logs = (spectrum.T @ bank + _FLOOR).log()
        features.append(logs.reshape(last - first, _PER_FRAME * _MELS))
    return torch.cat(features)


def principal(features: Tensor) -> Tensor:
    """(F, D) -> (F, LATENT): the principal components, scaled by one factor to a mean variance of
    1."""
    centred = features - features.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    latents = centred @ vectors.flip(1)[:, :LATENT]
    return latents / latents.std()


def fit_codebooks(latents: Tensor, *, seed: int, rounds: int = 20) -> Tensor:
    """(F, LATENT) -> (K, NUM_CODES, LATENT): k-means of the latents, then of what is left of them,
    and so on."""
    generator = torch.Generator().manual_seed(seed)
    residual, books = latents, []
    for _ in range(NUM_CODEBOOKS):
        book = residual[torch.randperm(len(residual), generator=generator)[:NUM_CODES]]
        for _ in range(rounds):
            codes = _nearest(residual, book)
            counts = codes.bincount(minlength=NUM_CODES)
            sums = torch.zeros_like(book).index_add_(0, codes, residual)
            book = sums / counts.clamp(min=1)[:, None]
            # An entry that no point is nearest to begins anew, at a point.
            empty = counts == 0
            drawn = torch.randint(len(residual), (int(empty.sum()),), generator=generator)
            book[empty] = residual[drawn]
        residual = residual - book[_nearest(residual, book)]
        books.append(book)
    return torch.stack(books)


def quantise(latents: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """(F, LATENT) -> codes (K, F) and their sum in the codebooks (F, LATENT)."""
    residual, codes = latents, []
    for book in books:
        codes.append(_nearest(residual, book))
        residual = residual - book[codes[-1]]
    return torch.stack(codes), latents - residual


def _nearest(points: Tensor, book: Tensor) -> Tensor:
    """(F, LATENT) -> (F,): codes."""
    codes = []
    for part in points.split(8192):  # 32 MB of distances at a time
        # |p - b|^2 without |p|^2, which all entries have in common.
        codes.append((book.square().sum(1) - 2 * part @ book.T).argmin(1))
    return torch.cat(codes)
