"""Audio files -> mono waveforms (N,) float32, and back.

In: a path as a user wrote it. Out: the file it means, its header, or its samples at the asked rate.
A file that would teach the model something false (cut off, NaN, empty) or block the process (a
pipe, a device) is refused by name. Knows nothing about codes, models or dataset rows; imports
neither torch nor MS-SWIFT."""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from plugins.errors import UserError
from plugins.files import disk

SAMPLE_RATE_HZ = 24_000  # of the Higgs-Audio V2 codec
# What libsndfile reads, of what recordings come in; of several files of one name the first is
# taken. The one list of formats, for corpora, references and uploads alike.
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf",
    ".w64", ".rf64", ".sph",
)  # fmt: skip
# What it does not: sound in the formats of phones, browsers and films.
CONVERTIBLE_SUFFIXES = (
    ".m4a", ".m4b", ".aac", ".mp4", ".wma", ".webm", ".weba", ".amr", ".3gp", ".mka", ".mkv",
    ".mov", ".ac3", ".ape", ".wv", ".spx",
)  # fmt: skip
# How files in these formats begin, whatever they are called: MP4 and M4A, WebM and Matroska, WMA,
# AAC, AMR, WavPack.
_CONVERTIBLE = re.compile(rb"....ftyp|\x1aE\xdf\xa3|0&\xb2u|\xff[\xf1\xf9]|#!AMR|wvpk", re.DOTALL)
# The most that is decoded, by the header: silence compresses well. 105 kB of OGG can hold 12 s of
# 255 channels at 192 kHz, which took 5.8 GB of memory.
MAX_CHANNELS = 8  # 7.1 surround
MAX_SAMPLE_RATE_HZ = 192_000
# Of all channels, and again at 24 kHz: 10 minutes of stereo at 48 kHz, 41 of mono at 24 kHz.
MAX_SAMPLES = 60_000_000
_BLOCK_SAMPLES = 1 << 21  # of all channels, decoded at a time
_PCM16_SCALE = 1 << 15
_UNKNOWN_SAMPLES = 1 << 62  # libsndfile reports a FLAC header without a length as 2**63 - 1 samples
# Encoders writing to a pipe put this or more as the WAV data size (sox, ffmpeg).
_STREAMED_BYTES = 0x7FFFF000
_NO_PERMISSION = ("may not be read", "grant read permission")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class AudioError(UserError):
    """A path that cannot serve as audio.

    `reason` and `remedy` stand apart from the path, so that a caller who knows the row says where
    it was named, with `problem`. `reason` is constant per kind of fault; what differs from file to
    file stands in parentheses at its end."""

    def __init__(self, path: str | Path, reason: str, remedy: str) -> None:
        # All three: exceptions travel between processes by their `args`.
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says."""

    num_samples: int  # per channel
    sample_rate_hz: int
    num_channels: int

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate_hz

    def num_samples_at(self, sample_rate_hz: int) -> int:
        """How many `load` gives at that rate, to the sample: soxr rounds half up."""
        doubled = 2 * self.num_samples * sample_rate_hz + self.sample_rate_hz
        return doubled // (2 * self.sample_rate_hz)


def resolve(path: str, *, folders: Sequence[Path], root: Path | None = None) -> Path:
    """The regular, non-empty file that `path` names: as it is if absolute, else in the first of
    `folders` to have it.

    root: the folder outside of which nothing may be named, for paths that somebody else wrote. An
    absolute path, ``..`` and a leading ``~`` are refused as written, wherever they lead; a link is
    refused if it leads out. Raises `AudioError` for a URL, for a path found nowhere (listing where
    it looked), for a folder, pipe or device, for a file without read permission, and for one whose
    suffix promises a format that is not read, unless it is one that is."""
    if _URL.match(path):
        raise AudioError(path, "is a URL", "download it first and name the local file")
    if not _can_be_a_name(path):
        raise AudioError(path, "names no file", "name an audio file")
    if root is not None:
        _require_plain(path, root)
    if Path(path).is_absolute():
        candidates, reason = [Path(path)], "not found"
    else:
        candidates = [Path(folder) / path for folder in folders]
        looked = ", ".join("." if str(folder) == "." else f"{folder}/" for folder in folders)
        reason = f"not found (looked in {looked})"
    existing = list(filter(_may_exist, candidates))
    if not existing:
        raise AudioError(path, reason, "mend the path")
    # A folder of that name does not hide a file in a later folder.
    file = next(filter(os.path.isfile, existing), existing[0])
    if root is not None:
        require_inside(file, root, name=path)
    _require_regular(file)
    if file.suffix.lower() in CONVERTIBLE_SUFFIXES:
        _open(file).close()
    return file


def require_inside(path: Path, *folders: Path, name: str | None = None) -> None:
    """Raise `AudioError` for a `path` that leads out of all `folders`, through links too.

    name: what the error calls it.
    """
    target = Path(os.path.realpath(path))
    for folder in folders:
        if target.is_relative_to(os.path.realpath(folder)):
            return
    reason = f"leads out of the audio root (to {target})"
    raise AudioError(name or path, reason, f"move it into {folders[0]}")


class Source:
    """An audio file open for reading.

    Raises `AudioError` if there is no readable audio, or more of it than `MAX_CHANNELS`,
    `MAX_SAMPLE_RATE_HZ` and `MAX_SAMPLES` allow. any_length: for who never holds all `blocks`.
    """

    def __init__(self, path: str | Path, *, any_length: bool = False) -> None:
        self._path, self._file = path, _open(path)
        self.info = AudioInfo(self._file.frames, self._file.samplerate, self._file.channels)
        excess = _excess(self.info, any_length=any_length)
        if excess is not None:
            self._file.close()
            raise AudioError(path, *excess)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def decode(self) -> np.ndarray:
        """All samples at the file's rate, (N, channels). Types and errors are those of `blocks`."""
        return _joined(self.blocks(), (self.info.num_samples, self.info.num_channels), self._dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples at the file's rate, piece by piece, (n, channels), finite.

        int16 from 16 bit PCM, which is a third faster, else float32. Raises `AudioError` for a file
        with NaN or infinite samples, or with fewer than its header promises. The last is found out
        for WAV, FLAC and MP3; an OGG page stream that stops early is a valid shorter file.
        """
        num_decoded, num_promised = 0, self.info.num_samples
        while True:
            # No more than the header promises, which is what was found acceptable.
            num_wanted = min(_BLOCK_SAMPLES // self.info.num_channels, num_promised - num_decoded)
            try:
                block = self._file.read(num_wanted, dtype=self._dtype, always_2d=True)
            except sf.SoundFileError:
                remedy = "it is cut off or damaged, fetch it again"
                raise AudioError(self._path, "does not decode to its end", remedy) from None
            if not len(block):
                break
            if self._dtype == "float32" and not np.isfinite(block).all():
                reason = "holds NaN or infinite samples"
                raise AudioError(self._path, reason, "export the file again")
            num_decoded += len(block)
            yield block
        shortfall = _shortfall(self._file, self._path, num_decoded)
        if shortfall:
            raise AudioError(self._path, f"is truncated ({shortfall})", "fetch it again")

    @property
    def _dtype(self) -> str:
        return "int16" if self._file.subtype == "PCM_16" else "float32"


def probe(path: str | Path) -> AudioInfo:
    """The header of `path`, without decoding. Raises `AudioError` for what `Source` refuses."""
    with Source(path) as source:
        return source.info


def load(path: str | Path, *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """The whole file as float32 (N,): channels averaged, then resampled (soxr HQ) to
    `sample_rate_hz`.

    Decoded in blocks, so that no more than the result is ever held. Raises `AudioError` for what
    `Source` and its `blocks` refuse, and for a file without samples.
    """
    with Source(path) as source:
        native_rate_hz = source.info.sample_rate_hz
        blocks: Iterator[np.ndarray] = (mono(to_float(block)) for block in source.blocks())
        if native_rate_hz != sample_rate_hz:
            blocks = _resampled(blocks, native_rate_hz, sample_rate_hz)
        samples = _joined(blocks, (source.info.num_samples_at(sample_rate_hz),), "float32")
    if samples.size == 0:
        raise AudioError(path, "holds no samples", "export the file again or leave it out")
    return samples


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16 or float32 -> float32 of the same shape, full scale being 1."""
    if samples.dtype == np.float32:
        return samples
    return samples * np.float32(1 / _PCM16_SCALE)


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """The inverse of `to_float` for int16: floats, clipped to [-1, 1], rounded to 16 bit."""
    scaled = samples * np.float32(_PCM16_SCALE)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -_PCM16_SCALE, _PCM16_SCALE - 1, out=scaled).astype(np.int16)


