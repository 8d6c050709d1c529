"""What the voices have in common: speech of several voices who say the same -> 16 numbers per frame
that say which sound it is, not whose.

Clusters of plain spectra are clusters of voices: a model of such codes can say nothing in those of
another voice (histograms of the first codebook overlapped by 2 %). So each voice's cepstra are
normalised, its clips are aligned with the same of a pivot, and what is common is the mean over the
voices, put back into the time of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import librosa
import numpy as np
import torch
import torchaudio
from torch import Tensor

from demo.recipes.codec import targets
from demo.recipes.codec.corpus import Speech

_PIVOT = "rms"
_CEPSTRA, _ALIGNED = 20, 13  # of a spectrum; of these are aligned
_CHANGE = 0.7  # weight of their changes over 40 ms
_DIAGONAL = 1.6  # price of a step in both: between one and two steps
_QUIETEST = 0.25  # pauses, which are no part of a voice's statistics
_ORDERS = 3  # of the cosine transform over a frame's spectra
_NOISE = (1.0, 0.8, 0.6)  # what of the voices' scatter these have
_GREATEST = 4.0  # signal to noise; the first axes, of loudness, would drown the others


def latents(speech: Speech, features: Mapping[str, Tensor]) -> Tensor:
    """features: log-mel (F, 256) of the shared clips. Returns (F, COMMON) of the shared clips, then
    of the warped ones."""
    cepstra = {}
    for voice, clips in speech.shared.items():
        cepstra[voice] = split(normalised(features[voice]), clips.lengths)
    common, scatter = shared(cepstra, pivot=_PIVOT)
    parts = [clip for voice in speech.shared for clip in common[voice]]
    for voice, clips in speech.warped.items():
        for clip, length, pitch in zip(common[voice], clips.lengths, clips.pitches, strict=True):
            parts.append(_played(clip, length * targets.PER_FRAME, pitch))
    return discriminants(torch.from_numpy(np.concatenate(parts)), scatter)


def normalised(features: Tensor) -> np.ndarray:
    """Log-mel (F, 256) of one voice -> (N, 20) cepstra, N spectra: mean 0 and deviation 1 where it
    speaks."""
    spectra = features.view(-1, targets.MELS)
    cepstra = spectra @ torchaudio.functional.create_dct(_CEPSTRA, targets.MELS, "ortho")
    loudness = spectra.mean(1).numpy()
    spoken = cepstra[loudness > np.quantile(loudness, _QUIETEST)]
    return ((cepstra - spoken.mean(0)) / spoken.std(0)).numpy()


def split(cepstra: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """lengths: frames of each clip."""
    return np.split(cepstra, np.cumsum(lengths)[:-1] * targets.PER_FRAME)


def shared(
    cepstra: Mapping[str, Sequence[np.ndarray]], *, pivot: str
) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
    """cepstra: of each voice its clips (N, D), of the same texts. Returns what they have in common,
    likewise, and how the voices scatter about it (D, D)."""
    common: dict[str, list[np.ndarray]] = {voice: [] for voice in cepstra}
    scatter, count = 0.0, 0
    for clips in zip(*cepstra.values(), strict=True):
        spoken = dict(zip(cepstra, clips, strict=True))
        paths, aligned = {}, {}
        for voice, clip in spoken.items():
            # A voice with itself: the diagonal.
            paths[voice] = align(spoken[pivot], clip)
            aligned[voice] = _means(clip, paths[voice])
        mean = np.mean(list(aligned.values()), axis=0)
        for voice, clip in aligned.items():
            scatter = scatter + (clip - mean).T @ (clip - mean)
            count += len(clip)
            common[voice].append(_means(mean, paths[voice][:, ::-1]))
    return common, scatter / count


def align(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, D), (M, D) cepstra -> the cheapest path (P, 2) through both, by dynamic time warping."""
    _, path = librosa.sequence.dtw(
        _with_changes(one).T, _with_changes(other).T, weights_mul=np.array([_DIAGONAL, 1, 1])
    )
    return path[::-1]


def _with_changes(cepstra: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, 2 * 13), fine structure left out."""
    coarse = cepstra[:, :_ALIGNED]
    changes = np.zeros_like(coarse)
    changes[2:-2] = coarse[4:] - coarse[:-4]
    return np.concatenate([coarse, _CHANGE * changes], axis=1)


def _means(values: np.ndarray, path: np.ndarray) -> np.ndarray:
    """path (P, 2), times of a clip and of `values` (M, D) -> (N, D): of each time of the clip."""
    times, rows = path.T
    sums = np.zeros((times[-1] + 1, values.shape[1]), values.dtype)
    np.add.at(sums, times, values[rows])
    return sums / np.bincount(times)[:, None].astype(values.dtype)


def _played(values: np.ndarray, length: int, pitch: float) -> np.ndarray:
    """(N, D) -> (length, D), played so much faster; beyond the end, the last."""
    times = (np.arange(length) + 0.5) * pitch - 0.5
    columns = [np.interp(times, np.arange(len(values)), column) for column in values.T]
    return np.stack(columns, axis=1).astype(values.dtype)


def discriminants(common: Tensor, scatter: np.ndarray) -> Tensor:
    """(N, D), and the scatter of the voices about it (D, D) -> (F, COMMON): the axes on which
    sounds differ most and voices least; of a mean variance of 1."""
    dims = common.shape[1]
    over_time = torchaudio.functional.create_dct(_ORDERS, targets.PER_FRAME, "ortho").double()
    frames = common.view(-1, targets.PER_FRAME, dims).double()
    points = (over_time.T @ frames).flatten(1)
    points = points - points.mean(0)
    noise = torch.block_diag(*[weight * torch.from_numpy(scatter).double() for weight in _NOISE])
    # Noise is made as great in all directions.
    root = torch.linalg.cholesky(noise + 1e-4 * torch.eye(len(noise)))
    points = torch.linalg.solve_triangular(root, points.T, upper=False).T
    signal, axes = torch.linalg.eigh(points.T @ points / len(points))  # ascending
    signal = signal.flip(0)[: targets.COMMON]
    points = points @ axes.flip(1)[:, : targets.COMMON]
    # An axis counts by what of it is common to the voices.
    weight = signal / (1 + signal) * signal.clamp(max=_GREATEST).sqrt()
    points = points / points.std(0) * weight
    return (points / points.std()).float()
