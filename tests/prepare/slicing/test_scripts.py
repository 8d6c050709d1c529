"""Subtitles, or a whole text, and what was heard -> the words of each clip as they are written."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from plugins.audio.waveforms import AudioError
from plugins.prepare.slicing.scripts import matches, read_script, script_beside, written_in

TIMES = "00:00:01,000 --> 00:00:02,500"
# What the file holds -> what is said.
SUBTITLES = {
    "plain": (f"1\n{TIMES}\nHello there.\n\n2\n{TIMES}\nGo on.\n", "Hello there. Go on."),
    "two lines": (f"1\n{TIMES}\nHello\nthere.\n", "Hello there."),
    "Windows": (f"1\r\n{TIMES}\r\nHello.\r\n\r\n2\r\n{TIMES}\r\nGo on.\r\n", "Hello. Go on."),
    "no blank lines": (f"1\n{TIMES}\nHello.\n2\n{TIMES}\nGo on.\n", "Hello. Go on."),
    "number as text": (f"1\n{TIMES}\n42\n\n2\n{TIMES}\nis it.\n", "42 is it."),
    "many blank lines": (f"\n\n1\n{TIMES}\n\n\n2\n{TIMES}\nGo on.\n\n\n", "Go on."),
    "italics": (f"1\n{TIMES}\n<i>Hello</i> {{\\an8}}<b>the</b>re.\n", "Hello there."),
    "break": (f"1\n{TIMES}\nHello<br/>there.\n", "Hello there."),
    "sounds": (f"1\n{TIMES}\n[door] Hello ♪\n\n2\n{TIMES}\n(laughs)\n", "Hello"),
    "speakers": (f"1\n{TIMES}\nANN: Hello.\n- Go on.\n>> BOB: No!\n", "Hello. Go on. No!"),
    "no speakers": (f"1\n{TIMES}\nNote: at 5:30 I go.\n", "Note: at 5:30 I go."),
    "entities": (f"1\n{TIMES}\nTom &amp; Ann &lt;3\n", "Tom & Ann <3"),
    "VTT": (
        "WEBVTT - a talk\n\nNOTE\nmade by hand\n\nSTYLE\n::cue { color: red }\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start position:0%\n<v Ann>Hello <00:01.500>there.\n",
        "Hello there.",
    ),
    "rolling": (
        "WEBVTT\n\n"
        + "".join(f"00:0{i}.000 --> 00:0{i + 1}.000\nline {i}\nline {i + 1}\n\n" for i in range(5)),
        "line 0 line 1 line 2 line 3 line 4 line 5",
    ),
    "repeated": (f"1\n{TIMES}\nYes.\n\n2\n{TIMES}\nYes.\n\n3\n{TIMES}\nNo.\n", "Yes. Yes. No."),
    "mark": (f"\ufeff1\n{TIMES}\nHello.\n", "Hello."),
    "separator": (f"1\n{TIMES}\nHello.\u2028\u2028Go on.\n", "Hello. Go on."),
    "nothing": ("", ""),
    "no cue": ("just a line\n", ""),
}


@pytest.mark.parametrize("kind", SUBTITLES)
def test_subtitles_say(kind: str, tmp_path: Path) -> None:
    content, expected = SUBTITLES[kind]
    for suffix in (".srt", ".vtt"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content.encode())
        assert " ".join(read_script(path, tmp_path, None)) == expected


def test_a_text_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ANN: [so] it is\n\n 42.\n")
    assert read_script(tmp_path / "a.txt", tmp_path, None) == ["ANN:", "[so]", "it", "is", "42."]


def test_which_file_is_the_script(tmp_path: Path) -> None:
    recording = tmp_path / "talk.m4a"
    assert script_beside(recording) is None
    for name in ("talk.txt", "talk.vtt", "talk.m4a.srt"):
        (tmp_path / name).write_text("x")
        assert script_beside(recording) == tmp_path / name


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfeH\x00i\x00", "is not UTF-8"), (b"x" * 1_000_001, "is larger than")],
)
def test_scripts_that_cannot_be_read(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(content)
    with pytest.raises(AudioError, match=reason):
        read_script(tmp_path / "a.srt", tmp_path, None)


def test_a_script_outside_of_the_root_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(AudioError, match="leads out"):
        read_script(tmp_path / "in" / "a.txt", tmp_path / "in", tmp_path / "in")


def said(script: str, *heard: str) -> list[str]:
    return [one.text for one in written_in(script.split(), [text.split() for text in heard])]


@pytest.mark.parametrize(
    ("script", "heard", "expected"),
    [
        # In the script's own wording.
        ("“Don’t!” — he said. Go.", ["dont he said", "go"], ["“Don’t!” he said.", "Go."]),
        ("Press six now. Then two.", ["press 6 now", "then 2"], ["Press six now.", "Then two."]),
        ("I saw Brontë. Yes.", ["I saw bronte", "yes"], ["I saw Brontë.", "Yes."]),
        # A word that was not heard stays in its sentence.
        ("The cat sat. On a mat.", ["the cat", "on a mat"], ["The cat sat.", "On a mat."]),
        ("The cat sat. On a mat.", ["the cat sat", "a mat"], ["The cat sat.", "On a mat."]),
        # What was never read is left out; what is not in the script has no words.
        ("A title of a book that nobody reads. Now we begin.", ["now we begin"], ["Now we begin."]),
        ("One two three. Four five six.", ["one two three", "hm well", "four five six"],
         ["One two three.", "", "Four five six."]),
        ("One. Two. Three.", [], []),
        ("", ["one two"], [""]),
        ("Ümlaut straße İstanbul.", ["umlaut STRASSE istanbul"], ["Ümlaut straße İstanbul."]),
    ],
)  # fmt: skip
def test_each_clip_has_its_words(script: str, heard: list[str], expected: list[str]) -> None:
    ours = said(script, *heard)
    if "—" in script:
        ours = [text.replace(" —", "") for text in ours]
    assert ours == expected


def test_another_script_does_not_agree() -> None:
    heard = [text.split() for text in ("please enter your number", "press one to go on")]
    for script, low, high in (
        ("Please enter your number. Press 1 to go on!", 0.8, 1.0),
        ("The birch canoe slid on the smooth planks.", 0.0, 0.5),
    ):
        for written in written_in(script.split(), heard):
            assert low <= written.agreement <= high


@pytest.mark.parametrize("seed", range(20))
def test_pairs_rise_and_are_equal(seed: int) -> None:
    chance = random.Random(seed)
    a = [chance.choice("abcdefgh") for _ in range(chance.randrange(200))]
    b = [word for word in a if chance.random() > 0.2]
    pairs = matches(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    for (i, j), (i_next, j_next) in pairwise(pairs):
        assert i < i_next
        assert j < j_next
    assert len(pairs) >= 0.6 * len(b)


def test_hours_of_words_are_aligned_in_seconds() -> None:
    chance = random.Random(0)
    words = [
        f"{chance.choice('abcdefgh')}{int(chance.paretovariate(0.7)) % 3000}" for _ in range(30_000)
    ]
    heard = [word if chance.random() > 0.1 else "x" for word in words]
    clips = [heard[i : i + 20] for i in range(0, len(heard), 20)]
    begin = time.process_time()
    written = written_in(words, clips)
    assert time.process_time() - begin < 20
    right = sum(one.text.split() == words[20 * i : 20 * i + 20] for i, one in enumerate(written))
    assert right >= 0.97 * len(clips)
