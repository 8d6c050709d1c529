"""Long recordings of known words: short ones, joined with pauses.

The short ones are the embedded corpus, or Asterisk's prompts (helpers/recorded.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from conftest import CORPUS, corpus_texts
from helpers.recorded import RATE_HZ, SOUNDS, decoded, require_sounds, transcripts

from plugins.audio import waveforms as audio
from plugins.prepare.slicing.hearing import Heard, Word, WordListener


@dataclass(frozen=True)
class Said:
    """A text, and where in the recording it was said."""

    text: str
    start_s: float
    end_s: float


def join(
    path: Path,
    spoken: Sequence[tuple[str, np.ndarray]],
    *,
    pauses_s: Any = (0.3, 2.0),
    seed: int = 0,
) -> list[Said]:
    """Write `spoken`, pairs of text and (N,) float32 at `RATE_HZ`, with pauses before and after
    each. pauses_s: shortest and longest."""
    random = np.random.default_rng(seed)
    said, pieces, position = [], [], 0

    def add(samples: np.ndarray) -> None:
        nonlocal position
        pieces.append(samples.astype(np.float32))
        position += len(samples)

    for text, samples in spoken:
        add(np.zeros(round(random.uniform(*pauses_s) * RATE_HZ)))
        voiced = trimmed(samples)
        said.append(Said(text, position / RATE_HZ, (position + len(voiced)) / RATE_HZ))
        add(voiced)
    add(np.zeros(RATE_HZ))
    # The noise of a quiet room; no two moments of the recording are equal.
    joined = np.concatenate(pieces)
    joined += 1e-4 * random.standard_normal(len(joined)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, joined, RATE_HZ, subtype="PCM_16")
    return said


def trimmed(samples: np.ndarray) -> np.ndarray:
    """From the first to the last frame within 40 dB of the loudest."""
    size = RATE_HZ // 40
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    levels = np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1))
    loud = np.flatnonzero(levels > levels.max() / 100)
    return samples[loud[0] * size : (loud[-1] + 1) * size]


def embedded(count: int) -> list[tuple[str, np.ndarray]]:
    """Clips of the embedded corpus."""
    spoken = []
    for name, text in corpus_texts()[:count]:
        path = CORPUS / "wavs" / f"{name}.flac"
        spoken.append((text, audio.load(path, sample_rate_hz=RATE_HZ)))
    return spoken


def prompts(seconds: float, *, seed: int = 1) -> list[tuple[str, np.ndarray]]:
    """Real prompts that last as long together; skips the test where they are not installed."""
    require_sounds()
    candidates = []
    for name, text in transcripts():
        path = SOUNDS / f"{name}.g722"
        # "[tone]" and "*" are not read aloud. One byte holds two samples.
        is_read = not re.search(r"[\[(*]", text) and path.is_file()
        if is_read and 2 * path.stat().st_size > 1.2 * RATE_HZ:
            candidates.append((text, path))
    spoken, length_s = [], 0.0
    for index in np.random.default_rng(seed).permutation(len(candidates)):
        text, path = sorted(candidates)[index]
        spoken.append((text, decoded(path)))
        length_s += len(spoken[-1][1]) / RATE_HZ
        if length_s > seconds:
            break
    return spoken


@dataclass(frozen=True)
class Spoken:
    """A turn of a conversation. pause_s: before it; below 0 it begins in the one before."""

    speaker: int
    text: str
    samples: np.ndarray  # (N,) float32 at `RATE_HZ`
    pause_s: float = 0.5


def converse(
    path: Path, turns: Sequence[Spoken], *, crosstalk_db: float = -25.0, mixed: bool = False
) -> list[list[Said]]:
    """Write a conversation of two, each in a channel that the other's voice gets into, or `mixed`
    into one; what each of them says."""
    said: list[list[Said]] = [[], []]
    voices = np.zeros((2, RATE_HZ * 3), np.float32)
    position = RATE_HZ // 2
    for turn in turns:
        begin = position + round(turn.pause_s * RATE_HZ)
        voiced = trimmed(turn.samples)
        position = begin + len(voiced)
        voices = np.pad(voices, ((0, 0), (0, max(0, position + RATE_HZ - voices.shape[1]))))
        voices[turn.speaker, begin:position] += voiced
        said[turn.speaker].append(Said(turn.text, begin / RATE_HZ, position / RATE_HZ))
    noise = np.random.default_rng(0).standard_normal(voices.shape).astype(np.float32)
    voices += 1e-4 * noise
    # It arrives later, and softer.
    late = np.roll(voices[::-1], 80, axis=1) * np.float32(10 ** (crosstalk_db / 20))
    both = voices.sum(axis=0) if mixed else (voices + late).T
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, both, RATE_HZ, subtype="PCM_16")
    return said


class KnowingRecogniser:
    """Hears what was said in recordings that `join` or `converse` has written: words of equal
    length."""

    def __init__(self, *recordings: tuple[Path, Any], sure: float = 0.95) -> None:
        self.num_heard = 0
        self._sure = sure
        self._known = []
        for path, said in recordings:
            sounds = sf.read(path, dtype="float32", always_2d=True)[0].T
            of_each = [said] if len(sounds) == 1 else said
            for sound, words in zip(sounds, of_each, strict=True):
                self._known.append((sound.tobytes(), words))

    def words(self, samples: np.ndarray) -> Heard:
        self.num_heard += 1
        # Where it is quiet, crosstalk may have been taken out.
        loudest = min(int(np.argmax(np.abs(samples))), len(samples) - 256)
        for content, said in self._known:
            found = content.find(samples[loudest : loudest + 256].tobytes())
            if found >= 0:
                begin_s = (found // 4 - loudest) / RATE_HZ
                return Heard(list(self._words(said, begin_s, len(samples))), "en")
        raise AssertionError("no part of a known recording")

    def _words(self, said: Sequence[Said], start_s: float, num_samples: int) -> Any:
        for one in said:
            texts = one.text.split()
            length_s = (one.end_s - one.start_s) / len(texts)
            for i, text in enumerate(texts):
                word_s = one.start_s + i * length_s - start_s
                if word_s >= -0.2 and word_s + length_s <= num_samples / RATE_HZ + 0.2:
                    yield Word(f" {text}", word_s, word_s + length_s, self._sure)

    def listener(self, **_: Any) -> WordListener:
        """In the place of `plugins.prepare.slicing.hearing.listener`."""
        return WordListener("en", "knows", lambda: self)  # type: ignore[return-value, arg-type]