def flac_of(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """A FLAC file of `samples` (N,) in 16 bit: half of WAV, and every sample the same."""
    buffer = io.BytesIO()  # libsndfile writes to a file in many small pieces
    sf.write(buffer, to_pcm16(samples), sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def mono(samples: np.ndarray) -> np.ndarray:
    """Floats (N,) or (N, channels) -> (N,), channels averaged."""
    if samples.ndim == 2 and samples.shape[1] != 1:
        return samples.mean(axis=1)
    return samples.reshape(-1)


def save_wav(path: str | Path, samples: np.ndarray, sample_rate_hz: int) -> None:
    """Write `samples` (N,), clipped to [-1, 1], as 16 bit PCM; the parent folder is made, the file
    appears whole."""
    assert samples.ndim == 1, samples.shape
    assert np.isfinite(samples).all(), "NaN or infinite samples"
    with disk.replace_when_done(path) as temporary:
        sf.write(temporary, to_pcm16(samples), sample_rate_hz, format="WAV", subtype="PCM_16")


def _require_plain(path: str, root: Path) -> None:
    """Refuse, without looking at the disk, a `path` that is not written as one below `root`."""
    remedy = f"write it relative to {root}"
    if Path(path).is_absolute():
        raise AudioError(path, "is absolute, which the audio root forbids", remedy)
    if ".." in Path(path).parts:
        raise AudioError(path, 'holds "..", which the audio root forbids', remedy)
    if path.startswith("~"):
        raise AudioError(path, 'starts with "~", which the audio root forbids', remedy)


def _can_be_a_name(path: str) -> bool:
    try:
        return bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half a character, as JSON can spell it
        return False


def _may_exist(path: Path) -> bool:
    """Whether something is there, or hidden by what `_require_regular` will name: no permission, a
    loop of links."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _require_regular(path: str | Path) -> None:
    """Refuse, without opening it, what is no file with content: opening a pipe waits for its writer
    forever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise AudioError(path, "not found", "mend the path") from None
    except PermissionError:
        raise AudioError(path, *_NO_PERMISSION) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = f"cannot be opened ({getattr(error, 'strerror', error)})"
        raise AudioError(path, reason, "mend the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(path, "is a folder", "name an audio file")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(path, "is not a regular file", "name an audio file")
    if status.st_size == 0:
        raise AudioError(path, "is empty (0 bytes)", "export the file again or leave it out")
    if not os.access(path, os.R_OK):
        raise AudioError(path, *_NO_PERMISSION)


def _open(path: str | Path) -> sf.SoundFile:
    """Open `path` for reading once it is known to be harmless."""
    _require_regular(path)
    try:
        file = sf.SoundFile(path)
    # TypeError: soundfile takes a name ending in .raw for headerless samples.
    except (sf.SoundFileError, TypeError):
        raise _unreadable(Path(path)) from None
    if file.frames >= _UNKNOWN_SAMPLES:
        file.close()
        remedy = "encode it again to a file, not to a pipe"
        raise AudioError(path, "states no length in its header", remedy)
    return file


def _unreadable(path: Path) -> AudioError:
    """What to say of a file that libsndfile does not open."""
    with path.open("rb") as file:
        is_convertible = _CONVERTIBLE.match(file.read(16)) is not None
    if not is_convertible and path.suffix.lower() not in CONVERTIBLE_SUFFIXES:
        return AudioError(path, "is not readable audio", "use WAV, FLAC, MP3, OGG or AIFF")
    target = path.with_suffix(".wav" if path.suffix.lower() == ".flac" else ".flac").name
    # In the reason, since the lists of the rejected hold no remedy.
    command = shlex.join(["ffmpeg", "-i", path.name, target])
    reason = f"is in a format that is not read ({command} converts it)"
    return AudioError(path, reason, "convert it and name the new file")


def _excess(info: AudioInfo, *, any_length: bool) -> tuple[str, str] | None:
    """Reason and remedy if there is more than may be decoded."""
    if info.num_channels > MAX_CHANNELS:
        detail = f"{info.num_channels}, more than {MAX_CHANNELS}"
        return f"has too many channels ({detail})", "mix it down to mono"
    if info.sample_rate_hz > MAX_SAMPLE_RATE_HZ:
        detail = f"{info.sample_rate_hz} Hz, more than {MAX_SAMPLE_RATE_HZ}"
        return f"has too high a sample rate ({detail})", "resample it to 24 kHz"
    num_samples = max(info.num_samples * info.num_channels, info.num_samples_at(SAMPLE_RATE_HZ))
    if num_samples > MAX_SAMPLES and not any_length:
        detail = f"{info.duration_s:.0f} s at {info.sample_rate_hz} Hz"
        reason = f"is too long to be decoded ({detail}, channels: {info.num_channels})"
        return reason, "cut it into clips"
    return None


def _joined(blocks: Iterable[np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """`blocks` in one array of `shape`, cut where they end. `np.concatenate` would hold each
    twice."""
    joined = np.empty(shape, dtype)  # takes memory where it is written, whatever a header promised
    length = 0
    for block in blocks:
        joined[length : length + len(block)] = block
        length += len(block)
    return joined[:length]


def _resampled(blocks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """What `soxr.resample` makes of all `blocks` (n,) together, to the bit."""
    stream = soxr.ResampleStream(from_hz, to_hz, num_channels=1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _shortfall(file: sf.SoundFile, path: str | Path, num_decoded: int) -> str:
    """How much of the header's promise was found, e.g. ``"480 of 960 samples"``; empty if the file
    is whole."""
    # libsndfile silently shortens a cut WAV to what is there; only its log keeps the size that the
    # header states.
    data = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if data and int(data[1]) < _STREAMED_BYTES:
        return f"{data[2]} of {data[1]} bytes"
    if num_decoded == file.frames or (file.format == "MP3" and not _mp3_states_length(path)):
        return ""
    return f"{num_decoded} of {file.frames} samples"


def _mp3_states_length(path: str | Path) -> bool:
    """Whether an MP3 opens with a Xing, Info or VBRI frame. Without one its length is a guess from
    the bit rate."""
    with open(path, "rb") as file:
        head = file.read(10)
        # ID3v2: ten bytes of header, whose last four are the size of the tag, 7 bits each.
        tag_bytes = 10
        for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True):
            tag_bytes += byte << shift
        file.seek(tag_bytes if head.startswith(b"ID3") else 0)
        frame = file.read(64)  # the mark stands at byte 13 to 36
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
