"""Decoded clips -> 24 kHz mono, trimmed, at one loudness, never clipped; augmented copies that
follow from the seed."""

import dataclasses
import importlib.util
import math
import pickle
import re

import numpy as np
import pytest
import soundfile as sf
from conftest import CORPUS
from helpers.commands import corpus, ids, prepare, read, reasons, report, sides, speech, table

from plugins.audio.waveforms import load, probe, save_wav
from plugins.errors import UserError
from plugins.prepare.processing import (
    Processing,
    check_installed,
    process,
    variant_ids,
    variants,
)

RATE = 24_000
SPEECH = sorted((CORPUS / "wavs").glob("*.flac"))
needs_silero = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None,
    reason="needs silero-vad: pip install silero-vad",
)
needs_pyloudnorm = pytest.mark.skipif(
    importlib.util.find_spec("pyloudnorm") is None,
    reason="needs pyloudnorm: pip install pyloudnorm",
)


def tone(
    duration_s: float, frequency_hz: float = 240, amplitude: float = 0.5, rate: int = RATE
) -> np.ndarray:
    time_s = np.arange(round(duration_s * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def silence(duration_s: float) -> np.ndarray:
    return np.zeros(round(duration_s * RATE), dtype=np.float32)


def noise(duration_s: float, level_db: float) -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal(round(duration_s * RATE))
    return (10 ** (level_db / 20) * samples).astype(np.float32)


def loudness_lufs(samples: np.ndarray) -> float:
    from pyloudnorm import Meter

    return float(Meter(RATE, filter_class="DeMan").integrated_loudness(samples.astype(np.float64)))


def frozen(samples: np.ndarray) -> np.ndarray:
    """A write to it raises: originals are never modified."""
    samples.setflags(write=False)
    return samples


# --- Processing ---


def test_every_setting_can_become_a_flag():
    """The command line is generated from the fields: what is missing there is missing for the
    user."""
    parse = {}
    for field in dataclasses.fields(Processing):
        assert field.metadata["help"]
        parse[field.name] = field.metadata["parse"]
        if field.default not in (None, ()):
            assert parse[field.name](str(field.default)) == field.default
    assert parse["speed_factors"]("0.9,1.1") == (0.9, 1.1)
    assert parse["loudness_lufs"]("-23") == -23.0
    assert pickle.loads(pickle.dumps(Processing(trim="vad"))) == Processing(trim="vad")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trim": "librosa"}, "--trim: 'librosa' is unknown; use one of none, energy, vad"),
        ({"loudness_lufs": 23.0}, "--loudness_lufs: 23.0 is outside -70 to 0 LUFS; "),
        ({"speed_factors": (0.9, 11.0)}, "--speed_factors: (0.9, 11.0) is outside 0.5 to 2; "),
        ({"noise_snr_db": (float("nan"),)}, "--noise_snr_db: (nan,) is outside -20 to 100 dB; "),
        ({"trim_padding_s": -1.0}, "--trim_padding_s: -1.0 is outside 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(wrong, message):
    """A forgotten minus or decimal point."""
    with pytest.raises(UserError) as caught:
        Processing(**wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("processing", "package"),
    [(Processing(trim="vad"), "silero-vad"), (Processing(loudness_lufs=-23), "pyloudnorm")],
)
def test_a_missing_package_is_told_with_its_remedy(monkeypatch, processing, package):
    """Before the first clip, in one line, and only if it is needed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(Processing(trim="energy", speed_factors=(0.9,), noise_snr_db=(20.0,)))
    for call in (lambda: check_installed(processing), lambda: process(tone(1.0), RATE, processing)):
        with pytest.raises(
            UserError, match=f"'{package}' is not installed; run: pip install {package}, or "
        ):
            call()


# --- rate, channels, full scale ---


def test_a_clip_that_is_right_stays_as_it_is():
    """To the bit: resampling 24 kHz to 24 kHz would only blur it."""
    clip = frozen(tone(1.0))
    result = process(clip, RATE, Processing())
    np.testing.assert_array_equal(result, clip)
    assert result.dtype == np.float32


def test_stereo_at_another_rate():
    """The channels are averaged, the rate is 24 kHz; a 15 kHz tone, which that cannot hold, is gone
    and not folded."""
    left = tone(1.0, rate=48_000) + tone(1.0, frequency_hz=15_000, amplitude=0.2, rate=48_000)
    clip = frozen(np.stack([left, np.zeros_like(left)], axis=1))
    result = process(clip, 48_000, Processing())
    assert (result.shape, result.dtype) == ((RATE,), np.float32)
    np.testing.assert_allclose(result[1000:-1000], tone(1.0, amplitude=0.25)[1000:-1000], atol=1e-3)


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_too_loud_a_clip_is_scaled_and_not_clipped(rate):
    """Float files go beyond 1, and so does resampling near it; 16 bit would cut the tops off
    flat."""
    clip = frozen(tone(1.0, amplitude=1.5, rate=rate))
    result = process(clip, rate, Processing())
    assert np.abs(result).max() == 1.0
    np.testing.assert_allclose(result[1000:-1000], tone(1.0, amplitude=1.0)[1000:-1000], atol=0.02)


# --- trim ---


def test_energy_trim_keeps_the_padding_and_the_pause_within():
    clip = np.concatenate([silence(1.0), tone(1.0), silence(0.5), tone(1.0), silence(1.0)])
    kept = process(frozen(clip), RATE, Processing(trim="energy", trim_padding_s=0.3))
    np.testing.assert_array_equal(kept, clip[round(0.7 * RATE) : round(3.8 * RATE)])
    near_the_ends = process(
        clip[RATE // 2 : -RATE // 2], RATE, Processing(trim="energy", trim_padding_s=2.0)
    )
    assert len(near_the_ends) == len(clip) - RATE  # not more padding than there is


@pytest.mark.parametrize(("below_db", "limit_db"), [(25.0, None), (40.0, None), (80.0, -60.0)])
def test_energy_trim_cuts_at_the_first_and_last_loud_frame(below_db, limit_db):
    """Against a loop over the frames of speech between silences."""
    for path in SPEECH[:6]:
        clip = np.concatenate([silence(0.7), load(path), silence(0.4)]).astype(np.float64)
        centred = (clip - clip.mean()).tolist()
        powers = [
            sum(s * s for s in centred[start : start + 600]) / 600
            for start in range(0, len(clip) - 599, 600)
        ]
        levels = [10 * math.log10(power + 1e-30) for power in powers]
        threshold = limit_db or max(levels) - below_db
        loud = [index for index, level in enumerate(levels) if level >= threshold]
        processing = Processing(trim="energy", trim_below_db=below_db, trim_padding_s=0.0)
        kept = process(clip.astype(np.float32), RATE, processing)
        np.testing.assert_array_equal(
            kept, clip[loud[0] * 600 : (loud[-1] + 1) * 600].astype(np.float32)
        )
        assert 0.4 * len(clip) < len(kept) < len(clip) - RATE


@pytest.mark.parametrize("trim", ["energy", pytest.param("vad", marks=needs_silero)])
def test_without_speech_nothing_is_left(trim):
    """The caller rejects it; the padding of a speech at no place would be kept otherwise."""
    assert process(silence(2.0), RATE, Processing(trim=trim)).shape == (0,)


@needs_silero
def test_vad_cuts_noise_that_has_the_level_of_speech():
    """A door, a breath, a hum: to the energy rule the whole clip is speech."""
    clip = frozen(np.concatenate([noise(1.5, -35), load(SPEECH[0]), noise(1.5, -35)]))
    assert len(process(clip, RATE, Processing(trim="energy"))) == len(clip)
    processing = Processing(trim="vad", trim_padding_s=0.1)
    kept = process(clip, RATE, processing)
    start = next(
        at
        for at in range(len(clip))
        if clip[at] == kept[0] and np.array_equal(clip[at:][: len(kept)], kept)
    )
    assert 1.4 * RATE < start < 1.9 * RATE  # flite begins with 0.2 s of silence
    assert len(clip) - 1.9 * RATE < start + len(kept) < len(clip) - 1.0 * RATE
    np.testing.assert_array_equal(process(clip, RATE, processing), kept)  # the model keeps no state


@needs_silero
def test_vad_keeps_a_short_first_word():
    """silero-vad's default drops speech below 250 ms before a pause: "Two. Press ..." lost its
    "Two"."""
    sentence = load(SPEECH[0])
    word = sentence[round(0.30 * RATE) : round(0.48 * RATE)]
    clip = np.concatenate([silence(0.5), word, silence(0.6), sentence])
    kept = process(clip, RATE, Processing(trim="vad", trim_padding_s=0.1))
    assert len(clip) - len(kept) < 0.6 * RATE


# --- loudness ---


@needs_pyloudnorm
def test_loudness_of_the_standards_own_signal():
    """ITU-R BS.1770: a sine of 997 Hz at full scale in one channel has -3.01 LUFS, so -23 is a peak
    of -19.99 dB."""
    for amplitude in (0.01, 0.9):
        result = process(frozen(tone(5.0, 997, amplitude)), RATE, Processing(loudness_lufs=-23.0))
        assert 20 * np.log10(np.abs(result).max()) == pytest.approx(-19.99, abs=0.05)


@needs_pyloudnorm
def test_speech_gets_the_loudness_asked_for():
    for path in SPEECH[:5]:
        result = process(load(path), RATE, Processing(loudness_lufs=-23.0))
        assert loudness_lufs(result) == pytest.approx(-23.0, abs=0.01)


@needs_pyloudnorm
def test_peaks_stop_the_gain_and_are_not_clipped():
    """A click of the lips or a loud P: the clip stays quieter than asked, its form unchanged."""
    clip = tone(2.0, amplitude=0.01)
    clip[RATE] = 0.5
    result = process(frozen(clip), RATE, Processing(loudness_lufs=-16.0))
    assert loudness_lufs(result) < -20.0
    assert np.abs(result).max() == pytest.approx(10 ** (-1 / 20), rel=1e-3)
    np.testing.assert_allclose(result, clip * (result[RATE] / clip[RATE]), rtol=1e-5)


@needs_pyloudnorm
def test_peaks_between_the_samples_count():
    """At 6 kHz, a quarter of the rate, samples can lie 3 dB below the wave they describe."""
    samples = np.tile(np.float32([0.5, 0.5, -0.5, -0.5]), RATE)
    samples *= np.hanning(len(samples)).astype(np.float32)  # no edge that would ring
    result = process(samples, RATE, Processing(loudness_lufs=0.0))
    assert 20 * np.log10(np.abs(result).max()) == pytest.approx(-4.01, abs=0.05)


@needs_pyloudnorm
@pytest.mark.parametrize("clip", [silence(1.0), tone(0.3), np.zeros(0, dtype=np.float32)])
def test_a_clip_without_loudness_stays_as_it_is(clip):
    """Silence would get an infinite gain; below 400 ms the standard says nothing."""
    np.testing.assert_array_equal(process(clip, RATE, Processing(loudness_lufs=-23.0)), clip)


def test_sixteen_bits_are_enough(tmp_path):
    """What the caller writes and training reads again: half a step of 2**-15 away."""
    result = process(load(SPEECH[0]), RATE, Processing(trim="energy"))
    save_wav(tmp_path / "a.wav", result, RATE)
    assert probe(tmp_path / "a.wav").sample_rate_hz == RATE
    np.testing.assert_allclose(load(tmp_path / "a.wav"), result, atol=2**-15)


# --- variants ---


def test_speed_changes_duration_and_pitch():
    """It is another voice, and says so: a reference of the one must not be paired with a target of
    the other."""
    slow, fast = variants(frozen(tone(2.0)), "clip", Processing(speed_factors=(0.9, 1.1)), seed=0)
    assert (slow.id, slow.speaker_suffix) == ("clip-speed0.9", "-speed0.9")
    assert (fast.id, fast.speaker_suffix) == ("clip-speed1.1", "-speed1.1")
    for variant, factor in ((slow, 0.9), (fast, 1.1)):
        assert len(variant.samples) == pytest.approx(2.0 * RATE / factor, abs=2)
        assert variant.samples.dtype == np.float32
        peak_hz = np.abs(np.fft.rfft(variant.samples)).argmax() * RATE / len(variant.samples)
        assert peak_hz == pytest.approx(240 * factor, abs=1)


@pytest.mark.parametrize("snr_db", [0.0, 20.0, 40.0])
def test_noise_has_the_ratio_asked_for(snr_db):
    clip = frozen(0.3 * load(SPEECH[0]))
    (variant,) = variants(clip, "clip", Processing(noise_snr_db=(snr_db,)), seed=0)
    assert (variant.id, variant.speaker_suffix) == (f"clip-snr{snr_db:g}", "")
    added = variant.samples - clip
    assert np.abs(variant.samples).max() < 1
    assert 10 * np.log10(np.mean(clip**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.01)
    spectrum = np.abs(np.fft.rfft(added)) ** 2
    quarters = [part.mean() for part in np.array_split(spectrum, 4)]
    assert max(quarters) / min(quarters) < 1.3  # white


def test_noise_beyond_full_scale_is_scaled_with_the_speech():
    (variant,) = variants(
        tone(1.0, amplitude=0.99), "clip", Processing(noise_snr_db=(3.0,)), seed=0
    )
    assert np.abs(variant.samples).max() == 1.0
    assert (np.abs(variant.samples) == 1.0).sum() == 1


def test_noise_follows_from_seed_and_id_only():
    """With one generator for all clips, their noise would depend on the worker and on what it had
    done before."""
    both, one = Processing(noise_snr_db=(10.0, 20.0)), Processing(noise_snr_db=(20.0,))

    def noisy(clip_id: str, processing: Processing, seed: int) -> np.ndarray:
        return list(variants(tone(1.0), clip_id, processing, seed=seed))[-1].samples

    np.testing.assert_array_equal(noisy("a", one, 1), noisy("a", both, 1))
    assert not np.array_equal(noisy("a", one, 1), noisy("b", one, 1))
    assert not np.array_equal(noisy("a", one, 1), noisy("a", one, 2))


def test_silence_gets_no_noise():
    (variant,) = variants(silence(1.0), "clip", Processing(noise_snr_db=(20.0,)), seed=0)
    assert not variant.samples.any()


def test_ids_of_variants_are_known_beforehand():
    processing = Processing(trim="energy", speed_factors=(0.9, 1.1), noise_snr_db=(20.0,))
    made = variants(tone(1.0), "clip", processing, seed=0)
    assert variant_ids("clip", processing) == [variant.id for variant in made]
    assert variant_ids("clip", Processing()) == []


@pytest.mark.parametrize("name", ["speed_factors", "noise_snr_db"])
def test_two_copies_of_one_id_are_refused(name):
    """The second would be written over the first; the id holds six digits."""
    with pytest.raises(
        UserError, match=rf"--{name}: .* gives two copies one id; give each value once"
    ):
        Processing(**{name: (1.1, 1.10000001)})


def test_without_augmentation_there_are_no_variants():
    assert list(variants(tone(1.0), "clip", Processing(), seed=0)) == []


# --- with the command ---


def test_originals_stay_and_the_output_is_24_khz_mono(tmp_path):
    """Too much silence is no fault of a clip that is trimmed."""
    root, output, audio = tmp_path / "corpus", tmp_path / "train.jsonl", tmp_path / "audio"
    arguments = corpus(root, 4, rate=44_100, channels=2, duration_s=1.5, pad_s=1.0)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.iterdir()}
    flags = ["--audio_output", audio, "--trim", "energy", "--trim_padding_s", "0.1"]
    flags += ["--speed_factors", "0.8", "--split", "--validate"]
    assert prepare(*arguments, "--output_file", output, *flags) == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.iterdir()} == before
    rows = [row for side in sides(output).values() for row in side]
    assert len(rows) == 4 + len(read(output)) // 2
    duration_s = 0.0
    for row in rows:
        (path,) = row["audios"]
        assert path.startswith(f"{audio}/")
        info = sf.info(path)
        assert (info.samplerate, info.channels) == (24_000, 1)
        factor = 0.8 if row["id"].endswith("-speed0.8") else 1.0
        # The tone and 0.1 s around it.
        assert info.duration * factor == pytest.approx(1.7, abs=0.06)
        duration_s += info.duration
    accepted = report(output)["accepted"]
    assert accepted == {"clips": len(rows), "hours": round(duration_s / 3600, 4)}


def test_what_trimming_leaves_is_judged_again(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    speech(root / "a.wav", 1.2)
    speech(root / "b.wav", 0.6, pad_s=0.5)
    flags = ["--audio_output", tmp_path / "audio", "--trim", "energy", "--trim_padding_s", "0"]
    flags += ["--max_silence_share", "1", "--output_file", output]
    assert prepare(*table(root, ["a.wav", "b.wav"]), *flags) == 0
    assert ids(output) == ["a.wav"]
    assert reasons(output) == [("b.wav", "after processing: duration below min_duration_s")]


def test_ids_that_look_alike_are_files_of_their_own(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = ["a/b.wav", "a_b.wav", "a b.wav", "a/b.flac", "ü.wav"]
    for number, name in enumerate(names):
        speech(root / name, seed=number)
    flags = ["--output_file", output, "--audio_output", tmp_path / "audio"]
    assert prepare(*table(root, names), *flags) == 0
    files = {row["audios"][0] for row in read(output)}
    assert len(files) == 5
    assert all(re.fullmatch(rf"{tmp_path}/audio/.*\.flac", file) for file in files)
