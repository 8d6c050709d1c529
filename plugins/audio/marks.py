"""Synthetic speech says what it is, inside its file: provenance that machines read, beside the
samples, which stay as they are.

    WAV   RIFF INFO: ICMT, ISFT, ICRD         MP3    ID3v2
    FLAC, Ogg   Vorbis comments: COMMENT, DATE, SOFTWARE or ENCODER

The comment is JSON, whatever the file: {"synthetic": true, "software": ..., "model": ...,
"adapter": ..., "date": ...}. It is for those who ask, not against those who hide: whoever copies
the samples only leaves it behind. Recordings of people get none, nor do copies of them, be it
through the codec: nobody made up what they say."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from plugins import __version__
from plugins.audio.waveforms import SAMPLE_RATE_HZ, AudioError, load, to_pcm16
from plugins.files.lines import NoJson, parse_json

SOFTWARE = f"higgs-audio-swift {__version__}"
_MOST_CHARS = 200  # of a name
_BLOCK_SAMPLES = 1 << 16  # libsndfile's Vorbis overflows its stack if it gets minutes at once


@dataclass(frozen=True)
class Mark:
    """model, adapter: names, not paths. date: of the day, UTC, ISO 8601."""

    model: str
    adapter: str | None
    date: str
    software: str = SOFTWARE

    @classmethod
    def of_today(cls, model: str, adapter: str | None) -> Mark:
        day = datetime.now(timezone.utc).date().isoformat()
        name = None if adapter is None else adapter[:_MOST_CHARS]
        return cls(model[:_MOST_CHARS], name, day)

    @property
    def text(self) -> str:
        """JSON of ASCII letters in one line: for files, and for the header of an HTTP answer."""
        return json.dumps({"synthetic": True, **asdict(self)})

    def put(self, file: sf.SoundFile) -> None:
        """Into a file that is open for writing, before its first sample."""
        file.comment, file.date = self.text, self.date
        file.software = self.software

    @property
    def nameless(self) -> Mark:
        """Synthetic, but nobody is told by whom: of a blind comparison."""
        return replace(self, model="?", adapter=None)

    def riff_list(self) -> bytes:
        """The LIST INFO chunk of a WAV file."""
        body = b"INFO"
        for name, text in ((b"ICMT", self.text), (b"ICRD", self.date), (b"ISFT", self.software)):
            data = text.encode() + b"\0"
            body += name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        return b"LIST" + struct.pack("<I", len(body)) + body


@dataclass(frozen=True)
class Maker:
    """Whose files they are: names, not paths. adapter: of LoRA weights, if there are any."""

    model: str
    adapter: str | None = None

    def mark(self) -> Mark:
        return Mark.of_today(self.model, self.adapter)


def write(
    file: Any,
    samples: np.ndarray,
    sample_rate_hz: int,
    mark: Mark | None,
    *,
    container: str = "WAV",
    encoding: str = "PCM_16",
) -> None:
    """`samples` (N,) in 16 bit, and the mark beside them. file: a path of any name, or an open
    binary file. container, encoding: as libsndfile calls them."""
    assert np.isfinite(samples).all(), "NaN or infinite samples"
    options = {"format": container, "subtype": encoding}
    with sf.SoundFile(file, "w", sample_rate_hz, channels=1, **options) as output:
        if mark is not None:
            mark.put(output)
        push(output, samples)


def push(file: sf.SoundFile, samples: np.ndarray) -> None:
    """More `samples` (N,), in 16 bit, into a file that is open for writing."""
    pcm = to_pcm16(samples)
    for start in range(0, len(pcm), _BLOCK_SAMPLES):
        file.write(pcm[start : start + _BLOCK_SAMPLES])


def wav_of(path: str | Path, *, is_named: bool = True) -> bytes:
    """A WAV file of what `path` holds, mono at 24 kHz, with its mark if it has one. Raises
    AudioError as `waveforms.load` does."""
    mark = mark_in(path)
    if mark is not None and not is_named:
        mark = mark.nameless
    file = io.BytesIO()
    write(file, load(path), SAMPLE_RATE_HZ, mark)
    return file.getvalue()


def mark_in(path: str | Path | io.BytesIO) -> Mark | None:
    """The mark of a file, if it has one. Raises AudioError for what is no audio."""
    try:
        with sf.SoundFile(path) as file:
            comment = file.comment
    except (OSError, sf.SoundFileError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(str(path), f"cannot be read ({reason})", "give an audio file") from None
    try:
        entries = parse_json(comment)
    except NoJson:
        return None
    if not isinstance(entries, dict) or entries.get("synthetic") is not True:
        return None
    texts = {}
    for name in ("model", "adapter", "date", "software"):
        value = entries.get(name)
        texts[name] = value[:_MOST_CHARS] if isinstance(value, str) else None
    return Mark(
        texts["model"] or "?", texts["adapter"], texts["date"] or "?", texts["software"] or "?"
    )
