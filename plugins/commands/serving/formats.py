"""Samples (N,) float32 -> the bytes of a file, whole or as they come.

Knows neither HTTP nor what is said. All files are mono, in 16 bit where a format has bits."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
import soundfile as sf

from plugins.audio import marks
from plugins.audio.marks import Mark
from plugins.audio.waveforms import to_pcm16

_UNKNOWN = 0xFFFFFFFF  # a length that nobody knows yet
# 80 kbit/s: of a stream without its length players tell the time by its bytes.
_STREAMED_MP3 = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}


@dataclass(frozen=True)
class Format:
    media_type: str
    container: str | None = None  # as libsndfile calls them; None: samples only
    encoding: str | None = None


FORMATS = {
    "mp3": Format("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": Format("audio/ogg", "OGG", "OPUS"),
    "flac": Format("audio/flac", "FLAC", "PCM_16"),
    "wav": Format("audio/wav", "WAV", "PCM_16"),
    "pcm": Format("audio/pcm"),  # little-endian
}


class Encoder:
    """name: of `FORMATS`. in_pieces: bytes are wanted as soon as there are some; else at the end,
    and then the header says how long it is. mark: goes into the file, if it has a place for it."""

    def __init__(
        self, name: str, sample_rate_hz: int, *, in_pieces: bool, mark: Mark | None = None
    ) -> None:
        self._format, self._in_pieces = FORMATS[name], in_pieces
        self._bytes, self._num_taken = io.BytesIO(), 0
        self._file: sf.SoundFile | None = None
        if self._format.container == "WAV" and in_pieces:
            # libsndfile would say that it is empty, and mend it at the end, when it has been sent.
            self._bytes.write(_wav_header(sample_rate_hz, mark))
        elif self._format.container is not None:
            is_streamed_mp3 = in_pieces and self._format.container == "MP3"
            self._file = sf.SoundFile(
                self._bytes,
                "w",
                sample_rate_hz,
                channels=1,
                format=self._format.container,
                subtype=self._format.encoding,
                **(_STREAMED_MP3 if is_streamed_mp3 else {}),
            )
            if mark is not None:
                mark.put(self._file)

    def push(self, samples: np.ndarray) -> bytes:
        """The bytes that are ready: often none."""
        if self._file is None:
            self._bytes.write(to_pcm16(samples).astype("<i2").tobytes())
        else:
            marks.push(self._file, samples)
        return self._taken() if self._in_pieces else b""

    def finish(self) -> bytes:
        """All other bytes."""
        self.close()
        return self._taken()

    def close(self) -> None:
        """Also of what nobody waits for any more: libsndfile would write to the end."""
        if self._file is not None:
            self._file.close()

    def _taken(self) -> bytes:
        # Of what has been taken, a header say, nothing is given again.
        with self._bytes.getbuffer() as written:
            new = bytes(written[self._num_taken :])
        self._num_taken += len(new)
        return new


def _wav_header(sample_rate_hz: int, mark: Mark | None) -> bytes:
    """Of mono 16 bit of any length."""
    form = struct.pack("<HHIIHH", 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    parts = [b"RIFF", struct.pack("<I", _UNKNOWN), b"WAVE", b"fmt ", struct.pack("<I", len(form))]
    parts.append(form)
    if mark is not None:
        parts.append(mark.riff_list())
    return b"".join([*parts, b"data", struct.pack("<I", _UNKNOWN)])
