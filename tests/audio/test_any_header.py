"""Recordings with any bytes in their headers: read, or refused in a line of ours."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from plugins.audio import waveforms
from plugins.audio.waveforms import AudioError

FORMATS = ["WAV", "FLAC", "OGG", "MP3", "AIFF", "RF64", "W64", "CAF", "AU"]


def recording(file_format: str) -> bytes:
    buffer = io.BytesIO()
    tone = np.sin(np.arange(2400) / 10).astype(np.float32)
    soundfile.write(buffer, tone, 24_000, format=file_format)
    return buffer.getvalue()


def damaged(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4])):
        place = draw.randrange(min(len(changed), 120))
        changed[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    if draw.random() < 0.3:
        del changed[draw.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("file_format", FORMATS)
def test_any_header(file_format: str, tmp_path: Path) -> None:
    content, draw = recording(file_format), random.Random(f"{file_format} 1")
    path = tmp_path / f"a.{file_format.lower()}"
    for _ in range(30):
        path.write_bytes(damaged(content, draw))
        try:
            samples = waveforms.load(path)
        except AudioError:
            continue
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
