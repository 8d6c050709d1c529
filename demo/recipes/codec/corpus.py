"""Sentences -> speech of flite: one long waveform, clip after clip, each a whole number of codec
frames."""

from __future__ import annotations

import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from plugins.audio import waveforms as audio
from plugins.errors import UserError
from plugins.files import disk

HOP = 960  # samples of 24 kHz per codec frame
VOICES = ("slt", "rms")  # a woman and a man of the CMU ARCTIC recordings


def speak(text: str, voice: str) -> np.ndarray:
    """`text` in a voice of flite, (N,) float32 at 24 kHz. Raises UserError without flite."""
    # flite writes WAV files of 16 kHz; `load` resamples.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.wav")
        command = ["flite", "-voice", voice, "-t", text, "-o", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            raise UserError("flite: not found; apt-get install flite") from None
        return audio.load(path)


def whole_frames(waveform: np.ndarray) -> np.ndarray:
    """(N,) -> (F * HOP,), zeros on the right: as `Codec.encode` pads."""
    return np.pad(waveform, (0, -len(waveform) % HOP))


def synthesise(path: Path, texts: dict[str, list[str]]) -> np.ndarray:
    """texts: per voice. Returns (F * HOP,) int16 at 24 kHz, voices interleaved, from `path` (.npy)
    if it exists."""
    if not path.exists():
        jobs: list[tuple[str, str]] = []
        for round_of_voices in zip(*texts.values(), strict=True):
            jobs += zip(round_of_voices, texts, strict=True)
        with ThreadPoolExecutor(2) as pool:  # flite works in processes of its own
            clips = list(pool.map(lambda job: audio.to_pcm16(whole_frames(speak(*job))), jobs))
        # An interrupted run leaves no half of a file that the next one would take for all.
        with disk.replace_when_done(path) as new, open(new, "wb") as file:
            np.save(file, np.concatenate(clips))
    return np.load(path, mmap_mode="r")
