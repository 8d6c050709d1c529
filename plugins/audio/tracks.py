"""Recordings of any length and format -> their sound in a stream, at constant memory.

In: a path. Out: blocks (n,) float32, channels averaged, or (n, channels), at the file's own rate.
What libsndfile reads is read by it (`plugins.audio.waveforms`); anything else, and the sound of
films, by PyAV, which brings ffmpeg's libraries along. PyAV is part of the extra ``[evaluate]``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from plugins.audio.waveforms import AudioError, Source, mono, to_float

# A file may be a playlist, whatever it is called: ffmpeg would open what it names.
_CONTAINERS = (
    "mov,matroska,webm,asf,aac,ogg,mp3,flv,mpegts,mpeg,avi,amr,amrnb,amrwb,ac3,eac3,ape,wv,caf,wav,"
    "w64,flac,aiff,au"
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
_LISTEN = "is in a format that is read with PyAV, which is not installed"


class Track:
    """The sound track of a file, open for reading.

    Raises `AudioError` if there is none, and for one of a format that needs PyAV without it."""

    sample_rate_hz: int
    num_channels: int
    duration_s: float | None  # as the header says; None: it does not

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source: Source | None = None
        self._container: Any = None
        try:
            self._source = Source(path, any_length=True)
        except AudioError as error:
            if not error.reason.startswith(("is in a format", "is not readable", "states no len")):
                raise
            self._open_with_av(error)
        else:
            info = self._source.info
            self.sample_rate_hz, self.duration_s = info.sample_rate_hz, info.duration_s
            self.num_channels = info.num_channels

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._source, self._container):
            if file is not None:
                file.__exit__(None, None, None)

    def blocks(self) -> Iterator[np.ndarray]:
        """(n,) float32, to be asked for once. Raises `AudioError` for a damaged or cut off file."""
        return map(mono, self._read())

    def channels(self) -> Iterator[np.ndarray]:
        """(n, channels) float32, instead of `blocks`."""
        for block in self._read():
            if block.shape[1] != self.num_channels:
                reason = "changes the number of its channels on the way"
                raise AudioError(self._path, reason, "export it again")
            yield block

    def _read(self) -> Iterator[np.ndarray]:
        return self._decoded() if self._source is None else map(to_float, self._source.blocks())

    def _open_with_av(self, refusal: AudioError) -> None:
        try:
            import av
        except ImportError:
            remedy = 'run: pip install -e ".[evaluate]", or convert it'
            raise AudioError(self._path, _LISTEN, remedy) from None
        try:
            # "file:": a name with a colon in it would be taken for a protocol.
            self._container = av.open(f"file:{self._path}", options=_OPTIONS)
        except (av.FFmpegError, ValueError):
            raise AudioError(self._path, "is not readable audio", refusal.remedy) from None
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError(self._path, "has no sound track", "leave it out")
        stream = self._container.streams.audio[0]
        if not stream.rate:
            self._container.close()
            raise AudioError(self._path, "states no sample rate", "export it again")
        self.sample_rate_hz, self.duration_s = int(stream.rate), None
        self.num_channels = stream.codec_context.layout.nb_channels
        if self._container.duration:
            self.duration_s = self._container.duration / av.time_base

    def _decoded(self) -> Iterator[np.ndarray]:
        import av

        num_decoded = 0
        try:
            for frame in self._floats():
                block = np.ascontiguousarray(frame.to_ndarray().T)
                num_decoded += len(block)
                yield self._finite(block)
        except av.FFmpegError:
            reason = f"is cut off or damaged (after {num_decoded / self.sample_rate_hz:.0f} s)"
            raise AudioError(self._path, reason, "fetch or export it again") from None

    def _floats(self) -> Iterator[Any]:
        """Frames of floats at the track's rate, whatever rate the stream changes to on its way."""
        import av

        resampler: Any = None
        form = None
        for frame in self._container.decode(audio=0):
            found = (frame.format.name, frame.layout.name, frame.sample_rate)
            if found != form:
                yield from _rest_of(resampler)
                # One of PyAV lets all frames pass once the first needs no change.
                layout = frame.layout.name
                resampler = av.AudioResampler("fltp", layout=layout, rate=self.sample_rate_hz)
                form = found
            yield from resampler.resample(frame)
        yield from _rest_of(resampler)

    def _finite(self, block: np.ndarray) -> np.ndarray:
        if not np.isfinite(block).all():
            reason = "holds NaN or infinite samples"
            raise AudioError(self._path, reason, "export the file again")
        return block


def _rest_of(resampler: Any) -> list[Any]:
    """The frames that one of PyAV still holds; None holds none."""
    if resampler is None:
        return []
    return [frame for frame in resampler.resample(None) if frame is not None]


class Resampler:
    """Pieces (n,), or (n, num_channels), at one rate -> pieces at another, as soxr's HQ makes them
    of the whole."""

    def __init__(self, from_hz: int, to_hz: int, num_channels: int = 1) -> None:
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(
                from_hz, to_hz, num_channels, dtype="float32", quality="HQ"
            )

    def __call__(self, samples: np.ndarray, *, last: bool = False) -> np.ndarray:
        if self._stream is None:
            return samples
        piece: np.ndarray = self._stream.resample_chunk(samples, last=last)
        return piece
