"""Phrases -> speech of many voices -> clips: codes, and which word is said in each frame.

A clip has two frames of silence before the first sound and three after the last, so that clips can
be joined as codes.

Three voices have names. Others are made of them, whose name nobody is told: a reference must show
them. An odd shard is read faster or slower than it was said, which moves pitch and formants as
throats of other sizes do; an even one is kept in two more voices, which nobody has (`moved`)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor

from demo.recipes.base import phrases
from demo.recipes.base.flite import SAMPLE_RATE_HZ, Flite, Spoken
from demo.recipes.base.moved import moved
from demo.recipes.base.piper import Piper
from demo.recipes.codec import network, targets
from plugins.audio import waveforms as audio
from plugins.audio.codec import FRAMES_PER_S, Codec
from plugins.files import disk

# What makes the voices as loud as each other, and as the codec knows them.
GAIN = {"slt": 0.38, "awb": 0.66, "joe": 1.18}
VOICES = tuple(GAIN)
_PIPER = "joe"
CLIPS = 500  # of a shard
_BEFORE, _AFTER = 2, 3  # frames of silence
_FRAME = SAMPLE_RATE_HZ // FRAMES_PER_S  # samples of what is spoken
_HOP = audio.SAMPLE_RATE_HZ // FRAMES_PER_S  # samples of the codec
_HIGHEST = 1.22  # times as fast as the named voice, or as slow
_MOVED = 2  # voices that an even shard is moved to


@dataclass(frozen=True)
class Clip:
    """Words that were spoken."""

    text: str
    codes: np.ndarray  # (K, F)
    tokens: np.ndarray  # (F,): which of the text's is said, words and signs counted


def write_shard(path: Path, voice: str, number: int, codec: Codec, *, seed: int) -> None:
    """`path`: codes of all clips in each voice, frames, texts and ends of words."""
    speaks, speed = speaker(voice), speed_of(voice, number, seed=seed)
    latents, texts, ends = [], [], []
    for text in phrases.draw(random.Random(f"{seed} {voice} {number}"), CLIPS):
        spoken = speaks.speak(text)
        # What the voice reads as other words has no alignment.
        if len(spoken.ends_s) == len(text.split()):
            waveform, ends_of_clip = _cut(spoken, voice, speed)
            latents.append(_latents(waveform, codec))
            texts.append(text)
            ends.append(ends_of_clip)
    frames = [len(of_clip) for of_clip in latents]
    codes = _in_voices(torch.cat(latents), codec, f"{seed} moved {voice} {number}", number)
    told = json.dumps({"texts": texts, "ends": ends})
    with disk.replace_when_done(path) as new, open(new, "wb") as file:
        np.savez(file, codes=codes, frames=frames, told=told)


def speaker(voice: str) -> Flite | Piper:
    """Raises UserError without its synthesiser."""
    return Piper() if voice == _PIPER else Flite(voice)


def load(path: Path) -> list[list[Clip]]:
    """The clips of a shard in each of its voices, the one that spoke first; without those that give
    a held-out sentence away."""
    with np.load(path) as shard:
        borders = np.cumsum(shard["frames"])[:-1]
        voices = [np.split(codes, borders, axis=1) for codes in shard["codes"]]
        told = json.loads(str(shard["told"]))
    clips: list[list[Clip]] = [[] for _ in voices]
    for text, ends, *in_voices in zip(told["texts"], told["ends"], *voices, strict=True):
        if not phrases.gives_away(text):
            tokens = tokens_said(text, ends, in_voices[0].shape[1])
            for of_voice, codes in zip(clips, in_voices, strict=True):
                of_voice.append(Clip(text, codes, tokens))
    return clips


def speed_of(voice: str, number: int, *, seed: int) -> float:
    """How much faster than it was said the shard is read."""
    if number % 2 == 0:
        return 1.0
    octaves = math.log2(_HIGHEST)
    return 2.0 ** random.Random(f"{seed} speed {voice} {number}").uniform(-octaves, octaves)


def at_rate_of_codec(samples: np.ndarray, voice: str, speed: float = 1.0) -> np.ndarray:
    """What was said (N,) int16 -> float32 at 24 kHz, as loud as all voices."""
    rate_hz = speed * SAMPLE_RATE_HZ
    return GAIN[voice] * soxr.resample(audio.to_float(samples), rate_hz, audio.SAMPLE_RATE_HZ)


def tokens_said(text: str, ends: Iterable[float], num_frames: int) -> np.ndarray:
    """(F,), from the end of each word in frames."""
    words, count = [], 0
    for written in text.split():
        words.append(count)
        # A word may have one sign after it.
        count += 2 if written[-1] in ".,?" else 1
    # After the last word: the sign at the end.
    return np.array([*words, count - 1])[np.searchsorted(ends, np.arange(num_frames) + 0.5)]


@torch.no_grad()
def _latents(waveform: np.ndarray, codec: Codec) -> Tensor:
    """(N,) -> (F, LATENT), of which `Codec.encode` makes codes."""
    padded = np.pad(waveform, (0, -len(waveform) % _HOP)).astype("f4")
    heard = torch.from_numpy(padded).to(codec.device)
    latents: Tensor = codec.model.acoustic_encoder(heard[None, None])[0].T.cpu()
    return latents


def _in_voices(latents: Tensor, codec: Codec, seed: str, number: int) -> np.ndarray:
    """(F, LATENT) -> (V, K, F)."""
    books = network.codebooks(codec.model)
    codes, _ = targets.quantise(latents, books)
    draw = random.Random(seed)
    count = _MOVED if number % 2 == 0 else 0
    others = [moved(latents, books, seed=draw.getrandbits(32)) for _ in range(count)]
    return torch.stack([codes, *others]).numpy().astype("i2")


def _cut(spoken: Spoken, voice: str, speed: float) -> tuple[np.ndarray, list[float]]:
    """The clip in whole frames, and the end of each word in frames from its beginning."""
    frame = speed * _FRAME
    start = round(spoken.starts_s * SAMPLE_RATE_HZ - _BEFORE * frame)
    ends = [(end_s * SAMPLE_RATE_HZ - start) / frame for end_s in spoken.ends_s]
    num_frames = math.ceil(ends[-1]) + _AFTER
    end = start + math.ceil(num_frames * frame)
    padded = np.pad(spoken.samples, (max(-start, 0), max(end - len(spoken.samples), 0)))
    first = max(start, 0)
    waveform = at_rate_of_codec(padded[first : first + end - start], voice, speed)
    # A sample more would be a frame more.
    return waveform[: num_frames * _HOP], [round(frames, 2) for frames in ends]
