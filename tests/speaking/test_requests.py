"""What a caller may give the generator, and what is said to the rest; a speech as a value."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import FORMATS, Speech
from plugins.speaking.voices import MAX_REQUEST_CHARS, Request, require_short


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def tone(seconds: float = 1.0, text: str = "Hello.") -> Speech:
    time_s = np.arange(round(seconds * 24_000)) / 24_000
    samples = (0.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    return Speech(samples, 24_000, torch.zeros(8, 25), stopped=False, text=text, took_s=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.3}, "temperature: 0.3 is no option here; give sampling=Sampling(temp"),
        ({"seed": 1}, "give sampling=Sampling(seed=1)"),
        ({"max_audio": 1}, "max_audio: 1 is no option here; did you mean 'max_audio_s'?"),
        ({"max_audio_s": math.nan}, "max_audio_s: nan is no number of seconds up to a day"),
        ({"max_audio_s": "1"}, "max_audio_s: '1' is no number of seconds"),
        ({"max_chars": 0}, "max_chars: 0 is below 3"),
        ({"max_chars": math.nan}, "max_chars: nan is below 3"),
        ({"scene_description": 7}, "scene_description: 7 is no text"),
        ({"voice_description": "\ud800"}, "voice_description: '\\ud800' holds half a character"),
    ],
)
def test_options_that_there_are_not(
    generator: HiggsAudioGenerator, options: dict[str, Any], message: str
) -> None:
    for speak in (generator.generate, generator.stream):
        with pytest.raises(UserError) as raised:
            speak("Hello.", **options)
        assert message in str(raised.value)


@pytest.mark.parametrize("text", [None, 7, b"x", "\ud800a"])
def test_what_is_no_text(generator: HiggsAudioGenerator, text: Any) -> None:
    with pytest.raises(UserError, match=r"request: text.* (is no text|holds half a character)"):
        generator.script(text)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "0.3"},
        {"temperature": True},
        {"top_p": math.nan},
        {"top_p": 0},
        {"top_k": 1.5},
        {"top_k": 2**31},
        {"ras_window": -1},
        {"ras_window": 10**9},
        {"ras_max_repeats": -1},
        {"seed": 2**64},
        {"seed": 1.0},
        {"seed": True},
    ],
)
def test_sampling_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"sampling: {next(iter(options))}: "):
        Sampling(**options)
    numbers = Sampling(np.float32(0.5), np.int64(3), seed=2**64 - 1)  # type: ignore[arg-type]
    assert numbers.top_k == 3


def test_dialogues(generator: HiggsAudioGenerator, tmp_path: Path) -> None:
    line = [{"speaker": "Ann", "text": "Hello."}]
    for options in (
        {"pause_s": math.nan},
        {"pause_s": -1},
        {"pause_s": 1e9},
        {"output_path": tmp_path / "o.m4a"},
        {"output_path": tmp_path},
        {"temperature": 1},
    ):
        with pytest.raises(UserError):
            generator.synthesize_multi_speaker(line, **options)
    assert list(tmp_path.iterdir()) == []


def test_speakers_are_numbered_without_a_search() -> None:
    """Each line looked for its speaker among all."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    lines = [{"speaker": Name(f"s{i}"), "text": "Hi."} for i in range(500)]
    script = Request(HiggsAudioSettings()).conversation(lines, None)
    assert script.lines[499] == "[SPEAKER499] Hi."
    assert compared < 10 * 500


def test_what_one_request_may_bring() -> None:
    require_short(["x" * MAX_REQUEST_CHARS])
    with pytest.raises(UserError, match=r"is too long \(20001 characters, of 20000 at most\)"):
        require_short(["x" * MAX_REQUEST_CHARS, "y"])


# --- a speech ---


def test_a_speech_is_shown_in_one_line() -> None:
    assert repr(tone()) == "Speech(1.00 s at 24000 Hz, truncated, text='Hello.')"
    shown = str(tone(text="A long\nstory. " * 1000))
    assert len(shown) < 130
    assert "\n" not in shown


@pytest.mark.parametrize("suffix", [*FORMATS, ".WAV", ".Mp3", ""])
def test_a_file_is_what_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"new folder/speech{suffix}"
    tone().save(file)
    assert sf.info(file).format == FORMATS[suffix.lower() or ".wav"][0]
    samples, rate = sf.read(file)
    assert (rate, samples.ndim) == (24_000, 1)
    assert abs(len(samples) - 24_000) < 2500
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["a.m4a", "a.opus", "a.aac", "a.wav.gz", "a.raw", "a.tmp", "v1.0"])
def test_a_suffix_that_is_not_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"end it in \.wav, \.flac, \.ogg, \.mp3"):
        tone().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_minutes_of_ogg(tmp_path: Path) -> None:
    """libsndfile overflows its stack if it gets them at once."""
    tone(400).save(tmp_path / "a.ogg")
    assert sf.info(tmp_path / "a.ogg").duration == pytest.approx(400, abs=1)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        tone().save("/proc/a.wav")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tone().save(tmp_path / "file" / "a.wav")
    file = io.BytesIO()
    tone().write(file)
    assert file.getvalue().startswith(b"RIFF")
