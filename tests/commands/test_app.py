"""`higgs-audio app`: the real server with a tiny model, in a real browser and over plain HTTP."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import CORPUS, ROOT, corpus_rows, write_jsonl
from helpers.sft import sft
from helpers.trees import in_memory_mb, silence

from plugins.audio import waveforms as audio
from plugins.commands.app import run
from plugins.commands.app.fields import line_of, lines_of, sampling_of, voice_of, voices_of
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import Voice

VOICE = CORPUS / "wavs" / "DEMO-0002.flac"
# Everything that the server connects to, asks the name of, or listens on.
AUDITED = """
import signal, sys
from plugins.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell has put into the background ignores Ctrl-C
log = open(sys.argv[1], "a", buffering=1)
def hook(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo"):
        address = args[0] if event == "socket.getaddrinfo" else args[1]
        log.write(f"{event} {address[0] if isinstance(address, tuple) else address}\\n")
sys.addaudithook(hook)
sys.exit(main(sys.argv[2:]))
"""
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason='needs gradio: pip install -e ".[app]"'
)


# --- what the fields say ---


def test_lines_name_their_speakers() -> None:
    assert lines_of("Alice: Hello: you!\n\n Bob :Hi\n") == [
        {"speaker": "Alice", "text": "Hello: you!"},
        {"speaker": "Bob", "text": "Hi"},
    ]
    for line in ("Hello!", ": Hello!"):
        with pytest.raises(
            UserError, match=r"line 2: speaker: '.*Hello!' is missing; write `Alice: Hello`"
        ):
            lines_of(f"Alice: Hi\n{line}")


def test_voices_have_a_name_and_a_recording_each() -> None:
    nobody = ("", None, "")
    assert voices_of([nobody, ("Alice", None, "")]) is None, "the model chooses"
    assert voices_of([("Alice ", "a.wav", " Hi. "), ("Bob", "b.wav", ""), nobody]) == {
        "Alice": Voice("a.wav", "Hi."),
        "Bob": Voice("b.wav"),
    }
    with pytest.raises(
        UserError, match="voice 2: name: '' is empty; write the name that the lines use"
    ):
        voices_of([nobody, ("", "b.wav", "")])
    with pytest.raises(
        UserError, match="voice 1: recording: None is missing; add the recording of this transcript"
    ):
        voices_of([("Alice", None, "Hi.")])
    with pytest.raises(UserError, match="voice 2: name: 'Alice' is there twice"):
        voices_of([("Alice", "a.wav", ""), ("Alice", "b.wav", "")])


def test_a_voice_is_given_once() -> None:
    assert voice_of(" ", None, " ") == dict.fromkeys(
        ("voice_description", "reference_audio", "reference_text")
    )
    with pytest.raises(
        UserError, match="voice in words: 'warm' is given beside a recording; give one of the two"
    ):
        voice_of("warm", "a.wav", "")


def test_a_seed_left_empty_is_drawn_and_told() -> None:
    seeds = {sampling_of(0.3, 50, 0.95, None).seed for _ in range(5)}
    assert len(seeds) == 5
    assert None not in seeds
    sampling = sampling_of(0, 50, 0.95, 7)
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.0, 50, 7)
    speech = Speech(
        np.zeros(24_000, np.float32), 24_000, torch.zeros(8, 25), stopped=True, text="", took_s=0.5
    )
    assert line_of(speech, 7) == "1.00 s · real-time factor 0.50 · seed 7 · stopped by itself"


# --- the command ---


def options(**changed: Any) -> Namespace:
    given = {
        "model": "x",
        "adapters": None,
        "codec": None,
        "device": None,
        "host": "127.0.0.1",
        "port": 0,
    }
    return Namespace(**{**given, "max_upload_mb": 1, "max_audio_s": 40.0, **changed})


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'gradio.* is not installed; pip install -e "\.\[app\]"'):
        run(options())


@needs_gradio
def test_a_port_is_tried_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError,
            match=rf"'127.0.0.1:{port}' cannot be served on \(Address already in use\); give",
        ):
            run(options(port=port))
    for wrong in ({"port": 70_000}, {"host": "256.0.0.1"}):
        with pytest.raises(UserError, match="cannot be served on"):
            run(options(**wrong))


class Server:
    """`higgs-audio app` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.audit, self.temporary, self.log = (
            folder / "audit.txt",
            folder / "tmp",
            folder / "log.txt",
        )
        self.temporary.mkdir()
        command = [sys.executable, "-c", AUDITED, str(self.audit), "app", "--port", "0", *arguments]
        env = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        del env["HF_HUB_OFFLINE"]  # what it asks the network for should be seen
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        self.url = wait_for(self._address, "the server", seconds=90)

    def _address(self) -> str | None:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        _, _, rest = self.log.read_text(encoding="utf-8").partition("http://")
        return f"http://{rest.split()[0]}" if rest.endswith("\n") else None

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> float:
        """Seconds that it took."""
        started_s = time.monotonic()
        self.process.send_signal(with_signal)
        try:
            assert self.process.wait(timeout=60) == 0
        finally:
            self.process.kill()
        return time.monotonic() - started_s


def wait_for(found: Callable[[], Any], what: str, *, seconds: float = 20) -> Any:
    """What `found` returns, as soon as that is true."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if value := found():
            return value
        time.sleep(0.1)
    pytest.fail(f"{what} did not come in {seconds} s")


@pytest.fixture(scope="module")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA folder trained hard enough to speak otherwise than its base."""
    folder = tmp_path_factory.mktemp("lora")
    sft(
        tiny, write_jsonl(folder / "train.jsonl", corpus_rows(2)), folder / "out", tuner_type="lora",
        learning_rate=3e-2, max_steps=3, per_device_train_batch_size=2, target_modules="all-linear",
    )  # fmt: skip
    return folder / "out" / "checkpoint-3"


@pytest.fixture(scope="module")
def server(tiny: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('needs gradio: pip install -e ".[app]"')
    server = Server(
        tmp_path_factory.mktemp("app"), "--model", str(tiny), "--adapters", str(lora),
        "--max_upload_mb", "1", "--max_audio_s", "2",
    )  # fmt: skip
    yield server
    server.end(signal.SIGTERM)
    assert list(server.temporary.iterdir()) == []


# --- over HTTP: whatever a page could never send ---


class Client:
    """Sends to an event what nobody typed: any value for any field. Gradio's own client obeys the
    page's rules."""

    def __init__(self, server: Server) -> None:
        import httpx

        self.http = httpx.Client(base_url=f"{server.url}/gradio_api", timeout=60)
        self.config = httpx.get(f"{server.url}/config").json()
        components = {each["id"]: each["props"] for each in self.config["components"]}
        self.events = {}
        for event in self.config["dependencies"]:
            button = components[event["targets"][0][0]]["elem_id"]
            self.events[button] = (event["id"], [components[each] for each in event["inputs"]])

    def join(self, button: str, **fields: Any) -> str:
        """Fields by `elem_id`, or label. The others are as the page shows them at first. The
        session's name."""
        index, inputs = self.events[button]
        names = [each.get("elem_id") or each["label"] for each in inputs]
        assert not set(fields) - set(names), names
        data = [
            fields.get(name, each.get("value")) for name, each in zip(names, inputs, strict=True)
        ]
        data = [
            "" if value is None and "lines" in each else value
            for value, each in zip(data, inputs, strict=True)
        ]
        session = os.urandom(6).hex()
        body = {"data": data, "fn_index": index, "session_hash": session}
        assert self.http.post("/queue/join", json=body).status_code == 200
        return session

    def events_of(self, session: str) -> Iterator[dict[str, Any]]:
        with self.http.stream("GET", "/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] in ("process_completed", "close_stream"):
                        return

    def call(self, button: str, **fields: Any) -> dict[str, Any]:
        """The last message: what was spoken, or why it was not."""
        return list(self.events_of(self.join(button, **fields)))[-1]

    def upload(self, name: str, content: bytes) -> Any:
        return self.http.post("/upload", files={"files": (name, content)})

    def recording(self, name: str, content: bytes) -> dict[str, Any]:
        return file_data(self.upload(name, content).json()[0])


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def wav(samples: np.ndarray, rate: int = 24_000) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server)


SHORT = {"text": "Hello.", "Longest speech, s": 0.4}


def test_what_is_played_is_what_the_generator_says(client: Client, tiny: Path, lora: Path) -> None:
    """Also what the refusals below are worth: the same request with an upload is spoken, and the
    upload is heard."""
    heard, generator = [], HiggsAudioGenerator.from_pretrained(str(tiny), adapters=str(lora))
    upload = client.recording("voice.flac", VOICE.read_bytes())
    for voice, reference in ((None, None), (upload, VOICE)):
        spoken = client.call("generate", **SHORT, Seed=1, recording=voice)
        assert spoken["success"], spoken
        (path,) = [
            each["path"]
            for each in spoken["output"]["data"]
            if isinstance(each, dict) and "path" in each
        ]
        samples, rate = sf.read(io.BytesIO(client.http.get(f"/file={path}").content))
        assert rate == 24_000
        same = {"sampling": Sampling(seed=1), "max_audio_s": 0.4, "reference_audio": reference}
        np.testing.assert_allclose(
            samples, generator.generate("Hello.", **same).audio, rtol=0, atol=1e-4
        )
        heard.append(samples)
    assert not np.array_equal(*heard)


@pytest.mark.parametrize("recording", [
    file_data(str(VOICE)),
    {"path": str(VOICE)},
    {"path": str(VOICE), "meta": {"_type": "other"}},
    file_data("/etc/passwd"),
    file_data("tests/../tests/corpus/wavs/DEMO-0002.flac"),
    file_data(f"file://{VOICE}"),
    str(VOICE),
])  # fmt: skip
def test_no_recording_is_named(client: Client, recording: Any) -> None:
    """A file of this machine, even one that would serve as a voice, is not heard."""
    answer = client.call("generate", **SHORT, recording=recording)
    assert not answer["success"]
    assert "data" not in answer["output"]


def test_no_recording_is_fetched(client: Client, server: Server) -> None:
    """Gradio would download it, past the size limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        for host in ("127.0.0.1", "example.com"):
            address = f"http://{host}:{listener.getsockname()[1]}/voice.wav"
            for named in (file_data(address), {**file_data(address), "url": address}):
                answer = client.call("generate", **SHORT, recording=named)
                assert not answer["success"]
                assert answer["output"]["error"] == "recordings are uploaded, not named"
        with pytest.raises(TimeoutError):
            listener.accept()
    assert "example.com" not in server.audit.read_text(encoding="utf-8")


def test_no_file_of_this_machine_is_served(client: Client, tiny: Path) -> None:
    files = ("/etc/passwd", ROOT / "pyproject.toml", "pyproject.toml", tiny / "config.json", VOICE)
    for path in files:
        assert client.http.get(f"/file={path}").status_code in (403, 404), path


def test_requests_stand_in_one_queue(client: Client) -> None:
    """Both tabs use one model: a dialogue begins when the speech before it has ended."""
    first = client.join("generate", text="Hello. " * 100, **{"Longest speech, s": 2})
    spans: dict[str, list[float]] = {}

    def follow(session: str) -> None:
        for message in client.events_of(session):
            if message["msg"] in ("process_starts", "process_completed"):
                spans.setdefault(session, []).append(time.monotonic())
                assert message.get("success", True), message

    followers = [threading.Thread(target=follow, args=(first,))]
    followers[0].start()
    wait_for(lambda: first in spans, "the first request")
    second = client.join(
        "generate_dialogue", lines="Alice: Hi.\nBob: Ho.", **{"Longest speech, s": 0.4}
    )
    followers.append(threading.Thread(target=follow, args=(second,)))
    followers[1].start()
    for follower in followers:
        follower.join()
    assert spans[second][0] >= spans[first][1] - 0.1, spans
    for button in ("generate", "generate_dialogue"):
        body = {"data": [], "fn_index": client.events[button][0]}
        for path in ("/run/predict", "/api/predict", "/run/speak", "/api/speak"):
            assert client.http.post(path, json=body).status_code in (404, 405), path
    assert client.http.get("/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_limits_hold_for_any_client(client: Client) -> None:
    assert client.upload("long.wav", bytes((1 << 20) + 1)).status_code == 413
    answer = client.call("generate", text="Hello.", **{"Longest speech, s": 600})
    assert not answer["success"]
    assert "2" in answer["output"]["error"]


@pytest.mark.parametrize(("name", "content", "error"), [
    ("bad.wav", b"RIFF" + bytes(400), "is not readable audio; use WAV, FLAC, MP3 or OGG"),
    ("short.wav", wav(np.ones(12_000) / 3), "lasts 0.5 s, less than 1; give 3 to 15 seconds of clear speech"),
    ("long.wav", wav(np.ones(31 * 8000) / 3, 8000), "lasts 31.0 s, more than 30; give 3 to 15"),
    ("silent.wav", wav(np.zeros(48_000)), "is silent; give 3 to 15"),
])  # fmt: skip
def test_a_recording_without_a_voice_is_told_by_its_name(
    client: Client, name: str, content: bytes, error: str
) -> None:
    answer = client.call("generate", **SHORT, recording=client.recording(name, content))
    assert not answer["success"]
    assert (
        answer["output"]["error"]
        .replace("&#x27;", "'")
        .startswith(f"request: reference_audio: '{name}' {error}")
    )


def test_an_upload_that_would_fill_the_memory_is_refused(
    client: Client, server: Server, tmp_path: Path
) -> None:
    """400 kB, within the limit of uploads: 420 MB of floats, and those held several times."""
    bomb = silence(tmp_path / "bomb.flac", 20, sample_rate_hz=655_350, num_channels=8).read_bytes()
    with in_memory_mb(150, server.process.pid):
        answer = client.call("generate", **SHORT, recording=client.recording("bomb.flac", bomb))
    assert not answer["success"]
    assert "has too high a sample rate (655350 Hz, more than 192000)" in answer["output"]["error"]


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("needs selenium: pip install selenium")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    chrome = webdriver.ChromeOptions()
    chrome.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1280,1200", "use-fake-ui-for-media-stream",
        "use-fake-device-for-media-stream", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        chrome.add_argument(f"--{flag}")
    chrome.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=chrome, service=webdriver.ChromeService(chromedriver))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


class Page:
    """The page as a user sees it."""

    def __init__(self, browser: Any, url: str, pictures: Path) -> None:
        self.browser, self.pictures = browser, pictures
        browser.get(url)
        self.find("#text textarea")

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return wait_for(
            lambda: next(iter(self.browser.find_elements(By.CSS_SELECTOR, selector)), None),
            selector,
        )

    def type(self, name: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.find(f"#{name} textarea, #{name} input, input[aria-label={name}]")
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(Keys.BACKSPACE, text)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def upload(self, name: str, path: Path) -> None:
        self.find(f"#{name} input[type=file]").send_keys(str(path))
        self.find(f"#{name} [data-testid^=waveform]")

    def picture(self, name: str) -> None:
        """For eyes: in pytest's temporary folder."""
        time.sleep(0.3)  # what fades in
        self.browser.save_screenshot(str(self.pictures / f"{name}.png"))

    def error(self) -> str:
        """The message that is shown, which is then closed."""
        text = str(wait_for(lambda: self.find(".toast-message-text").text, "the words of an error"))
        self.click("[data-testid=toast-close]")
        self.gone(".toast-body")
        return text

    def gone(self, selector: str) -> None:
        script = f"return !document.querySelector('{selector}')"
        wait_for(lambda: self.browser.execute_script(script), f"the end of {selector}")

    def line(self, name: str) -> str:
        """The one line about the speech; while it is spoken, and as that fades, progress stands in
        its place."""
        told = f"#{name}_line"
        wait_for(
            lambda: re.fullmatch(r"\d+\.\d\d s · .*", self.find(told).text),
            f"the line of {name}",
            seconds=30,
        )
        return self.find(told).text

    def audio(self, name: str) -> tuple[float, bytes]:
        """Seconds that the browser's own decoder finds in what the player offers to download, and
        its bytes."""
        link = self.find(f"#{name} a[download]").get_attribute("href")
        script = """
            const done = arguments[1], audio = new Audio(arguments[0]);
            audio.onloadedmetadata = async () => {
                const bytes = new Uint8Array(await (await fetch(arguments[0])).arrayBuffer());
                done([audio.duration, Array.from(bytes)]);
            };
            audio.onerror = () => done([-1, []]);"""
        duration_s, content = self.browser.execute_async_script(script, link)
        return duration_s, bytes(content)


@pytest.fixture
def page(browser: Any, server: Server, tmp_path: Path) -> Page:
    return Page(browser, server.url, tmp_path)


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
    wait_for(lambda: page.find("#speech #time").text != "0:00", "the second second", seconds=5)


def test_base_and_tuned_say_the_same_with_one_seed(page: Page) -> None:
    page.type("text", "Hello there.")
    page.click("#compare input")
    page.click("#generate")
    line, base_line = page.line("speech"), page.line("base")
    page.picture("compared")
    assert seed_of(line) == seed_of(base_line) != ""
    base, tuned = (
        check(*page.audio(name), told) for name, told in (("base", base_line), ("speech", line))
    )
    assert not np.array_equal(base, tuned)
    # The seed that was told makes the same speech again.
    page.click("#compare input")
    page.click("button.label-wrap")
    page.type("Seed", seed_of(line))
    page.picture("sampling")
    page.click("#generate")
    page.gone("#base")
    assert np.array_equal(check(*page.audio("speech"), line), tuned)


def test_a_dialogue_is_spoken(page: Page) -> None:
    page.click("button[role=tab]:nth-of-type(2)")
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


def test_a_recording_from_the_microphone(page: Page, server: Server) -> None:
    """Chromium's fake device beeps; the fault would be a recording in a format that is not read."""
    before = set(server.temporary.rglob("*.wav"))
    page.type("text", "Hello there.")
    page.click("#recording [aria-label='Record audio']")
    page.click("#recording .record-button")
    time.sleep(2)
    page.click("#recording .stop-button")
    (recorded,) = wait_for(lambda: set(server.temporary.rglob("*.wav")) - before, "the recording")
    wait_for(lambda: page.find("#recording #duration").text != "0:00", "its waveform")
    assert 1 < audio.probe(recorded).duration_s < 4
    page.click("#generate")
    line = page.line("speech")
    page.picture("recorded")
    check(*page.audio("speech"), line)


def test_errors_are_one_line_in_the_page(page: Page, tmp_path: Path, server: Server) -> None:
    log = server.log.read_text(encoding="utf-8")
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
    assert "'bad.wav' is not readable audio; use WAV, FLAC, MP3 or OGG" in page.error()
    assert server.log.read_text(encoding="utf-8") == log, "no traceback in the terminal either"


def test_the_page_asks_no_other_host(page: Page, server: Server) -> None:
    """Fonts, scripts, telemetry: nothing from outside, neither by the browser nor by the server."""
    messages = [
        json.loads(each["message"])["message"] for each in page.browser.get_log("performance")
    ]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    urls = {each["request"]["url"] for each in sent if not each["documentURL"].startswith("chrome")}
    assert any(url.startswith(server.url) for url in urls)
    assert {url for url in urls if not url.startswith((server.url, "data:", "blob:"))} == set()
    seen = server.audit.read_text(encoding="utf-8").splitlines()
    assert "socket.bind 127.0.0.1" in seen
    assert set(seen) <= {
        f"socket.{event} 127.0.0.1" for event in ("bind", "connect", "getaddrinfo")
    }


# --- the end ---


@needs_gradio
def test_ctrl_c_ends_it_while_it_speaks(tiny: Path, tmp_path: Path) -> None:
    """And nothing of what was uploaded stays behind. Another host than this machine's own is warned
    of."""
    server = Server(tmp_path, "--model", str(tiny), "--host", "0.0.0.0")
    log = server.log.read_text(encoding="utf-8")
    assert (
        "warning: --host 0.0.0.0: everybody who reaches this machine can use the model, there is no pass"
        in log
    )
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    client = Client(server)
    client.recording("voice.flac", VOICE.read_bytes())
    assert list(server.temporary.rglob("voice.flac"))
    session = client.join("generate", text="Hello. " * 1000)
    for message in client.events_of(session):
        if message["msg"] == "process_starts":
            break
    time.sleep(0.5)
    assert server.end() < 10
    assert list(server.temporary.iterdir()) == []
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
