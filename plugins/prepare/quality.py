"""A recording and its transcript -> why they are unfit for training.

In, by rising cost: the size of the file, its header, its samples, its text. Out: `None`, or
``(reason, value)`` where `reason` is constant per kind of fault and names the limit to change. Also
the hash that finds one recording twice. Whether a file is readable, whole and free of NaN is said
by `plugins.audio.waveforms`. Changes no audio."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from plugins.audio.waveforms import (
    MAX_CHANNELS,
    MAX_SAMPLE_RATE_HZ,
    AudioInfo,
    mono,
    to_float,
    to_pcm16,
)
from plugins.errors import UserError, problem

Fault = tuple[str, float | str]  # reason, offending value
FRAME_S = 0.025  # the usual window of speech analysis: two periods of a deep voice
# The noise floor of a quiet room: below it a frame is silent whatever the rest of the clip.
SILENCE_DBFS = -60.0
_FULL_SCALE = 0.99  # 8 bit ends at 127/128
_CLIPPED_RUN = 3  # samples: a wave passes its peak in one or two equal ones


def knob(
    default: Any,
    help: str,
    unit: str,
    parse: Callable[[str], Any],
    *,
    bounds: tuple[float, float] = (0, 1e9),
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that carries what a command line flag of its name needs."""
    metadata = {"help": help, "unit": unit, "parse": parse, "bounds": bounds, "choices": choices}
    return field(default=default, metadata=metadata)


def check_bounds(knobs: Any) -> None:
    """Raise UserError for a field made by `knob` with a value beyond its bounds or none of its
    choices."""
    for field_ in dataclasses.fields(knobs):
        value, about = getattr(knobs, field_.name), field_.metadata
        if about["choices"]:
            if value not in about["choices"]:
                remedy = f"use one of {', '.join(about['choices'])}"
                raise flag_problem(field_.name, value, "is unknown", remedy)
            continue
        low, high = about["bounds"]
        # NaN is not between them either.
        if not all(low <= number <= high for number in _numbers(value)):
            reason = f"is outside {low:g} to {high:g} {about['unit']}".rstrip()
            raise flag_problem(field_.name, value, reason, f"give {about['help']}")


def flag_problem(name: str, value: object, reason: str, remedy: str) -> UserError:
    """The error of a flag whose value cannot be meant."""
    return problem(
        source="command line", field=f"--{name}", value=value, reason=reason, remedy=remedy
    )


