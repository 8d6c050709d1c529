"""Clean-up of texts against the published example's rules, and long texts in pieces."""

import random
import unicodedata

import pytest

import plugins.data.text as text_module
from plugins.data.text import SPEAKER_TAG, clean_transcript, has_words, pieces, unified


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Hello there", "Hello there."),
        ("Really?", "Really?"),
        ("  one   two \n\n  three.", "one two\nthree."),
        ("It is 20°C (68°F) now", "It is 20 degrees Celsius 68 degrees Fahrenheit now."),
        ("你好，世界。", "你好, 世界."),
        ("“So,” she said… ‘no’", "\"So,\" she said... 'no'"),
        ("Funny! [laugh]", "Funny! <SE>[Laughter]</SE>"),
        ("[music start] la la [music end]", "<SE_s>[Music]</SE_s> la la <SE_e>[Music]</SE_e>"),
        ("[humming start] hm [humming end]", "<SE>[Humming]</SE> hm <SE_e>[Humming]</SE_e>"),
        ("[SPEAKER0] Hi [cough]", "[SPEAKER0] Hi <SE>[Cough]</SE>"),
        ("[humming  start] hm", "<SE>[Humming]</SE> hm."),
        ("[unknown]", "[unknown]."),
        ("Vie\u0302\u0323t Nam\u200b.", "Vi\u1ec7t Nam."),
        ("\ufeffDonau\u00addampf\u2060", "Donaudampf."),
        ("می\u200cخواهم", "می\u200cخواهم."),
        (
            "\u0915\u094d\u200d\u0937 \u0d28\u0d4d\u200d",
            "\u0915\u094d\u200d\u0937 \u0d28\u0d4d\u200d.",
        ),
        ("می\u200c \u200cra\u200dil", "می rail."),
        ("\u0387", "."),
        ("", ""),
    ],
)
def test_texts_are_written_as_in_the_models_examples(text: str, clean: str) -> None:
    assert clean_transcript(text) == clean
    assert clean_transcript(clean) == clean


def test_clean_texts_stay_as_they_are() -> None:
    """Of all that can meet in a text: marks that a step makes must not be work for an earlier
    one."""
    generator = random.Random(0)
    alphabet = [
        *"aA.,!?;'\"()[]<>0 \n\t°FC", *"“”‘’—…，。（）【】《》·",
        *"\u0387\u037e\u2329\u212b\u00a0\u2028\x85\x1c",
        *"\u0338\u0301\u0323\u094d",
        *"\u00ad\u200b\u200c\u200d\u2060\ufeff\u200e", "می", "\u0915", "\u0d28\u0d4d", "\u0958",
        "e\u0302", "\u1100\u1161", "\U0001f468", "</SE>",
        "[laugh]", "[laugh", "[humming  start]", "[music\u00a0end]",
    ]  # fmt: skip
    for _ in range(20_000):
        text = "".join(generator.choices(alphabet, k=generator.randint(1, 12)))
        clean = clean_transcript(text)
        assert clean_transcript(clean) == clean, ascii(text)
        assert unified(clean) == clean, ascii(text)
        assert unified(unified(text)) == unified(text), ascii(text)


def test_what_can_be_spoken() -> None:
    assert all(
        map(
            has_words, ["Hi.", "你好", "שלום", "مرحبا", "42", "[SPEAKER0] a", "<SE>[Laughter]</SE>"]
        )
    )
    assert not any(map(has_words, ["", "  ", "...", "🙂🙂", "[SPEAKER0] ...", "—"]))


def test_short_texts_stay_whole() -> None:
    assert pieces("One. Two. Three.", 100) == ["One. Two. Three."]
    assert pieces("[SPEAKER0] Hi.\n[SPEAKER1] Hello.", 100) == ["[SPEAKER0] Hi.\n[SPEAKER1] Hello."]


def test_pieces_end_where_sentences_end() -> None:
    text = 'Dr. Smith met J. Doe at 3.5 km. It rained! Did it? "Yes." He left, e.g. by train.'
    assert pieces(text, 32) == [
        "Dr. Smith met J. Doe at 3.5 km.",
        'It rained! Did it? "Yes."',
        "He left, e.g. by train.",
    ]
    assert pieces("第一句话。第二句话！第三句话？", 20) == [
        "第一句话。",
        "第二句话！",
        "第三句话？",
    ]


