"""A recording in a stream -> stretches from pause to pause."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.joined import RATE_HZ, embedded, join

from plugins.audio.tracks import Track
from plugins.prepare.slicing.tape import MAX_STRETCH_S, SpeechDetector, Stretch, Tape, spans

vad = pytest.importorskip("faster_whisper.vad")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("recording") / "talk.wav"
    return path, join(path, embedded(16) * 2)


class Pieces:
    """A track that gives its sound out in pieces of one size."""

    def __init__(self, samples: np.ndarray, rate_hz: int, size: int) -> None:
        self.sample_rate_hz, self._samples, self._size = rate_hz, samples, size

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._samples), self._size):
            yield self._samples[start : start + self._size]


def stretches(track: Any) -> list[Stretch]:
    tape, found = Tape(track), []
    while (stretch := tape.next()) is not None:
        found.append(stretch)
        tape.advance(stretch.duration_s)
    return found


def test_speech_in_pieces_is_found_as_in_the_whole(recording: Any) -> None:
    samples, _ = sf.read(recording[0], dtype="float32")
    samples = samples[: len(samples) // 512 * 512]
    expected = vad.get_vad_model()(samples.copy()).reshape(-1)
    detect = SpeechDetector()
    found = [detect(samples[start : start + 7001]) for start in range(0, len(samples), 7001)]
    # It blanks the end of the last window itself.
    np.testing.assert_allclose(np.concatenate(found)[:-1], expected[:-1], atol=1e-4)


def test_spans_begin_surely_and_end_in_real_pauses() -> None:
    sure, unsure, silent, window_s = 0.9, 0.4, 0.1, 0.032
    speech = [sure] * 5
    found = spans(np.array([*speech, *[silent] * 7, unsure, *speech, unsure, silent]))
    assert found == [
        (0, pytest.approx(5 * window_s)),
        pytest.approx((13 * window_s, 19 * window_s)),
    ]
    # But after a long silence what is unsure was speech, as in the beginning.
    found = spans(np.array([unsure, *speech, *[silent] * 40, unsure, *speech]))
    assert found == [
        (0, pytest.approx(6 * window_s)),
        pytest.approx((46 * window_s, 52 * window_s)),
    ]
    assert len(spans(np.array([*[sure] * 5, *[silent] * 5, *[sure] * 5]))) == 1
    assert len(spans(np.array([*[sure] * 5, *[silent] * 7, *[sure] * 5]))) == 2
    click = [silent] * 9 + [sure] + [silent] * 9
    assert spans(np.array(click)) == []
    assert spans(np.zeros(0)) == []


@pytest.mark.parametrize("size", [1000, 160_000, 10**9])
def test_stretches_do_not_depend_on_the_blocks(recording: Any, size: int) -> None:
    samples, _ = sf.read(recording[0], dtype="float32")
    found = stretches(Pieces(samples, RATE_HZ, size))
    with Track(recording[0]) as track:
        expected = stretches(track)
    assert len(found) == len(expected) > 3
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.start_s == theirs.start_s
        assert mine.speech == theirs.speech
        np.testing.assert_array_equal(mine.heard, theirs.heard)


def test_stretches_end_in_pauses_and_hold_all_speech(recording: Any) -> None:
    path, said = recording
    with Track(path) as track:
        found = stretches(track)
    for one in said:
        middle_s = (one.start_s + one.end_s) / 2
        holding = [s for s in found if s.start_s <= middle_s <= s.start_s + s.duration_s]
        assert len(holding) == 1, one
        assert holding[0].start_s <= one.start_s
        assert one.end_s <= holding[0].start_s + holding[0].duration_s
    assert max(stretch.duration_s for stretch in found) <= MAX_STRETCH_S + 0.5
    assert [stretch.last for stretch in found] == [False] * (len(found) - 1) + [True]
    assert not any(stretch.torn for stretch in found)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_sound_is_kept_at_its_own_rate_up_to_the_codecs(rate_hz: int, recording: Any) -> None:
    """Both rates tell the same seconds: at 22.05 kHz no window ends on a whole sample."""
    import soxr

    samples, _ = sf.read(recording[0], dtype="float32")
    other = soxr.resample(samples[: 60 * RATE_HZ], RATE_HZ, rate_hz).astype(np.float32)
    found = stretches(Pieces(other, rate_hz, 50_000))
    assert found
    for stretch in found:
        assert stretch.sound_hz == min(rate_hz, 24_000)
        assert len(stretch.sound) / stretch.sound_hz == pytest.approx(stretch.duration_s, abs=0.04)
        again = soxr.resample(stretch.sound, stretch.sound_hz, RATE_HZ)
        length = min(len(again), len(stretch.heard)) - 2000
        a, b = again[1000:length], stretch.heard[1000:length]
        assert np.corrcoef(a, b)[0, 1] > 0.99


def test_speech_that_never_pauses_is_said_to_be_torn() -> None:
    voiced = np.concatenate([samples[4000:-6000] for _, samples in embedded(16) * 3])
    found = stretches(Pieces(voiced.astype(np.float32), RATE_HZ, 50_000))
    total_s = sum(stretch.duration_s for stretch in found)
    assert total_s == pytest.approx(len(voiced) / RATE_HZ, abs=2.0)


def test_silence_and_nothing_have_no_stretch() -> None:
    for length in (0, 100, 100 * RATE_HZ):
        assert stretches(Pieces(np.zeros(length, np.float32), RATE_HZ, 40_000)) == []
