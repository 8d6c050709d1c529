"""Whether two clips sound like one speaker, by resemblyzer's embeddings. Needs the package
resemblyzer, and with it torch: imported only where `--min_similarity` asks for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from plugins.audio.waveforms import load
from plugins.errors import problem
from plugins.prepare.rows import Clip

_RATE_HZ = 16_000


class Similarity:
    """`similarity(a, b)`: whether the cosine of their embeddings is at least `floor`.

    One voice has about 0.9, two voices about 0.6 (FACTS, section 9). Raises UserError if
    resemblyzer is missing."""

    def __init__(self, floor: float) -> None:
        try:
            from resemblyzer import VoiceEncoder
        except ImportError:
            # Its dependencies name a webrtcvad that has to be compiled.
            remedy = "run: pip install --no-deps resemblyzer==0.1.4 webrtcvad-wheels librosa"
            raise problem(
                source="--min_similarity",
                field="package",
                value="resemblyzer",
                reason="is not installed",
                remedy=remedy,
            ) from None
        self.floor = floor
        self._encoder: Any = VoiceEncoder("cpu", verbose=False)
        self._embedding = lru_cache(maxsize=100_000)(self._embed)  # 1 kB each

    def __call__(self, a: Clip, b: Clip) -> bool:
        return float(self._embedding(str(a.audio)) @ self._embedding(str(b.audio))) >= self.floor

    def _embed(self, path: str) -> np.ndarray:
        samples = load(path, sample_rate_hz=_RATE_HZ)
        embedding: np.ndarray = self._encoder.embed_utterance(samples)
        return embedding
