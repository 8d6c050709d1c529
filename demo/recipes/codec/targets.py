"""What a codec frame should say: waveform -> log-mel -> latents, and residual codebooks of latents.

Latents learnt from the sound alone stall on two cores (no formants after 2500 steps), so they are
given: the encoder only has to regress them, and the codebooks are fitted in minutes."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

from demo.recipes.codec.corpus import HOP
from plugins.audio.codec import NUM_CODES
from plugins.audio.waveforms import SAMPLE_RATE_HZ

SOUND = 32  # latents kept of 256 numbers: 99 % of the variance as it is heard
COMMON = 8  # latents that say which sound it is, not whose (common.py)
LATENT = SOUND + COMMON
# Entries of each codebook. The second takes the voice: few, each of many sounds. What no model can
# foretell does harm when it is guessed, so the late ones have little to say.
SIZES = (256, 64, 512, 256, 64, 16, 16, 16)
UNUSED = 100.0  # in every column of the other rows: no frame is near them
_RULES = 6.5  # what is common, beside the sound: it chooses the first codebook's entry
_FFT, MELS, PER_FRAME = 1024, 64, 4
_MEL_HOP = HOP // PER_FRAME
_CHUNK = 1000  # frames at a time
_FLOOR = 2e-2  # 50 dB below a loud vowel: what a voice's pauses hiss is no sound of speech


def log_mel(samples: Tensor) -> Tensor:
    """(F * HOP,) float32 -> (F, 256): four log-mel spectra (0-8 kHz) per frame."""
    spectra = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE_HZ,
        n_fft=_FFT,
        hop_length=_MEL_HOP,
        f_max=8000,
        n_mels=MELS,
        power=1,
        center=False,
    )
    margin = (_FFT - _MEL_HOP) // 2  # the first spectrum lies over the middle of the first 10 ms
    padded = torch.nn.functional.pad(samples, (margin, margin))
    features = []
    for first in range(0, len(samples), _CHUNK * HOP):
        last = min(first + _CHUNK * HOP, len(samples))
        logs = (spectra(padded[first : last + 2 * margin]) + _FLOOR).log()
        # (mels, spectra) -> (frames, 4 * mels)
        features.append(logs.T.reshape(-1, PER_FRAME * MELS))
    return torch.cat(features)


def principal(features: Tensor) -> Tensor:
    """(F, 256) -> (F, SOUND), scaled by one factor to a mean variance of 1.

    The principal components of the sound as it is heard, recast so that their distances tell phones
    apart: what has the greatest distances is coded first, and of plain log-mel that is loudness."""
    weighted = _cosine_components(features - features.mean(0)) * _heard()
    _, vectors = torch.linalg.eigh(weighted.T @ weighted)  # ascending
    vectors = vectors.flip(1)[:, :SOUND]
    # The same distances in as few dimensions, the longest axis first.
    _, recast = torch.linalg.qr((_phones() / _heard())[:, None] * vectors)
    latents = weighted @ vectors @ recast.T
    _, axes = torch.linalg.eigh(latents.T @ latents)
    latents = latents @ axes.flip(1)
    return latents / latents.std()


def _cosine_components(features: Tensor) -> Tensor:
    """(F, 256) -> (F, 256): over a frame's four spectra and over their bands."""
    over_time = torchaudio.functional.create_dct(PER_FRAME, PER_FRAME, "ortho")
    over_bands = torchaudio.functional.create_dct(MELS, MELS, "ortho")
    return (over_time.T @ features.view(-1, PER_FRAME, MELS) @ over_bands).flatten(1)


def _heard() -> Tensor:
    """(256,): the envelope whole, fine structure (the voice's pitch) and changes less."""
    over_bands = (1 - 0.5 * (torch.arange(MELS) - 10) / 14).clamp(0.5, 1.0)
    over_bands[0] = 0.6  # loudness
    return (torch.tensor([1.0, 0.8, 0.7, 0.6])[:, None] * over_bands).flatten()


def _phones() -> Tensor:
    """(256,): the coarse envelope up; loudness, pitch and changes within a frame down."""
    over_bands = torch.full((MELS,), 0.6)
    over_bands[:16] = 1.5
    over_bands[:2] = torch.tensor([0.5, 1.0])  # loudness, tilt
    return (torch.tensor([1.0, 0.6, 0.5, 0.4])[:, None] * over_bands).flatten()


@torch.no_grad()
def let_common_rule(last: nn.Conv1d) -> None:
    """last: the encoder's layer of latents."""
    for parameter in (last.weight, last.bias):
        parameter[SOUND:] *= _RULES


def fit_codebooks(latents: Tensor, *, seed: int, rounds: int = 16) -> Tensor:
    """(F, LATENT) -> (K, NUM_CODES, LATENT), rounded as they are stored: clusters of what is common
    with the sound that each has on average, then clusters of the sound that is left, and so on."""
    generator = torch.Generator().manual_seed(seed)
    residual, books = latents, []
    for k, size in enumerate(SIZES):
        means = _k_means(residual, size, SOUND if k == 0 else 0, rounds, generator)
        book = torch.full((NUM_CODES, LATENT), UNUSED)
        book[:size] = means.half().float()
        residual = residual - book[_nearest(residual, book)]
        residual[:, SOUND:] = 0
        books.append(book)
    return torch.stack(books)


def _k_means(
    points: Tensor, size: int, first: int, rounds: int, generator: torch.Generator
) -> Tensor:
    """(F, LATENT) -> (size, LATENT): means of clusters by the columns from `first` on."""
    means = points[torch.randperm(len(points), generator=generator)[:size]]
    for _ in range(rounds):
        codes = _nearest(points[:, first:], means[:, first:])
        counts = codes.bincount(minlength=size)
        sums = torch.zeros_like(means).index_add_(0, codes, points)
        means = sums / counts.clamp(min=1)[:, None]
        # A cluster without points begins anew, at one.
        empty = counts == 0
        drawn = torch.randint(len(points), (int(empty.sum()),), generator=generator)
        means[empty] = points[drawn]
    return means


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
