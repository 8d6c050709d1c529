"""Unfit recordings and transcripts are told with one constant reason each, before they cost memory
or time."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import soundfile as sf
from conftest import CORPUS

from plugins.audio.waveforms import AudioInfo, load, probe, to_pcm16
from plugins.errors import UserError
from plugins.files.disk import file_hash
from plugins.prepare.quality import (
    FRAME_S,
    Limits,
    check_file_size,
    check_header,
    check_samples,
    check_text,
    samples_hash,
    speech_frames,
)

RATE = 24_000
SPEECH = sorted((CORPUS / "wavs").glob("*.flac"))


def tone(duration_s: float, amplitude: float = 0.5, rate: int = RATE) -> np.ndarray:
    """240 Hz: six whole periods in each frame, so that all frames have the same level."""
    time_s = np.arange(round(duration_s * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * 240 * time_s)).astype(np.float32)


def silence(duration_s: float) -> np.ndarray:
    return np.zeros(round(duration_s * RATE), dtype=np.float32)


def loosened(**limits: float) -> Limits:
    """Every limit on samples off but those given."""
    return Limits(
        **{"max_silence_share": 1.0, "max_clipped_share": 1.0, "max_dc_offset": 1.0, **limits}
    )


# --- Limits ---


def test_every_limit_can_become_a_flag():
    """The command line is generated from the fields: what is missing there is missing for the
    user."""
    for field in dataclasses.fields(Limits):
        assert field.metadata["help"]
        assert field.metadata["parse"](str(field.default)) == field.default
    assert pickle.loads(pickle.dumps(Limits(max_channels=1))) == Limits(max_channels=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_silence_share": 1.5}, "--max_silence_share: 1.5 is outside 0 to 1; "),
        (
            {"max_duration_s": -1.0},
            "--max_duration_s: -1.0 is outside 0 to 1e+09 s; give longest clip",
        ),
        ({"max_duration_s": float("nan")}, "--max_duration_s: nan is outside"),
        ({"max_duration_s": float("inf")}, "--max_duration_s: inf is outside"),
        ({"min_duration_s": 31.0}, "--min_duration_s: 31.0 is above --max_duration_s (30); "),
        ({"max_chars_per_s": 0.5}, "--min_chars_per_s: 1.0 is above --max_chars_per_s (0.5); "),
    ],
)
def test_limits_that_cannot_be_meant_are_told(wrong, message):
    """With `nan` no comparison is ever true, and every clip would pass."""
    with pytest.raises(UserError) as caught:
        Limits(**wrong)
    assert message in str(caught.value)


# --- before decoding ---


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        (AudioInfo(24_000, 24_000, 1), None),
        (AudioInfo(30 * 16_000, 16_000, 2), None),
        (AudioInfo(5 * 192_000, 192_000, 1), None),
        (AudioInfo(23_999, 24_000, 1), ("duration below min_duration_s", 0.999958)),
        (AudioInfo(12_000, 24_000, 1), ("duration below min_duration_s", 0.5)),
        (AudioInfo(30 * 24_000 + 1, 24_000, 1), ("duration above max_duration_s", 30.000042)),
        (AudioInfo(0, 24_000, 1), ("duration below min_duration_s", 0.0)),
        (AudioInfo(30_000, 15_999, 1), ("sample rate below min_sample_rate_hz", 15_999)),
        (AudioInfo(2 * 10**9, 2 * 10**9, 1), ("sample rate above max_sample_rate_hz", 2 * 10**9)),
        (AudioInfo(48_000, 24_000, 3), ("channels above max_channels", 3)),
    ],
)
def test_header(info, fault):
    """Bounds are inclusive. The rate goes first: a lying one makes the duration a lie too."""
    assert check_header(info, Limits()) == fault


def test_file_size():
    assert check_file_size(100_000_000, Limits()) is None
    assert check_file_size(100_000_001, Limits()) == ("file above max_file_bytes", 100_000_001)


def test_an_mp3_is_judged_again_once_decoded(tmp_path):
    """Variable bit rate without its first frame: the header's length is a guess from the quiet
    start."""
    path = tmp_path / "a.mp3"
    samples = np.random.default_rng(0).normal(0, 0.2, 28 * 16_000).astype(np.float32)
    samples[: 7 * 16_000] = 0
    sf.write(path, samples, 16_000, bitrate_mode="VARIABLE", compression_level=0.5)
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 4) :])
    fault = check_header(probe(path), Limits())
    assert fault[0] == "duration above max_duration_s"  # refused though it is 28 s
    decoded = load(path, sample_rate_hz=16_000)
    assert check_header(AudioInfo(len(decoded), 16_000, 1), Limits()) is None


# --- samples ---


def test_speech_is_accepted():
    """Limits that reject clean speech are worse than none."""
    for path in SPEECH:
        info = probe(path)
        samples = load(path, sample_rate_hz=info.sample_rate_hz)
        assert check_samples(samples, info.sample_rate_hz, Limits()) is None


def test_silence_share_is_that_of_the_frames():
    """One second of tone, one and a half of nothing."""
    clip = np.concatenate([silence(1.0), tone(1.0), silence(0.5)])
    assert check_samples(clip, RATE, Limits()) == ("silence share above max_silence_share", 0.6)
    assert check_samples(clip, RATE, Limits(max_silence_share=0.6)) is None


@pytest.mark.parametrize(("below_db", "silent"), [(39, False), (41, True)])
def test_a_frame_is_silent_relative_to_the_loudest(below_db, silent):
    """A quiet recording is quiet speech; in a loud one the same level is its background."""
    quiet = tone(1.0, amplitude=0.5 * 10 ** (-below_db / 20))
    speech = speech_frames(np.concatenate([tone(1.0), quiet]), RATE, 40.0)
    assert speech.tolist() == [True] * 40 + [not silent] * 40


@pytest.mark.parametrize(("level_dbfs", "silent"), [(-59, False), (-61, True)])
def test_below_the_noise_of_a_room_all_is_silent(level_dbfs, silent):
    """Relative to itself, digital near-silence is as lively as speech."""
    clip = tone(1.0, amplitude=np.sqrt(2) * 10 ** (level_dbfs / 20))
    assert speech_frames(clip, RATE, 40.0).tolist() == [not silent] * 40
    assert speech_frames(silence(1.0), RATE, 40.0).tolist() == [False] * 40


def test_one_word_in_much_silence():
    """A level taken from a percentile is that of the background here, and the share would be
    none."""
    background = tone(14.5, amplitude=0.002)  # 48 dB below the word, -57 dBFS
    clip = np.concatenate([background, tone(0.5), background])
    assert check_samples(clip, RATE, Limits()) == (
        "silence share above max_silence_share",
        round(29 / 29.5, 6),
    )


def test_an_offset_does_not_hide_silence():
    """0.3 of DC is a level of -10 dBFS in every frame."""
    clip = np.concatenate([silence(1.0), tone(1.0)]) + np.float32(0.3)
    assert speech_frames(clip, RATE, 40.0).tolist() == [False] * 40 + [True] * 40


@pytest.mark.parametrize("num_samples", [1, 599, 600, 601, 1201])
def test_frames_of_clips_of_any_length(num_samples):
    """A rest below one frame is no frame of its own: a few samples of it would count as much as 25
    ms."""
    assert round(FRAME_S * RATE) == 600
    assert len(speech_frames(np.ones(num_samples, dtype=np.float32), RATE, 40.0)) == max(
        1, num_samples // 600
    )


def slow_clipped_share(channel: np.ndarray) -> float:
    runs = [(value, len(list(group))) for value, group in itertools.groupby(channel.tolist())]
    return sum(length for value, length in runs if abs(value) >= 0.99 and length >= 3) / len(
        channel
    )


def test_clipped_share_equals_a_count_of_the_runs():
    """Against a slow loop, on clips full of runs at and below full scale, of both signs and all
    lengths."""
    random = np.random.default_rng(0)
    for num_samples in (1, 2, 3, 4, 50, 2000):
        values = random.choice([-1.0, 1.0, 0.995, 0.5, 0.0], size=num_samples).astype(np.float32)
        clip = np.repeat(values, random.integers(1, 6, size=num_samples))
        expected = slow_clipped_share(clip)
        fault = check_samples(clip, RATE, loosened(max_clipped_share=0))
        assert fault == (
            ("clipped share above max_clipped_share", round(expected, 6)) if expected else None
        )
    assert expected > 0.3


@pytest.mark.parametrize(
    ("gain_db", "accepted"), [(-0.1, True), (0.0, True), (3.0, False), (12.0, False)]
)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT"])
def test_speech_driven_over_full_scale(tmp_path, gain_db, accepted, subtype):
    """As recorded: the converter stops at its last number, which is another one in each format."""
    speech = load(SPEECH[0], sample_rate_hz=16_000)
    speech *= 10 ** (gain_db / 20) / np.abs(speech).max()
    sf.write(tmp_path / "a.wav", np.clip(speech, -1, 1), 16_000, subtype=subtype)
    fault = check_samples(load(tmp_path / "a.wav", sample_rate_hz=16_000), 16_000, Limits())
    assert (fault is None) == accepted
    assert accepted or fault[0] == "clipped share above max_clipped_share"


def test_one_bad_channel_of_two():
    """In the average of both, neither the flat tops nor the offset reach their limits."""
    clean, bad = tone(1.0), np.clip(tone(1.0, amplitude=4.0), -1, 1)
    assert check_samples((clean + bad) / 2, RATE, Limits()) is None
    fault = ("clipped share above max_clipped_share", round(slow_clipped_share(bad), 6))
    assert check_samples(np.stack([clean, bad], axis=1), RATE, Limits()) == fault
    opposite = np.stack([bad, -0.5 * bad], axis=1)  # out of phase
    assert check_samples(opposite, RATE, Limits()) == fault
    nothing = np.stack([clean, -clean], axis=1)  # is left of it when they are averaged
    silent = ("silence share above max_silence_share", 1.0)
    assert check_samples(nothing, RATE, Limits()) == silent
    shifted = clean + np.float32(0.015)
    assert check_samples((clean + shifted) / 2, RATE, Limits()) is None
    assert check_samples(np.stack([clean, shifted], axis=1), RATE, Limits()) == (
        "DC offset above max_dc_offset",
        0.015,
    )


@pytest.mark.parametrize(("offset", "accepted"), [(0.009, True), (0.011, False), (-0.011, False)])
def test_dc_offset(offset, accepted):
    """A converter that rests beside zero: each clip begins and ends with a click."""
    fault = check_samples(tone(1.0) + np.float32(offset), RATE, Limits())
    assert fault == (None if accepted else ("DC offset above max_dc_offset", 0.011))


def test_16_bit_integers_are_judged_as_their_floats():
    """As decoded they are integers; -32768 has no absolute value among them."""
    bad = [
        np.concatenate([silence(1.0), tone(0.5)]),
        np.clip(tone(1.0, amplitude=4.0), -1, 1),
        np.full(RATE, -1.0, dtype=np.float32) * (np.arange(RATE) % 600 < 400),
        tone(1.0) + np.float32(0.02),
        tone(1.0),
    ]
    for clip in bad:
        pcm = to_pcm16(clip)
        for shape in ((-1,), (-1, 1)):
            found = check_samples(pcm.reshape(shape), RATE, Limits())
            expected = check_samples(
                (pcm.astype(np.float32) / 32768).reshape(shape), RATE, Limits()
            )
            assert found == expected
        both = check_samples(
            np.stack([to_pcm16(tone(1.0, 0.3))[: len(pcm)], pcm[:RATE]], axis=1), RATE, Limits()
        )
        assert (both is None) == (
            check_samples(np.stack([tone(1.0, 0.3), clip[:RATE]], axis=1), RATE, Limits()) is None
        )
    assert found is None


def test_silence_is_found_beside_a_large_offset():
    """The level is a difference of two squares then: 0.9 of DC must not hide -70 dBFS, nor make a
    word of it."""
    quiet = tone(1.0, amplitude=10 ** (-70 / 20))
    clip = np.concatenate([quiet, tone(1.0, amplitude=0.01)]) + np.float32(0.9)
    assert speech_frames(clip, RATE, 40.0).tolist() == [False] * 40 + [True] * 40


# --- text ---


@pytest.mark.parametrize(
    ("text", "duration_s", "fault"),
    [
        ("", 3.0, ("text is empty", "")),
        (" \n", 3.0, ("text is empty", "")),
        ("... !", 3.0, ("text has no letter or digit", "... !")),
        ("The birch canoe slid on the smooth planks.", 2.2, None),
        ("今天天气很好我们去公园散步", 7.0, None),  # 1.9 characters per second, a slow reader
        ("7", 1.0, None),
        ("สวัสดี", 1.5, None),
        ("Yes.", 20.0, ("characters per second below min_chars_per_s", 0.2)),
        ("x" * 62, 2.0, ("characters per second above max_chars_per_s", 31.0)),
        ("x" * 60, 2.0, None),
        ("", None, ("text is empty", "")),
        ("x" * 1000, None, None),
    ],
)
def test_text(text, duration_s, fault):
    """A transcript that cannot be spoken in the time of its clip belongs to another one, or only
    half is there."""
    assert check_text(text, duration_s, Limits()) == fault


def test_accents_are_no_characters_of_their_own():
    """Decomposed Vietnamese has up to three code points per letter."""
    assert check_text("e\u0302\u0301" * 20, 1.0, Limits()) is None


def test_real_transcripts_are_accepted():
    lines = (CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines()
    for line in lines:
        clip, text, _ = line.split("|")
        assert (
            check_text(text, probe(CORPUS / "wavs" / f"{clip}.flac").duration_s, Limits()) is None
        )
    assert len(lines) == len(SPEECH)


# --- hashes ---


def test_one_recording_in_several_files(tmp_path):
    """Corpora ship the same take as WAV and FLAC, or tagged anew; the bytes differ, the samples do
    not."""
    samples = load(SPEECH[0], sample_rate_hz=16_000)
    for name in ("a.wav", "a.flac", "tagged.flac", "copy.wav"):
        with sf.SoundFile(tmp_path / name, "w", 16_000, 1, subtype="PCM_16") as file:
            if name.startswith("tagged"):
                file.title = "Another title"
            file.write(samples)
    paths = [tmp_path / name for name in ("a.wav", "a.flac", "tagged.flac", "copy.wav")]
    assert len({samples_hash(load(path, sample_rate_hz=16_000), 16_000) for path in paths}) == 1
    assert len({file_hash(path) for path in paths}) == 3
    assert file_hash(paths[0]) == file_hash(paths[3])


def test_other_recordings_have_other_hashes():
    """One 16 bit step, one sample, or another rate for the same samples (which then sound
    otherwise)."""
    samples = tone(1.0)
    changed = samples.copy()
    changed[100] += np.float32(1 / 32768)
    hashes = [
        samples_hash(samples, RATE),
        samples_hash(changed, RATE),
        samples_hash(samples[:-1], RATE),
        samples_hash(samples, 48_000),
    ]
    assert len(set(hashes)) == 4
    assert samples_hash(np.stack([samples, samples], axis=1), RATE) == hashes[0]
    assert (
        samples_hash(to_pcm16(samples), RATE)
        == samples_hash(to_pcm16(samples)[:, np.newaxis], RATE)
        == hashes[0]
    )
    for position in range(0, len(samples), 1_000):  # each part of a clip counts
        other = to_pcm16(samples)
        other[position] ^= 1
        hashes.append(samples_hash(other, RATE))
    assert len(set(hashes)) == len(hashes)
    assert samples_hash(np.float32([2.0, -2.0]), RATE) == samples_hash(
        np.float32([1.0, -1.0]), RATE
    )  # no wrap-around