def _numbers(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class Limits:
    """What a usable clip keeps to. All bounds are inclusive.

    Where the numbers come from. *Given*: duration and lowest rate (below 16 kHz the consonants are
    gone). *Largest file and rate* bound the memory of decoding: 30 s of stereo in 64 bit at 192 kHz
    are 92 MB. *Characters per second*: LJSpeech has 15.2 on average (1,308,674 in 23:55:17), 362 of
    Asterisk's English prompts 2.4 to 19.8, Mandarin read aloud 4.3 (255 a minute), slowly 1.7;
    espeak-ng at 300 words a minute reaches 31. *Silence*: those prompts have 14 % (median) and at
    most 41 % of their frames 40 dB below the loudest. *Clipping*: speech driven 3 dB over full
    scale has 1.5 % (16 kHz) clipped samples, 6 dB over 1 to 7 %."""

    min_duration_s: float = knob(1.0, "shortest clip", "s", float)
    max_duration_s: float = knob(30.0, "longest clip", "s", float)
    min_sample_rate_hz: int = knob(16_000, "lowest sample rate", "Hz", int)
    max_sample_rate_hz: int = knob(
        MAX_SAMPLE_RATE_HZ, "highest sample rate", "Hz", int, bounds=(0, MAX_SAMPLE_RATE_HZ)
    )
    max_channels: int = knob(
        2, "most channels; they are averaged", "channels", int, bounds=(0, MAX_CHANNELS)
    )
    max_file_bytes: int = knob(100_000_000, "largest audio file", "bytes", int, bounds=(0, 1e12))
    max_clipped_share: float = knob(
        0.001,
        "largest share of clipped samples (runs of 3 or more equal ones at full scale)",
        "",
        float,
        bounds=(0, 1),
    )
    max_silence_share: float = knob(
        0.5,
        "largest share of silent frames; trim such clips instead of raising it",
        "",
        float,
        bounds=(0, 1),
    )
    silence_below_db: float = knob(
        40.0,
        "how far below the loudest frame a frame is silent; below -60 dBFS it always is",
        "dB",
        float,
    )
    max_dc_offset: float = knob(
        0.01,
        "largest mean of the samples, full scale being 1; 0.01 is -40 dBFS",
        "",
        float,
        bounds=(0, 1),
    )
    min_chars_per_s: float = knob(1.0, "slowest speech", "characters/s", float)
    max_chars_per_s: float = knob(30.0, "fastest speech", "characters/s", float)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("duration_s", "sample_rate_hz", "chars_per_s"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                reason = f"is above --max_{name} ({high:g})"
                raise flag_problem(f"min_{name}", low, reason, "swap them")


def check_file_size(num_bytes: int, limits: Limits) -> Fault | None:
    """To be asked before the file is opened, let alone hashed."""
    if num_bytes > limits.max_file_bytes:
        return "file above max_file_bytes", num_bytes
    return None


def check_header(info: AudioInfo, limits: Limits) -> Fault | None:
    """To be asked before decoding, and again with what was decoded: the length in an MP3's header
    may be a guess."""
    # The rate goes first: a lying one makes the duration a lie too.
    if info.sample_rate_hz < limits.min_sample_rate_hz:
        return "sample rate below min_sample_rate_hz", info.sample_rate_hz
    if info.sample_rate_hz > limits.max_sample_rate_hz:
        return "sample rate above max_sample_rate_hz", info.sample_rate_hz
    if info.num_channels > limits.max_channels:
        return "channels above max_channels", info.num_channels
    if info.duration_s < limits.min_duration_s:
        return "duration below min_duration_s", round(info.duration_s, 6)
    if info.duration_s > limits.max_duration_s:
        return "duration above max_duration_s", round(info.duration_s, 6)
    return None


def check_samples(samples: np.ndarray, sample_rate_hz: int, limits: Limits) -> Fault | None:
    """`samples`: (N,) or (N, channels), int16 or finite float32. The worst channel counts for
    clipping and DC."""
    assert samples.size, samples.shape
    channels = np.ascontiguousarray(np.atleast_2d(samples.T))  # along the memory numpy is fastest
    means = [_frame_means(channel, sample_rate_hz) for channel in channels]
    # Silence is judged on the average of the channels, which is what the model hears.
    together = means[0]
    if len(means) > 1:
        together = _frame_means(mono(to_float(samples)), sample_rate_hz)
    silence = 1.0 - float(_is_speech(together, limits.silence_below_db).mean())
    if silence > limits.max_silence_share:
        return "silence share above max_silence_share", round(silence, 6)
    clipped = max(map(_clipped_share, channels))
    if clipped > limits.max_clipped_share:
        return "clipped share above max_clipped_share", round(clipped, 6)
    offset = max(abs(float(frames.means.mean())) for frames in means)
    if offset > limits.max_dc_offset:
        return "DC offset above max_dc_offset", round(offset, 6)
    return None


def check_text(text: str, duration_s: float | None, limits: Limits) -> Fault | None:
    """`duration_s` None: not measured, then only the text is looked at."""
    # Decomposed, each Vietnamese accent would be a character.
    text = unicodedata.normalize("NFC", text.strip())
    if not text:
        return "text is empty", ""
    if not any(character.isalnum() for character in text):
        return "text has no letter or digit", text
    if duration_s is None:
        return None
    chars_per_s = len(text) / duration_s
    if chars_per_s < limits.min_chars_per_s:
        return "characters per second below min_chars_per_s", round(chars_per_s, 6)
    if chars_per_s > limits.max_chars_per_s:
        return "characters per second above max_chars_per_s", round(chars_per_s, 6)
    return None


def speech_frames(samples: np.ndarray, sample_rate_hz: int, silence_below_db: float) -> np.ndarray:
    """Which frames of `FRAME_S` of `samples` (N,) are not silent, (frames,) bool; a rest below one
    frame is left out.

    A frame is silent if its level (RMS, DC removed) is `silence_below_db` below that of the loudest
    frame, or below `SILENCE_DBFS`. The loudest and no percentile: a word in a minute of silence
    would pull a percentile down with it."""
    return _is_speech(_frame_means(samples, sample_rate_hz), silence_below_db)


def frame_size(sample_rate_hz: int) -> int:
    """Samples in `FRAME_S`."""
    return round(FRAME_S * sample_rate_hz)


def samples_hash(samples: np.ndarray, sample_rate_hz: int) -> str:
    """Of the rate and the mono samples in 16 bit: equal for one recording as WAV, as FLAC and with
    other tags.

    `samples`: (N,) or (N, channels), int16 or float32 as decoded. Another rate, level or length is
    another recording, and so is what went through MP3. XXH3 (128 bits) takes a tenth of the time of
    SHA-256, which would help only against forgery."""
    is_mono = samples.size == len(samples)
    quantised = samples
    if samples.dtype != np.int16 or not is_mono:
        quantised = to_pcm16(mono(to_float(samples)))
    content = quantised.reshape(-1).astype("<i2", copy=False)
    return f"{sample_rate_hz}:{xxhash.xxh3_128_hexdigest(content.data)}"


class _FrameMeans(NamedTuple):
    """Per frame, (frames,) float64, full scale being 1."""

    means: np.ndarray
    squares: np.ndarray


def _frame_means(samples: np.ndarray, sample_rate_hz: int) -> _FrameMeans:
    """Mean and mean square of the frames of one channel (N,), int16 or float32."""
    size = min(frame_size(sample_rate_hz), len(samples))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    floats = frames.astype(np.float32, copy=False)
    unit = float(to_float(np.ones(1, samples.dtype))[0])
    # einsum needs neither an array of squares nor numpy's slow means of short rows.
    sums = np.einsum("fn->f", floats).astype(np.float64)
    squares = np.einsum("fn,fn->f", floats, floats).astype(np.float64)
    return _FrameMeans(sums * (unit / size), squares * (unit**2 / size))


def _is_speech(frames: _FrameMeans, silence_below_db: float) -> np.ndarray:
    # The power without DC, from the sums alone: mean((x - m)^2) = mean(x^2) - 2 m mean(x) + m^2.
    offset = frames.means.mean()
    power = frames.squares - 2 * offset * frames.means + offset**2
    level_dbfs = 10 * np.log10(np.maximum(power, 1e-20))
    return level_dbfs >= max(level_dbfs.max() - silence_below_db, SILENCE_DBFS)


def _clipped_share(channel: np.ndarray) -> float:
    """Of one channel (N,)."""
    low, high = to_float(np.array([channel.min(), channel.max()]))
    if low > -_FULL_SCALE and high < _FULL_SCALE:  # nearly every clip
        return 0.0
    channel = to_float(channel)
    loud = np.abs(channel) >= _FULL_SCALE
    # A run begins where the next samples equal this one; then all of its samples are marked.
    length = max(0, len(channel) - _CLIPPED_RUN + 1)
    begins_run = loud[:length].copy()
    for offset in range(1, _CLIPPED_RUN):
        begins_run &= channel[offset : offset + length] == channel[:length]
    in_run = np.zeros_like(loud)
    for offset in range(_CLIPPED_RUN):
        in_run[offset : offset + length] |= begins_run
    return float(in_run.mean())
