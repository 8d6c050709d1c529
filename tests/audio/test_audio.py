"""Audio files: what is decoded is right to the sample, and what must not be decoded is refused in
one line."""

import json
import os
import pickle
import threading
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile as sf
import soxr
from helpers.trees import in_memory_mb, silence

from plugins.audio import waveforms as audio
from plugins.audio.waveforms import (
    AudioError,
    AudioInfo,
    Source,
    load,
    mono,
    probe,
    save_wav,
    to_float,
    to_pcm16,
)
from plugins.corpora import Utterance
from plugins.data.clips import check_clips
from plugins.data.sources import read_rows
from plugins.errors import UserError, problem
from plugins.prepare.clips import Work
from plugins.prepare.quality import Limits
from plugins.settings import HiggsAudioSettings
from plugins.speaking.voices import Voice, request


def sine(
    duration_s: float = 1.0, sample_rate_hz: int = 24_000, frequency_hz: float = 440.0
) -> np.ndarray:
    """A sine of amplitude 0.5, (N,) float32."""
    time_s = np.arange(round(duration_s * sample_rate_hz)) / sample_rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def cut(path: Path, share: float = 0.5) -> Path:
    """Keep only the first `share` of the bytes of `path`, like a broken download."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


# --- probe ---


def test_probe_reports_the_header(tmp_path):
    """Samples are counted per channel: counting both channels would double every duration."""
    sf.write(tmp_path / "a.wav", np.zeros((33_075, 2)), 22_050)
    info = probe(tmp_path / "a.wav")
    assert info == AudioInfo(num_samples=33_075, sample_rate_hz=22_050, num_channels=2)
    assert info.duration_s == 1.5


def _faulty(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"a.{'raw' if kind == 'raw' else 'wav'}"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"hello " * 100, "raw": b"123" * 100}[kind])
    return path


@pytest.mark.parametrize("read", [probe, load])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "not found"),
        ("folder", "is a folder"),
        ("pipe", "is not a regular file"),
        ("empty", "is empty (0 bytes)"),
        ("text", "is not readable audio"),
        ("raw", "is not readable audio"),  # soundfile raises TypeError for this ending
    ],
)
def test_what_is_no_audio_is_refused_in_one_line(tmp_path, read, kind, reason):
    """A pipe without a writer must be refused before it is opened, or the call never comes back."""
    path = _faulty(tmp_path, kind)
    raised: list[BaseException] = []

    def attempt() -> None:
        try:
            read(path)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert raised, "hangs or accepts the file"
    error = raised[0]
    assert isinstance(error, AudioError)
    assert isinstance(error, UserError)
    assert error.reason == reason
    assert str(error).startswith(f"{path}: {reason}; ")
    assert "\n" not in str(error)


def test_a_device_is_refused(tmp_path):
    """/dev/zero is endless."""
    with pytest.raises(AudioError, match="not a regular file"):
        probe("/dev/zero")


def test_a_name_that_no_file_can_have_is_refused():
    """A NUL makes os.stat raise ValueError instead of OSError."""
    with pytest.raises(AudioError, match="cannot be opened"):
        probe("a\0.wav")


def test_error_survives_the_way_out_of_a_worker_process():
    """An exception whose `args` do not fit its constructor breaks the pool that should report
    it."""
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "is a folder", "name a file")))
    assert (error.path, error.reason, error.remedy) == ("a.wav", "is a folder", "name a file")


def test_error_fits_into_the_callers_line():
    """The caller knows the row; the error gives the rest of the line."""
    error = AudioError("a.wav", "not found (looked in clips/)", "mend the path")
    line = str(
        problem(
            source="train.jsonl:17",
            field="audios[0]",
            value="a.wav",
            reason=error.reason,
            remedy=error.remedy,
        )
    )
    assert line == "train.jsonl:17: audios[0]: 'a.wav' not found (looked in clips/); mend the path"


# --- load ---


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_load_returns_the_samples_as_they_are_at_the_native_rate(tmp_path, suffix):
    """No gain, no offset: 16 bit values come back exactly."""
    samples = np.array([0.0, 0.5, -0.5, 0.25], dtype=np.float32)
    sf.write(tmp_path / f"a.{suffix}", samples, 24_000, subtype="PCM_16")
    loaded = load(tmp_path / f"a.{suffix}")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, samples)


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_lossy_formats_decode_to_the_same_tone(tmp_path, suffix):
    """MP3 is in the seed document's list; the delay of its encoder must not change the length."""
    samples = sine(1.0, 24_000)
    sf.write(tmp_path / f"a.{suffix}", samples, 24_000)
    loaded = load(tmp_path / f"a.{suffix}")
    assert loaded.shape == samples.shape
    assert np.abs(loaded[2400:-2400] - samples[2400:-2400]).max() < 0.05


