"""Speech and words -> clips: arithmetic."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from plugins.errors import UserError
from plugins.prepare.slicing.cutting import FRAME_S, TOO_SHORT, Cut, assigned, cut
from plugins.prepare.slicing.hearing import Word, without_inventions
from plugins.prepare.slicing.settings import Slicing

SPEECH_DB, PAUSE_DB = -20.0, -75.0


def levels_of(speech: list[tuple[float, float]], end_s: float) -> np.ndarray:
    levels = np.full(round(end_s / FRAME_S), PAUSE_DB)
    for start_s, stop_s in speech:
        levels[round(start_s / FRAME_S) : round(stop_s / FRAME_S)] = SPEECH_DB
    return levels


def words_in(*speech: tuple[float, float], ends: str = ".") -> list[Word]:
    """Two a second, the last of each span with the end of a sentence."""
    words = []
    for start_s, end_s in speech:
        count = max(1, round((end_s - start_s) * 2))
        length_s = (end_s - start_s) / count
        for i in range(count):
            text = f" w{len(words)}{ends if i == count - 1 else ''}"
            words.append(Word(text, start_s + i * length_s, start_s + (i + 1) * length_s, 0.9))
    return words


def clips_of(
    speech: list[tuple[float, float]], end_s: float, slicing: Slicing | None = None
) -> list[Cut]:
    return cut(speech, words_in(*speech), levels_of(speech, end_s), slicing or Slicing())


def texts(clips: list[Cut]) -> list[str]:
    return ["".join(word.text for word in clip.words).strip() for clip in clips]


def test_padding_is_even_and_at_most_half_of_a_pause() -> None:
    speech = [(1.0, 6.0), (7.0, 12.0), (12.3, 17.3), (18.0, 23.0)]
    clips = clips_of(speech, 24.0, Slicing(max_clip_s=6.0))
    assert len(clips) == 4
    for clip, (start_s, end_s) in zip(clips, speech, strict=True):
        assert clip.start_s <= start_s
        assert clip.end_s >= end_s
    assert [clip.start_s for clip in clips] == pytest.approx([0.8, 6.8, 12.15, 17.8])
    assert [clip.end_s for clip in clips] == pytest.approx([6.2, 12.15, 17.5, 23.2])


@pytest.mark.parametrize("seed", range(20))
def test_clips_of_any_speech(seed: int) -> None:
    """They overlap nowhere, hold all words once, and keep to the lengths or say why not."""
    random, slicing = np.random.default_rng(seed), Slicing()
    position_s, speech = 0.3, []
    for _ in range(random.integers(1, 30)):
        length_s = float(random.uniform(0.2, 6.0))
        speech.append((position_s, position_s + length_s))
        position_s += length_s + float(random.uniform(0.2, 2.4))
    clips = clips_of(speech, position_s)
    words = words_in(*speech)
    assert [word for clip in clips for word in clip.words] == words
    assert [span for clip in clips for span in clip.speech] == [
        pytest.approx(span, abs=0.02) for span in speech
    ]
    for before, after in pairwise(clips):
        assert before.end_s <= after.start_s + 1e-9
    for clip in clips:
        assert clip.duration_s <= slicing.max_clip_s + 2 * slicing.clip_padding_s
        assert (clip.duration_s < slicing.min_clip_s) == (clip.fault == TOO_SHORT)


def test_sentences_stay_whole_where_they_can() -> None:
    speech = [(0.5, 4.0), (4.4, 8.0), (8.4, 12.0), (12.4, 16.0)]
    words = words_in(speech[0], ends=",") + words_in(speech[1])
    words += words_in(speech[2], ends=",") + words_in(speech[3])
    clips = cut(speech, words, levels_of(speech, 17.0), Slicing())
    assert [len(clip.speech) for clip in clips] == [2, 2]


def test_short_calls_are_joined_over_pauses() -> None:
    speech = [(1.0 + 3 * i, 2.0 + 3 * i) for i in range(6)]
    assert not any(clip.fault for clip in clips_of(speech, 20.0))


def test_words_that_reach_over_a_pause_go_where_they_are_heard() -> None:
    speech = [(0.0, 1.0), (3.0, 4.0)]
    words = [
        Word(" one", 0.1, 0.9, 0.9),
        Word(" two", 1.0, 3.6, 0.9),  # stretched over the pause before it
        Word(" three", 3.6, 5.0, 0.9),  # and over the one behind it
    ]
    assert assigned(words, speech) == [0, 1, 1]


def test_words_never_go_back() -> None:
    speech = [(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)]
    jumbled = [Word(" a", 2.1, 2.9, 1), Word(" b", 0.1, 0.9, 1), Word(" c", 4.1, 4.2, 1)]
    owners = assigned(jumbled, speech)
    assert owners == sorted(owners)
    assert owners[-1] == 2


def test_words_outside_of_all_speech_go_to_the_nearest() -> None:
    speech = [(0.0, 1.0), (9.0, 10.0)]
    assert assigned([Word(" a", 1.5, 1.6, 1), Word(" b", 8.0, 8.1, 1)], speech) == [0, 1]
    assert assigned([], speech) == []


def test_words_that_nobody_had_time_to_say_are_dropped() -> None:
    """ "Callers waiting", and Whisper went on: "If you're interested in this video ..."."""
    said = [Word(" Callers", 24.7, 25.3, 0.8), Word(" waiting.", 25.3, 26.8, 0.98)]
    first = [Word(" If", 26.86, 27.2, 0.01), Word(" you", 27.2, 27.48, 0.4)]
    rest = [Word(text, 27.48, 27.48, 0.4) for text in (" like", " this", " video.")]
    assert without_inventions([*said, *first, *rest]) == said
    assert without_inventions([*said, *rest[:2]]) == [*said, *rest[:2]], "as in a quick ending"
    assert without_inventions([*rest, *said]) == [*rest, *said]
    assert without_inventions(rest) == without_inventions([]) == []


def test_soft_ends_belong_to_the_speech() -> None:
    """silero-vad says that speech has ended while its last sound goes on, 0.2 s at most."""
    levels = levels_of([(0.8, 4.2), (4.5, 8.0)], 9.0)
    clips = cut([(1.0, 4.0), (4.7, 8.0)], words_in((1.0, 4.0), (4.7, 8.0)), levels, Slicing())
    spans = [span for clip in clips for span in clip.speech]
    assert spans == [pytest.approx((0.8, 4.2)), pytest.approx((4.5, 8.0))]


def test_long_speech_is_cut_at_the_short_pause_between_two_words() -> None:
    """And not at the longer closure within a word."""
    end_s = 20.0
    levels = levels_of([(0.5, 5.2), (5.45, 10.0), (10.15, 19.5)], end_s)
    words = [Word(" first", 0.5, 9.0, 1), Word(" before", 9.0, 10.0, 1)]
    words += [Word(" after", 10.1, 12.0, 1), Word(" last.", 12.0, 19.5, 1)]
    clips = cut([(0.5, 19.5)], words, levels, Slicing())
    assert texts(clips) == ["first before", "after last."]
    assert clips[0].end_s == pytest.approx(10.075)
    assert clips[1].start_s == pytest.approx(10.075)


def test_long_speech_without_a_pause_is_rejected_and_not_torn() -> None:
    (clip,) = clips_of([(0.5, 19.5)], 20.0)
    assert clip.fault.startswith("speech without a pause")
    assert len(clip.words) == 38


def test_speech_without_words_is_no_clip() -> None:
    (clip,) = cut([(1.0, 5.0)], [], levels_of([(1.0, 5.0)], 6.0), Slicing())
    assert clip.fault == "no words heard"


def test_another_voice_is_another_clip() -> None:
    speech = [(1.0, 3.5), (3.9, 6.0), (6.4, 9.0)]
    clips = cut(speech, words_in(*speech), levels_of(speech, 10.0), Slicing(), apart=[True, False])
    assert [len(clip.speech) for clip in clips] == [1, 2]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"min_clip_s": 9.0}, "min_clip_s"),
        ({"max_clip_s": 29.0}, "max_clip_s"),
        ({"min_confidence": 1.5}, "min_confidence"),
        ({"clip_padding_s": float("nan")}, "clip_padding_s"),
    ],
)
def test_settings_that_cannot_be_meant(values: dict[str, float], flag: str) -> None:
    with pytest.raises(UserError, match=f"--{flag}"):
        dataclasses.replace(Slicing(), **values)
