"""What is written against what is heard: what counts as a difference, and where it is."""

from __future__ import annotations

import random
import time

import pytest

from plugins.hearing.comparison import compare

pytest.importorskip("rapidfuzz")
pytest.importorskip("whisper_normalizer")


@pytest.mark.parametrize(
    ("written", "heard", "language"),
    [
        ("Twenty-one apples.", "21 apples", "en"),
        ("He paid $20", "he paid twenty dollars", "en"),
        ("Mr. Smith's colour isn't grey!", "Mister Smith's color is not gray.", "en"),
        ("saved to", "Save two.", "xx-close"),
        ("RE-RECORD YOUR MESSAGE", "rerecord your message", "en"),
        ("“Don’t,” he said …", "Don't he said.", "en"),
        ("mail box", "mailbox", "en"),
        ("ﬁne ＡＢＣ", "fine ABC", "de"),
        ("Grüß Gott, Welt!", "grüß gott welt", "de"),
        ("Café", "Café", "fr"),
        ("你好，世界。", "你好世界", "zh"),
        ("こんにちは、世界", "こんにちは 世界", "ja"),
        ("[SPEAKER0] Yes. <SE>[Laughter]</SE> No.", "yes no", "en"),
        ("", "", "en"),
        ("...", "", "en"),
    ],
)
def test_what_is_read_right_is_no_difference(written: str, heard: str, language: str) -> None:
    if language == "xx-close":
        # Between homophones a recogniser guesses: few letters differ, taken as they are.
        assert compare(written, heard, "en").cer < 0.4
        return
    comparison = compare(written, heard, language)
    assert comparison.num_errors == 0
    assert comparison.worst == 0


@pytest.mark.parametrize(
    ("written", "heard", "language"),
    [
        ("Es sind fünfundzwanzig Schiffe.", "Es sind 25 Schiffe", "de"),
        ("Im Jahr 1999", "im jahr neunzehnhundertneunundneunzig", "de"),
        ("quatre-vingts maisons", "80 maisons", "fr"),
        ("Ha ventuno anni", "ha 21 anni", "it"),
    ],
)
def test_numbers_of_other_languages(written: str, heard: str, language: str) -> None:
    pytest.importorskip("num2words")
    assert compare(written, heard, language).num_errors == 0
    assert compare(written, heard.replace("25", "35"), language).num_errors > 0 or "25" not in heard


TEXT = "please enter your password followed by the pound key"


@pytest.mark.parametrize(
    ("heard", "unheard", "unwritten"),
    [
        ("your password followed by the pound key", "pleaseenter", ""),
        ("nter your password followed by the pound key", "pleasee", ""),
        ("please enter your password followed by the", "poundkey", ""),
        ("please enter followed by the pound key", "yourpassword", ""),
        (f"{TEXT} {TEXT}", "", TEXT.replace(" ", "")),
        (f"{TEXT} thank you", "", "thankyou"),
        (f"hello and welcome {TEXT}", "", "helloandwelcome"),
        ("please enter your password", "followedbythepoundkey", ""),
    ],
)
def test_a_stretch_that_only_one_has(heard: str, unheard: str, unwritten: str) -> None:
    comparison = compare(TEXT, heard, "en")
    # Letters of a repetition may be any copy of them.
    assert len(comparison.unheard.letters) == len(unheard)
    assert len(comparison.unwritten.letters) == len(unwritten)
    if unheard:
        assert comparison.unheard.letters == unheard
        assert comparison.worst >= 4


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("agent logged off", "Agent Log Doff."),
        ("call forwarding", "Call for reading."),
        ("the last caller was", "The last color was."),
        ("press 1 for", "Press 1-4."),
        ("DAHDI", "Daddy."),
        ("call forward unconditional", "Call forward and conditional."),
    ],
)
def test_letters_that_are_taken_for_others_are_no_stretch(written: str, heard: str) -> None:
    """What Whisper tiny.en made of prompts that are read as they are written."""
    assert compare(written, heard, "en").worst <= 2


def test_a_syllable_of_chinese_weighs_more_than_a_letter() -> None:
    whole = "今天天气很好我们出去散步吧"
    cut = compare(whole, whole[2:], "zh")
    assert cut.unheard.letters == "今天"
    assert cut.worst >= 4


def test_edges_are_told_apart() -> None:
    begin = compare(TEXT, TEXT[13:], "en").unheard
    end = compare(TEXT, TEXT[:-9], "en")
    assert begin.begin == 0
    assert end.unheard.end == len(end.written)


def test_any_text_can_be_compared() -> None:
    generator = random.Random(0)
    letters = "ab 0%9.'\u0301ßİ你\u200bका\ud83d\ude00\u202e[]<>"
    for _ in range(300):
        a, b = ("".join(generator.choices(letters, k=generator.randrange(30))) for _ in "ab")
        for language in ("en", "zh", "hi"):
            comparison = compare(a, b, language)
            assert comparison.cer >= 0
            assert compare(a, a, language).num_errors == 0


def test_a_long_text_is_compared_at_once() -> None:
    """A recogniser that repeats itself fills its window."""
    begin_s = time.perf_counter()
    compare("word " * 400, "no " * 2000, "en")
    assert time.perf_counter() - begin_s < 2
