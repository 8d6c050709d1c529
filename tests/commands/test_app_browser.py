"""`higgs-audio app` in a real browser: the page as a user sees it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from conftest import CORPUS
from helpers.app import VOICE, Server, wait_for
from helpers.browser import asked_for, chromium
from helpers.pages import Page

from plugins.audio import waveforms as audio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, app_server: Server, tmp_path: Path) -> Page:
    return Page(browser, app_server.url, tmp_path, begins_with="#text textarea")


def seed_of(line: str) -> str:
    return line.partition("seed ")[2].split()[0]


def check(duration_s: float, content: bytes, line: str) -> np.ndarray:
    """That these are 24 kHz, and as long as the `line` below the player says: the samples."""
    expected_s = float(line.partition(" s ")[0])
    assert 0 < expected_s <= 2
    assert content[:4] == b"RIFF"
    samples, rate = sf.read(io.BytesIO(content), dtype="int16")
    assert (rate, samples.ndim) == (24_000, 1)
    assert len(samples) == pytest.approx(expected_s * rate, abs=0.005 * rate)
    assert duration_s == pytest.approx(expected_s, abs=0.01)
    assert samples.std() > 0
    return samples


def test_a_text_is_spoken_in_an_uploaded_voice(page: Page) -> None:
    page.picture("empty")
    page.type("text", "Hello there.")
    page.upload("recording", VOICE)
    page.type("transcript", "Glue the sheet.")
    page.click("#generate")
    line = page.line("speech")
    page.picture("spoken")
    assert re.match(r"\d\.\d\d s · real-time factor ", line)
    assert line.endswith(
        ("truncated: cut at the limit, it did not stop by itself", "stopped by itself")
    )
    check(*page.audio("speech"), line)
    page.click("#speech .play-pause-button")
    wait_for(
        lambda: page.seen("#speech #time") not in ("", "0:00"), "the second second", seconds=20
    )


def test_base_and_tuned_say_the_same_with_one_seed(page: Page) -> None:
    page.type("text", "Hello there.")
    page.click("#compare input")
    page.click("#generate")
    line, base_line = page.line("speech"), page.line("base")
    page.picture("compared")
    assert seed_of(line) == seed_of(base_line) != ""
    base, tuned = check(*page.audio("base"), base_line), check(*page.audio("speech"), line)
    assert not np.array_equal(base, tuned)
    # The seed that was shown makes the same speech again.
    page.click("#compare input")
    page.click("#speak_tab button.label-wrap")
    page.type("Seed", seed_of(line))
    page.picture("sampling")
    page.click("#generate")
    page.gone("#base")
    assert np.array_equal(check(*page.audio("speech"), line), tuned)


def test_a_dialogue_is_spoken(page: Page) -> None:
    page.click("#dialogue_tab-button")
    page.picture("dialogue_empty")
    page.type("lines", "Alice: Hello there.\nBob: Hi!")
    for number, name in enumerate(("Alice", "Bob"), start=1):
        page.type(f"name_{number}", name)
        page.upload(f"recording_{number}", CORPUS / "wavs" / f"DEMO-000{number}.flac")
    page.click("#generate_dialogue")
    line = page.line("dialogue")
    page.picture("dialogue_spoken")
    spoken_s = float(line.split()[0])
    assert 2 < spoken_s <= 4.2, "two lines of two seconds, a pause, silence trimmed"
    duration_s, _ = page.audio("dialogue")
    assert duration_s == pytest.approx(spoken_s, abs=0.01)
    page.type("lines", "Carol: Hello there.")
    page.click("#generate_dialogue")
    assert "'Carol' has no voice (known: Alice, Bob); add one" in page.error()


def test_an_example_fills_the_fields_and_stop_ends_what_is_spoken(page: Page) -> None:
    page.click("#examples .gallery-item, #examples tbody tr")
    text = "return document.querySelector('#text textarea').value"
    wait_for(lambda: "birch canoe" in page.browser.execute_script(text), "the example")
    page.type("text", "Hello, this goes on. " * 100)
    page.click("#generate")
    page.find("#speech .progress-text, #speech .eta-bar, #speech_line .progress-text")
    page.click("#stop_generate")
    # The next one is spoken at once, and to its end.
    page.type("text", "Hello.")
    page.click("#generate")
    assert page.line("speech")


def test_a_recording_from_the_microphone(page: Page, app_server: Server) -> None:
    """Chromium's fake device beeps; the fault would be a recording in a format that is not read."""
    before = set(app_server.temporary.rglob("*.wav"))
    page.type("text", "Hello there.")
    page.click("#recording [aria-label='Record audio']")
    page.click("#recording .record-button")
    time.sleep(2)
    page.click("#recording .stop-button")
    (recorded,) = wait_for(
        lambda: set(app_server.temporary.rglob("*.wav")) - before, "the recording"
    )
    wait_for(lambda: page.seen("#recording #duration") not in ("", "0:00"), "its waveform")
    assert 1 < audio.probe(recorded).duration_s < 4
    page.click("#generate")
    line = page.line("speech")
    page.picture("recorded")
    check(*page.audio("speech"), line)


def test_errors_are_one_line_in_the_page(page: Page, tmp_path: Path, app_server: Server) -> None:
    log = app_server.log.read_text(encoding="utf-8")
    page.click("#generate")
    page.find(".toast-message-text")
    page.picture("error")
    assert page.error() == "request: text: '' has no letter or digit; give the text to speak"
    page.type("text", "<b>!</b>")
    page.type("voice", "warm")
    (tmp_path / "bad.wav").write_bytes(b"RIFF" + bytes(400))
    page.upload("recording", tmp_path / "bad.wav")
    page.click("#generate")
    assert "voice in words: 'warm' is given beside a recording; give one of the two" in page.error()
    page.type("voice", "")
    page.click("#generate")
    page.find(".toast-message-text")
    page.picture("corrupt")
    assert "'bad.wav' is not readable audio; use WAV, FLAC, MP3, OGG or AIFF" in page.error()
    assert app_server.log.read_text(encoding="utf-8") == log, "no traceback in the terminal either"


def test_the_page_asks_no_other_host(page: Page, app_server: Server) -> None:
    """Fonts, scripts, telemetry: nothing from outside, neither by the browser nor by the server."""
    urls = asked_for(page.browser)
    assert any(url.startswith(app_server.url) for url in urls)
    assert {url for url in urls if not url.startswith((app_server.url, "data:", "blob:"))} == set()
    reached = set(app_server.audit.read_text(encoding="utf-8").splitlines())
    assert "socket.bind 127.0.0.1" in reached
    events = ("bind", "connect", "getaddrinfo")
    assert reached <= {f"socket.{event} 127.0.0.1" for event in events}
