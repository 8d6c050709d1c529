"""Decoded samples -> what the model is trained on: (N,) float32, 24 kHz, mono.

In: samples at any rate. Out: new arrays, trimmed and normalised as `Processing` says, and augmented
copies. A pure function of its arguments: the same on every worker and in every order. Reads and
writes no files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from plugins.audio.waveforms import SAMPLE_RATE_HZ, mono
from plugins.errors import problem
from plugins.prepare.quality import check_bounds, flag_problem, frame_size, knob, speech_frames

_VAD_RATE_HZ = 16_000
_GATING_BLOCK_S = 0.4  # ITU-R BS.1770: loudness is not defined for less
_MAX_TRUE_PEAK_DB = -1.0  # EBU R128
# Packages that only some settings need: module, name, what to do without it.
_VAD = ("silero_vad", "silero-vad", "take --trim energy")
_LOUDNESS = ("pyloudnorm", "pyloudnorm", "leave out --loudness_lufs")


def _floats(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.replace(",", " ").split()))


@dataclass(frozen=True)
class Processing:
    """What to do to each clip besides resampling it to 24 kHz mono. The defaults do nothing
    more."""

    trim: str = knob(
        "none",
        "cut silence off both ends: energy (by level), vad (by silero-vad, which also cuts breath"
        " and noise)",
        "",
        str,
        choices=("none", "energy", "vad"),
    )
    trim_below_db: float = knob(
        40.0,
        "how far below the loudest frame --trim energy takes a frame for silence; below -60 dBFS"
        " it always does",
        "dB",
        float,
    )
    trim_padding_s: float = knob(
        0.2,
        "what trimming leaves before and after the speech; levels and VAD miss soft onsets",
        "s",
        float,
    )
    loudness_lufs: float | None = knob(
        None, "loudness to normalise to (EBU R128), for example -23", "LUFS", float, bounds=(-70, 0)
    )
    speed_factors: tuple[float, ...] = knob(
        (),
        "one more copy of each clip per factor, for example 0.9,1.1; the pitch changes with it",
        "",
        _floats,
        bounds=(0.5, 2),
    )
    noise_snr_db: tuple[float, ...] = knob(
        (),
        "one more copy of each clip per signal-to-noise ratio, with white noise, for example 20",
        "dB",
        _floats,
        bounds=(-20, 100),
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("speed_factors", "noise_snr_db"):
            values = getattr(self, name)
            if len({f"{value:g}" for value in values}) < len(values):  # as they stand in ids
                remedy = "give each value once"
                raise flag_problem(name, values, "gives two copies one id", remedy)


@dataclass(frozen=True, eq=False)
class Variant:
    """An augmented copy of a clip."""

    id: str  # that of the clip, then speaker_suffix or the noise
    # Empty, or what tells this voice from the clip's: another speed has another pitch.
    speaker_suffix: str
    samples: np.ndarray  # (N,) float32, 24 kHz


def check_installed(processing: Processing) -> None:
    """Raise UserError if a package that `processing` needs is missing. Imports none of them."""
    needed = []
    if processing.trim == "vad":
        needed.append(_VAD)
    if processing.loudness_lufs is not None:
        needed.append(_LOUDNESS)
    for module, package, otherwise in needed:
        if importlib.util.find_spec(module) is None:
            raise problem(
                source="processing",
                field="package",
                value=package,
                reason="is not installed",
                remedy=f"run: pip install {package}, or {otherwise}",
            )


def process(samples: np.ndarray, sample_rate_hz: int, processing: Processing) -> np.ndarray:
    """`samples` (N,) or (N, channels), finite float32 -> (M,) float32 at 24 kHz within [-1, 1];
    `samples` stays as is.

    (0,) if trimming found no speech. Nothing is ever clipped: normalisation stops where the true
    peak would pass -1 dB below full scale, leaving a clip of high peaks quieter than asked, and
    what resampling lifts beyond full scale is scaled down as a whole. Raises UserError if a package
    is missing."""
    check_installed(processing)
    result = _resample(mono(samples), sample_rate_hz, SAMPLE_RATE_HZ)
    if processing.trim != "none" and len(result):
        if processing.trim == "vad":
            start, end = _voiced_span(result)
        else:
            start, end = _loud_span(result, processing.trim_below_db)
        padding = round(processing.trim_padding_s * SAMPLE_RATE_HZ)
        # Where no speech was found there is nothing to pad.
        result = result[max(0, start - padding) : end + padding] if end else result[:0]
    if processing.loudness_lufs is not None:
        result = _normalise(result, processing.loudness_lufs)
    return _within_full_scale(result)


def variants(
    samples: np.ndarray, clip_id: str, processing: Processing, *, seed: int
) -> Iterator[Variant]:
    """The augmented copies of `samples` (N,), as `process` returned them.

    Speed is changed by resampling, as in Ko et al., "Audio Augmentation for Speech Recognition"
    (Interspeech 2015): duration is divided and pitch multiplied by the factor, so that the voice is
    another one. Noise is white, its ratio is to the power of the whole clip, and it follows from
    `seed` and the id only."""
    for factor in processing.speed_factors:
        suffix = _speed_suffix(factor)
        faster = _resample(samples, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
        yield Variant(clip_id + suffix, suffix, _within_full_scale(faster))
    for snr_db in processing.noise_snr_db:
        id_ = clip_id + _noise_suffix(snr_db)
        yield Variant(id_, "", _within_full_scale(_with_noise(samples, snr_db, f"{seed}:{id_}")))


def variant_ids(clip_id: str, processing: Processing) -> list[str]:
    """The ids that `variants` gives."""
    suffixes = [
        *map(_speed_suffix, processing.speed_factors),
        *map(_noise_suffix, processing.noise_snr_db),
    ]
    return [clip_id + suffix for suffix in suffixes]


def _speed_suffix(factor: float) -> str:
    return f"-speed{factor:g}"


def _noise_suffix(snr_db: float) -> str:
    return f"-snr{snr_db:g}"


def _resample(samples: np.ndarray, from_hz: float, to_hz: float) -> np.ndarray:
    return samples if from_hz == to_hz else soxr.resample(samples, from_hz, to_hz, quality="HQ")


def _loud_span(samples: np.ndarray, below_db: float) -> tuple[int, int]:
    """From the first to the last frame that is not silent; (0, 0) if all are."""
    speech = np.flatnonzero(speech_frames(samples, SAMPLE_RATE_HZ, below_db))
    size = frame_size(SAMPLE_RATE_HZ)
    if not len(speech):
        return 0, 0
    return int(speech[0]) * size, (int(speech[-1]) + 1) * size


def _voiced_span(samples: np.ndarray) -> tuple[int, int]:
    """From the first to the last speech that silero-vad hears; (0, 0) if there is none."""
    import torch
    from silero_vad import get_speech_timestamps

    # Its default drops speech below 250 ms that a pause follows, and with it a sentence's first
    # word ("One: ...").
    spans = get_speech_timestamps(
        torch.from_numpy(_resample(samples, SAMPLE_RATE_HZ, _VAD_RATE_HZ)),
        _silero(),
        sampling_rate=_VAD_RATE_HZ,
        min_speech_duration_ms=0,
        speech_pad_ms=0,
    )
    if not spans:
        return 0, 0
    ratio = SAMPLE_RATE_HZ / _VAD_RATE_HZ
    return round(spans[0]["start"] * ratio), round(spans[-1]["end"] * ratio)


@functools.cache
def _silero() -> Any:
    """Once per process: it comes with the package, but takes seconds to import."""
    from silero_vad import load_silero_vad

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; each worker would say so
        return load_silero_vad()


def _normalise(samples: np.ndarray, target_lufs: float) -> np.ndarray:
    """At `target_lufs`, or quieter where the peak forbids; unchanged if it has no loudness (silent,
    below 400 ms)."""
    from pyloudnorm import Meter

    if len(samples) < _GATING_BLOCK_S * SAMPLE_RATE_HZ:
        return samples
    # "DeMan" are the standard's own filters for any rate, the package's default is an approximation
    # (0.05 LU off).
    meter = Meter(SAMPLE_RATE_HZ, filter_class="DeMan")
    loudness_lufs = meter.integrated_loudness(samples.astype(np.float64))
    if not np.isfinite(loudness_lufs):
        return samples
    # Four times oversampled as in BS.1770 annex 2, whose own filter is shorter than soxr's low
    # quality. The samples count as well: the filter lowers a click.
    between = soxr.resample(samples, SAMPLE_RATE_HZ, 4 * SAMPLE_RATE_HZ, quality="LQ")
    true_peak = max(np.abs(samples).max(), np.abs(between).max())
    gain_db = min(target_lufs - loudness_lufs, _MAX_TRUE_PEAK_DB - 20 * np.log10(true_peak))
    return samples * np.float32(10 ** (gain_db / 20))


def _with_noise(samples: np.ndarray, snr_db: float, seed: str) -> np.ndarray:
    """White Gaussian noise added, its power exactly `snr_db` below that of `samples`."""
    digest = hashlib.sha256(seed.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    noise = generator.standard_normal(len(samples))
    power = np.square(samples, dtype=np.float64).mean() / np.square(noise).mean()
    return (samples + noise * np.sqrt(power / 10 ** (snr_db / 10))).astype(np.float32)


def _within_full_scale(samples: np.ndarray) -> np.ndarray:
    peak = max(samples.max(initial=0.0), -samples.min(initial=0.0))
    # Scaled as a whole, not clipped: cut tops are what `quality` rejects clips for.
    return samples / peak if peak > 1 else samples