def test_channels_are_averaged(tmp_path):
    """Taking the left channel only would lose half of some recordings; adding them would clip."""
    left = np.array([0.5, 0.5, 0.0, -0.5], dtype=np.float32)
    right = np.array([0.25, -0.5, 0.5, -0.5], dtype=np.float32)
    sf.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
    np.testing.assert_array_equal(load(tmp_path / "a.wav"), [0.375, 0.0, 0.25, -0.5])


@pytest.mark.parametrize("block_samples", [1 << 21, 200_001, 65_536, 66_667])
def test_a_file_longer_than_one_block_keeps_its_order(tmp_path, monkeypatch, block_samples):
    """Decoding goes piecewise; no seam may lose or repeat a sample, also where the last block is a
    full one."""
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", block_samples)
    samples = (np.arange(200_001) % 30_000 / 32_768).astype(np.float32)
    sf.write(tmp_path / "a.wav", samples, 24_000, subtype="PCM_16")
    np.testing.assert_array_equal(load(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize("native_rate_hz", [16_000, 22_050, 44_100, 48_000])
def test_resampling_agrees_with_librosa_and_with_the_tone(tmp_path, native_rate_hz):
    """A wrong ratio changes the pitch, and the model learns it."""
    samples = sine(1.0, native_rate_hz)
    sf.write(tmp_path / "a.wav", samples, native_rate_hz, subtype="FLOAT")
    loaded = load(tmp_path / "a.wav", sample_rate_hz=24_000)
    expected = librosa.resample(
        samples, orig_sr=native_rate_hz, target_sr=24_000, res_type="soxr_hq", fix=False
    )
    assert loaded.shape == expected.shape == (24_000,)
    np.testing.assert_allclose(loaded, expected, atol=1e-6)
    np.testing.assert_allclose(loaded[1000:-1000], sine(1.0, 24_000)[1000:-1000], atol=1e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_16", np.int16), ("PCM_24", np.float32)])
def test_samples_are_decoded_as_they_are_stored(tmp_path, suffix, subtype, dtype):
    """16 bit as integers, which is faster; as floats they are those of libsndfile, to the bit and
    per channel."""
    path = tmp_path / f"a.{suffix}"
    sf.write(path, np.random.default_rng(0).uniform(-1, 1, (5_000, 2)), 24_000, subtype=subtype)
    with Source(path) as source:
        samples = source.decode()
    assert samples.dtype == dtype
    np.testing.assert_array_equal(to_float(samples), sf.read(path, dtype="float32")[0])
    np.testing.assert_array_equal(mono(to_float(samples)), load(path))


def test_16_bit_is_the_same_after_a_way_through_floats(tmp_path):
    """All 65,536 values: libsndfile's own conversion takes another scale for writing than for
    reading."""
    samples = np.arange(-(2**15), 2**15).astype(np.int16)
    np.testing.assert_array_equal(to_pcm16(to_float(samples)), samples)
    save_wav(tmp_path / "a.wav", to_float(samples), 24_000)
    np.testing.assert_array_equal(sf.read(tmp_path / "a.wav", dtype="int16")[0], samples)
    np.testing.assert_array_equal(to_pcm16(np.float32([1.0, 1.5, -1.5])), [32767, 32767, -32768])


def test_what_the_new_rate_cannot_hold_is_filtered_out(tmp_path):
    """A 15 kHz tone sampled down to 24 kHz without a filter would come back as a 9 kHz one."""
    sf.write(tmp_path / "a.wav", sine(1.0, 48_000, frequency_hz=15_000), 48_000, subtype="FLOAT")
    assert np.abs(load(tmp_path / "a.wav")[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_samples_are_refused(tmp_path, value):
    """One NaN in a clip turns the whole loss into NaN."""
    samples = sine(0.1)
    samples[100] = value
    sf.write(tmp_path / "a.wav", samples, 24_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: holds NaN or infinite samples; "):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("num_samples", "sample_rate_hz"), [(0, 24_000), (0, 48_000), (1, 192_000)]
)
def test_a_file_without_samples_is_refused(tmp_path, num_samples, sample_rate_hz):
    """Also one that is empty only after resampling."""
    sf.write(tmp_path / "a.wav", np.zeros(num_samples), sample_rate_hz)
    with pytest.raises(AudioError, match="holds no samples"):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [("wav", "is truncated"), ("flac", "does not decode to its end"), ("mp3", "is truncated")],
)
def test_a_file_cut_in_half_is_refused(tmp_path, suffix, reason):
    """libsndfile shortens a cut WAV without a word: the clip would end in the middle of its
    transcript."""
    sf.write(tmp_path / f"a.{suffix}", sine(2.0), 24_000)
    with pytest.raises(AudioError) as caught:
        load(cut(tmp_path / f"a.{suffix}"))
    assert caught.value.reason.startswith(reason)
    assert "\n" not in str(caught.value)


def test_truncation_tells_how_much_is_there(tmp_path):
    """44 bytes of header, then 2 bytes per sample."""
    sf.write(tmp_path / "a.wav", np.zeros(1000), 24_000, subtype="PCM_16")
    path = tmp_path / "a.wav"
    path.write_bytes(path.read_bytes()[: 44 + 500])
    with pytest.raises(AudioError, match=r"is truncated \(500 of 2000 bytes\)"):
        load(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_is_no_truncated_one(tmp_path, size):
    """ffmpeg and sox cannot know the size beforehand and write these values instead."""
    path = tmp_path / "a.wav"
    sf.write(path, sine(0.1), 24_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(load(path)) == 2400


def test_an_odd_number_of_bytes_is_no_truncation(tmp_path):
    """8 bit mono may end on an odd byte, with or without the padding that RIFF asks for."""
    path = tmp_path / "a.wav"
    sf.write(path, sine(0.1)[:2399], 24_000, subtype="PCM_U8")
    assert len(load(path)) == 2399
    path.write_bytes(path.read_bytes()[: 44 + 2399])
    assert len(load(path)) == 2399


def test_an_mp3_without_a_length_is_read_as_far_as_it_goes(tmp_path):
    """Variable bit rate without the Xing frame: libsndfile's length is a guess, often several times
    the truth."""
    path = tmp_path / "a.mp3"
    # Silence takes few bits, noise many: judged by its silent start the file seems far longer than
    # it is.
    samples = np.random.default_rng(0).normal(0, 0.2, 192_000).astype(np.float32)
    samples[:48_000] = 0.0
    sf.write(path, samples, 48_000, bitrate_mode="VARIABLE", compression_level=0.5)
    content = path.read_bytes()
    second_frame = content.index(content[:2], 4)
    path.write_bytes(content[second_frame:])
    assert probe(path).num_samples > 1.2 * len(samples)
    assert len(load(path, sample_rate_hz=48_000)) == pytest.approx(len(samples), abs=3000)


def test_an_mp3_with_a_tag_in_front_keeps_its_truncation_check(tmp_path):
    """Cover art stands before the first frame and may be large; the length is looked for behind
    it."""
    path = tmp_path / "a.mp3"
    sf.write(path, sine(2.0), 24_000)
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    content = tag + path.read_bytes()
    path.write_bytes(content)
    assert len(load(path)) == 48_000
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="is truncated"):
        load(path)


def test_a_flac_without_a_length_is_refused_by_its_header(tmp_path):
    """libsndfile reports 2**63 - 1 samples: a duration of 12 million years."""
    path = tmp_path / "a.flac"
    sf.write(path, sine(1.0), 24_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: 36 bits of sample count
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="states no length in its header"):
        probe(path)


# --- what a small file may decode to ---


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> dict[str, Path]:
    """Name -> a small recording that promises too much. Decoded as it is stored, the first takes
    210 MB."""
    folder = tmp_path_factory.mktemp("bombs")
    names = ("rate.flac", "channels.ogg", "length.flac", "slow.wav")
    bombs = {Path(name).stem: folder / name for name in names}
    silence(bombs["rate"], 20, sample_rate_hz=655_350, num_channels=8)
    sf.write(bombs["channels"], np.zeros((4_800, 255), np.float32), 48_000)
    silence(bombs["length"], 1, sample_rate_hz=48_000, num_channels=2)
    content = bytearray(bombs["length"].read_bytes())
    content[22:26] = (626 * 48_000).to_bytes(4, "big")  # STREAMINFO: the count of samples
    bombs["length"].write_bytes(content)
    sf.write(bombs["slow"], np.zeros(10_000, np.int16), 1)  # each sample becomes 24,000
    return bombs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rate", "has too high a sample rate (655350 Hz, more than 192000)"),
        ("channels", "has too many channels (255, more than 8)"),
        ("length", "is too long to be decoded (626 s at 48000 Hz, channels: 2)"),
        ("slow", "is too long to be decoded (10000 s at 1 Hz, channels: 1)"),
    ],
)
def test_what_would_fill_the_memory_is_refused_by_its_header(bombs, tmp_path, name, reason):
    """12 s of silence in 255 channels at 192 kHz were 105 kB of a request, 5.8 GB of memory and 35
    s.

    Through all that decodes: a voice, a row of a dataset (which `swift sft` checks so), a corpus.
    What a browser or a client of `swift deploy` sends becomes a voice or a row
    (tests/commands/test_app.py, tests/ms_swift/test_swift_deploy.py)."""
    bomb, settings = bombs[name], HiggsAudioSettings()
    if name == "rate":
        with pytest.raises(AssertionError, match="MB"), in_memory_mb(100):
            sf.read(bomb, dtype="int16")  # the proof of concept
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": ""}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": turns, "audios": [str(bomb)]}))
    uses = (
        lambda: load(bomb),
        lambda: probe(bomb),
        lambda: request("Hi.", None, [Voice(bomb)], settings),
        lambda: read_rows(str(rows), settings, check=lambda row: check_clips(row, settings)),
    )
    with in_memory_mb(100):
        for use in uses:
            with pytest.raises(UserError) as caught:
                use()
            assert reason in str(caught.value)
            assert "\n" not in str(caught.value)
        work = Work("full", Limits(max_silence_share=1), audio_dir=tmp_path / "processed")
        assert work(Utterance("a", "a", "Hi.", bomb, None)).fault == (reason, str(bomb))


def test_the_largest_that_is_taken_fits_into_little_memory(tmp_path):
    """In blocks, made mono and resampled one by one: at once it would be 180 MB of floats, and
    those three times."""
    path = silence(tmp_path / "a.flac", 30, sample_rate_hz=192_000, num_channels=8)
    with in_memory_mb(100):
        assert load(path).shape == (720_000,)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("native_rate_hz", [8_000, 44_100])
def test_blocks_make_no_difference(tmp_path, monkeypatch, native_rate_hz, channels):
    """To the bit what soxr makes of the whole: caches hold codes of it."""
    samples = np.random.default_rng(0).uniform(-1, 1, (3 * native_rate_hz + 17, channels))
    sf.write(tmp_path / "a.wav", samples, native_rate_hz, subtype="PCM_16")
    whole = to_float(sf.read(tmp_path / "a.wav", dtype="int16", always_2d=True)[0]).mean(axis=1)
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 1_001)
    expected = soxr.resample(whole, native_rate_hz, 24_000, quality="HQ")
    np.testing.assert_array_equal(load(tmp_path / "a.wav"), expected)
