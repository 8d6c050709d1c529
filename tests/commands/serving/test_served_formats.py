"""Samples -> files, whole and in pieces."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile as sf
from helpers.sounds import decoded

from plugins.audio.waveforms import to_pcm16
from plugins.commands.serving.formats import FORMATS, Encoder

RATE = 24_000
LENGTHS = (1, 960, 24_000, 7, 50_000)


def pieces() -> list[np.ndarray]:
    times = np.arange(sum(LENGTHS)) / RATE
    tone = (0.4 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)
    return np.split(tone, np.cumsum(LENGTHS)[:-1])


def file_of(name: str, *, in_pieces: bool) -> tuple[bytes, list[bytes]]:
    encoder = Encoder(name, RATE, in_pieces=in_pieces)
    parts = [encoder.push(piece) for piece in pieces()]
    parts.append(encoder.finish())
    return b"".join(parts), parts


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_decoded_is_what_was_said(name: str, in_pieces: bool) -> None:
    data, parts = file_of(name, in_pieces=in_pieces)
    assert any(parts[:-1]) == in_pieces
    wanted = to_pcm16(np.concatenate(pieces()))
    samples = np.frombuffer(data, dtype="<i2") if name == "pcm" else decoded(data)
    if name in ("wav", "flac", "pcm"):
        assert np.array_equal(samples, wanted)
    else:
        assert abs(len(samples) - len(wanted)) < 0.2 * RATE
        # The same tone, as loud as it was.
        assert 0.9 < np.abs(samples[RATE:-RATE]).max() / np.abs(wanted).max() < 1.1


def test_a_whole_file_says_how_long_it_is() -> None:
    for name in ("wav", "flac"):
        data, _ = file_of(name, in_pieces=False)
        assert sf.info(io.BytesIO(data)).frames == sum(LENGTHS)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_was_said(name: str) -> None:
    data = Encoder(name, RATE, in_pieces=True).finish()
    # The header at most, which only of WAV is a file that can be read.
    assert len(data) < 1000
    assert name != "wav" or len(decoded(data)) == 0