def test_long_sentences_are_cut_at_clauses_then_words_then_anywhere() -> None:
    assert pieces("one two three, four five six, seven", 16) == [
        "one two three,",
        "four five six,",
        "seven",
    ]
    assert pieces("aaaa bbbb cccc dddd", 10) == ["aaaa bbbb", "cccc dddd"]
    assert pieces("x" * 20, 9) == ["x" * 9, "x" * 9, "xx"]


def test_a_speakers_turn_in_pieces_keeps_its_tag() -> None:
    text = "[SPEAKER0] First one. Second one.\n[SPEAKER1] Third one."
    assert pieces(text, 24) == [
        "[SPEAKER0] First one.",
        "[SPEAKER0] Second one.",
        "[SPEAKER1] Third one.",
    ]


def test_pieces_lose_nothing_and_keep_to_their_size() -> None:
    generator = random.Random(0)
    words = [
        "a",
        "word",
        "Mr.",
        "longerword",
        "end.",
        "what?",
        "你好。",
        "x" * 40,
        "clause,",
        "[SPEAKER1]",
    ]
    for _ in range(200):
        text = " ".join(generator.choices(words, k=generator.randint(1, 60)))
        limit = generator.choice([15, 30, 60, 300])
        found = pieces(text, limit)
        tag = len("[SPEAKER1] ")
        assert all(len(piece) <= limit + tag for piece in found)
        bare = "".join(SPEAKER_TAG.sub("", text).split())
        assert "".join("".join(SPEAKER_TAG.sub("", piece).split()) for piece in found) == bare


LONG_TEXTS = {
    "sentences": "Yes. ",
    "tags": "[SPEAKER0] Yes. ",
    "stops": ".",
    "mixed stops": "。.",
    "no stop": "x",
    "spaces": "a      ",
    "lines": "a\n",
    "clauses": "a, ",
    "quotes": '."',
    "open tags": "[SPEAKER",
    "digits": "[SPEAKER11111111",
    "marks": "\u0301\u0323",
    "marks and joiners": "\u0627\u064b\u200d\u0650",
    "joiners": "\u200d",
    "viramas": "\u0915\u094d\u200d",
    "double marks": "\u0344\u0323",
    "wide": "你好。",
    "sounds": "[laugh]",
}


@pytest.mark.parametrize("name", LONG_TEXTS)
def test_work_grows_with_the_text_and_not_with_its_square(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence looked at all that stood before it; marks on one letter were brought into order in
    the square of their number: 100 kB took 21 s."""
    looked_at: list[int] = []
    longest_run: list[int] = []

    class Counted:
        """What `text` asks of unicodedata, and how much."""

        east_asian_width = staticmethod(unicodedata.east_asian_width)

        @staticmethod
        def combining(character: str) -> int:
            looked_at.append(1)
            return unicodedata.combining(character)

        @staticmethod
        def normalize(form: str, given: str) -> str:
            looked_at.append(len(given))
            runs = "".join("m" if unicodedata.combining(c) else " " for c in given).split()
            longest_run.append(max(map(len, runs), default=0))
            return unicodedata.normalize(form, given)

    def width(given: str) -> int:
        looked_at.append(len(given))
        return original(given)

    original = text_module._width
    monkeypatch.setattr(text_module, "unicodedata", Counted)
    monkeypatch.setattr(text_module, "_width", width)
    work = []
    for num_chars in (2_000, 8_000):
        looked_at.clear()
        unit = LONG_TEXTS[name]
        clean = clean_transcript("e" + unit * (num_chars // len(unit)) + " x")
        found = pieces(clean, 300)
        looked_at += map(len, found)
        work.append(sum(looked_at))
    assert work[1] < 4.5 * work[0]
    assert work[1] < 100 * 8_000
    assert max(longest_run) <= 2 * 30


def test_of_a_pile_of_marks_thirty_stay() -> None:
    """Of those that languages use, all: no text of any is changed by it."""
    pile = "a" + "\u0323\u0301" * 50
    assert len(unified(pile)) <= 31
    assert unified(unified(pile)) == unified(pile)
    thirty = "x" + "\u0301" * 30 + "y"
    assert unified(thirty) == thirty
    assert unified("a\u0301\u200d\u0323b") == unicodedata.normalize("NFC", "a\u0301\u0323b")


def test_one_piece_for_any_size() -> None:
    """The parts of a piece are joined once."""
    assert pieces("Yes. " * 40_000, 10**9) == [("Yes. " * 40_000).strip()]
