"""The sound of files of any format in a stream."""

from __future__ import annotations

import builtins
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from plugins.audio import waveforms as audio
from plugins.audio.tracks import Resampler, Track

av = pytest.importorskip("av")
RATE_HZ = 44_100
# Name -> codec.
ENCODED = {
    "a.m4a": "aac",
    "a.mp4": "aac",
    "a.mov": "aac",
    "a.aac": "aac",
    "a.mkv": "aac",
    "a.mka": "flac",
    "a.webm": "libopus",
    "a.wma": "wmav2",
    "a.opus": "libopus",
    "a.ac3": "ac3",
    "a.wv": "wavpack",
    "a.mp3": "mp3",
}


def tone(seconds: float = 3.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(
        np.float32
    )


def encode(
    path: Path, codec: str, samples: np.ndarray, *, film: bool = False, rate_hz: int = 48_000
) -> None:
    """`samples` (N,) in both channels, at `rate_hz`."""
    with av.open(str(path), "w", format="adts" if path.suffix == ".aac" else None) as container:
        if film:
            picture = av.VideoFrame(32, 32, "yuv420p")
            picture.pts = 0
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        stream = container.add_stream(codec, rate=rate_hz, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(np.stack([samples, samples])), format="fltp", layout="stereo"
        )
        frame.sample_rate, frame.pts = rate_hz, 0
        resampler = av.AudioResampler(stream.format, "stereo", rate_hz, stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(piece):
                container.mux(packet)
        for packet in [*stream.encode(None), *(video.encode(picture) if film else ())]:
            container.mux(packet)


def read(path: Path) -> tuple[np.ndarray, int]:
    with Track(path) as track:
        return np.concatenate(list(track.blocks())), track.sample_rate_hz


@pytest.mark.parametrize(("name", "codec"), ENCODED.items())
def test_a_tone_comes_through_each_format(name: str, codec: str, tmp_path: Path) -> None:
    try:
        encode(tmp_path / name, codec, tone(rate_hz=48_000), film=name in ("a.mkv", "a.mov"))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV writes no {codec}: {error}")
    samples, rate_hz = read(tmp_path / name)
    assert len(samples) / rate_hz == pytest.approx(3.0, abs=0.15)
    middle = samples[rate_hz : 2 * rate_hz]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)
    peak_hz = np.argmax(np.abs(np.fft.rfft(middle))) / len(middle) * rate_hz
    assert peak_hz == pytest.approx(440, abs=2)


def test_what_libsndfile_reads_is_the_same_to_the_bit(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", np.stack([tone(), 0.5 * tone()], axis=1), RATE_HZ)
    samples, rate_hz = read(tmp_path / "a.flac")
    np.testing.assert_array_equal(samples, audio.load(tmp_path / "a.flac", sample_rate_hz=rate_hz))


def test_a_recording_may_be_longer_than_what_is_loaded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sf.write(tmp_path / "a.wav", tone(), RATE_HZ)
    monkeypatch.setattr(audio, "MAX_SAMPLES", 1000)
    with pytest.raises(audio.AudioError, match="too long"):
        audio.load(tmp_path / "a.wav")
    assert len(read(tmp_path / "a.wav")[0]) == 3 * RATE_HZ


def test_a_playlist_under_another_name_opens_nothing(tmp_path: Path) -> None:
    """ffmpeg goes by the content: it would read the file, or fetch the address, that is named."""
    sf.write(tmp_path / "secret.wav", tone(), RATE_HZ)
    for number, content in enumerate(
        (
            "ffconcat version 1.0\nfile secret.wav\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.wav\n#EXT-X-ENDLIST\n",
        )
    ):
        path = tmp_path / f"{number}.mp4"
        path.write_text(content)
        with pytest.raises(audio.AudioError, match="is not readable audio"):
            Track(path)


@pytest.mark.parametrize("name", ["a:b.m4a", "http:a.m4a", "file:a.m4a", "#1 50%?.m4a", "é ü.m4a"])
def test_a_name_is_no_address(name: str, tmp_path: Path) -> None:
    encode(tmp_path / name, "aac", tone(1, 48_000))
    assert len(read(tmp_path / name)[0]) > 40_000


def test_unfit_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no sound " * 100)
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in (av.VideoFrame(32, 32, "yuv420p"), None):
            for packet in stream.encode(frame):
                container.mux(packet)
    for name, reason in (("text.mp4", "is not readable"), ("mute.mp4", "has no sound track")):
        with pytest.raises(audio.AudioError, match=reason):
            Track(tmp_path / name)


@pytest.mark.parametrize("name", ["a.m4a", "a.aac"])
def test_any_damage_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    """A stream whose header was hit once stated a rate of 0, and was divided by."""
    encode(tmp_path / name, "aac", tone(1, 48_000))
    good, chance = (tmp_path / name).read_bytes(), random.Random(1)
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(chance.choice([1, 3, 20, 200])):
            damaged[chance.randrange(len(good))] = chance.randrange(256)
        damaged[chance.randrange(60)] = chance.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        with suppress(audio.AudioError):
            read(tmp_path / name)


def test_without_pyav_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "a.m4a", "aac", tone(1, 48_000))
    original = builtins.__import__

    def without_av(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(audio.AudioError, match=r"PyAV.*pip install -e .*evaluate") as caught:
        Track(tmp_path / "a.m4a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 777, 100_000])
def test_pieces_are_resampled_as_the_whole(size: int) -> None:
    samples = tone(0.05 if size == 1 else 1.0)
    resampler = Resampler(RATE_HZ, 16_000)
    starts = range(0, len(samples), size)
    pieces = [resampler(samples[start : start + size]) for start in starts]
    pieces.append(resampler(samples[:0], last=True))
    whole = Resampler(RATE_HZ, 16_000)(samples, last=True)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("second_hz", [44_100, 22_050])
def test_a_stream_that_changes_its_rate_keeps_its_pitch(tmp_path: Path, second_hz: int) -> None:
    """Two files that were joined: the second was read at the first one's rate, too fast or slow."""
    joined = b""
    for rate_hz in (48_000, second_hz):
        encode(tmp_path / "part.aac", "aac", tone(rate_hz=rate_hz), rate_hz=rate_hz)
        joined += (tmp_path / "part.aac").read_bytes()
    (tmp_path / "joined.aac").write_bytes(joined)
    samples, rate_hz = read(tmp_path / "joined.aac")
    assert len(samples) / rate_hz == pytest.approx(6.0, abs=0.3)
    second = samples[4 * rate_hz : 5 * rate_hz]
    assert np.argmax(np.abs(np.fft.rfft(second))) == pytest.approx(440, abs=2)  # one bin per Hz
