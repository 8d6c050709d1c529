"""`swift deploy` speaks: a real server process on the loopback, real requests, and what it refuses
to read."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from conftest import CORPUS, ROOT
from helpers.sft import BIN, REGISTER
from helpers.trees import in_memory_mb, silence

from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling

pytestmark = pytest.mark.slow

VOICE = CORPUS / "wavs" / "DEMO-0002.flac"
VOICE_URL = f"data:audio/flac;base64,{base64.b64encode(VOICE.read_bytes()).decode()}"
HELLO = [{"role": "user", "content": "Hello."}]
MAX_TOKENS = 19  # ten frames: 0.4 s
MAX_AUDIO_S = 0.4
START_S = 120


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running `swift deploy`. It would be allowed to fetch from this machine, were
    it not ours."""
    log = tmp_path_factory.mktemp("deploy") / "server.log"
    temporary = log.parent / "tmp"
    temporary.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "model": tiny,
        "model_type": "higgs-audio-v2-3b",
        "external_plugins": REGISTER,
        "host": "127.0.0.1",
        "port": port,
        "verbose": "false",
        "torch_dtype": "float32",
        "served_model_name": "higgs",
        "temperature": 0,
    }
    command = [str(BIN / "swift"), "deploy"]
    for name, value in options.items():
        command += (f"--{name}", str(value))
    env = {**os.environ, "SWIFT_ALLOW_INTERNAL_URL": "1", "OMP_NUM_THREADS": "1"}
    env["TMPDIR"] = str(temporary)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            # As `docker stop` does: only the `swift` command gets the signal. It has become the
            # server.
            left = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(timeout=30)
            assert not any(child.is_running() for child in left)
            assert voices_in(temporary) == []


def voices_in(temporary: Path) -> list[Path]:
    """What a request brought, or was answered with, that lies on the disk still."""
    left = [*temporary.rglob("audio-*"), *temporary.rglob("*.wav")]
    return left + list(temporary.glob("higgs-audio-*"))


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(START_S * 5):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no server after {START_S} s: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def post(server: str, messages: list[dict[str, Any]], **fields: Any) -> tuple[int, Any]:
    """Status and JSON of a chat completion."""
    body = {"model": "higgs", "messages": messages, "max_tokens": MAX_TOKENS, **fields}
    status, answer = post_to(f"{server}/v1/chat/completions", body)
    return status, json.loads(answer)


def post_to(address: str, body: dict[str, Any]) -> tuple[int, bytes]:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post_to_infer(server: str, messages: list[dict[str, Any]]) -> int:
    """Status of MS-SWIFT's other way in, which has no error messages."""
    body = {
        "infer_requests": [{"messages": messages}],
        "request_config": {"max_tokens": MAX_TOKENS},
    }
    return post_to(f"{server}/infer/", body)[0]


def spoken(server: str, messages: list[dict[str, Any]], **fields: Any) -> np.ndarray:
    """The samples (N,) int16 of the answer."""
    status, answer = post(server, messages, **fields)
    assert status == 200, answer
    content = answer["choices"][0]["message"]["content"]
    head, _, payload = content.partition(",")
    assert head == "data:audio/wav;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(payload)), dtype="int16")
    assert rate == 24_000
    return samples


def expected(
    generator: HiggsAudioGenerator, folder: Path, text: str = "Hello.", **options: Any
) -> np.ndarray:
    options = {"sampling": Sampling(temperature=0), "max_audio_s": MAX_AUDIO_S, **options}
    generator.generate(text, **options).save(folder / "expected.wav")
    samples, _ = soundfile.read(folder / "expected.wav", dtype="int16")
    return samples


def with_voice(item: dict[str, Any], text: str = "Hello.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [item, {"type": "text", "text": text}]}]


def test_a_text_is_spoken_as_the_generator_speaks_it(
    server: str, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    assert np.array_equal(spoken(server, HELLO), expected(generator, tmp_path))
    _, answer = post(server, HELLO)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == MAX_TOKENS


def test_a_system_message_is_the_scene(
    server: str, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    quiet = expected(generator, tmp_path, scene_description="Indoor quiet")
    assert not np.array_equal(quiet, expected(generator, tmp_path))
    tagged = "<|scene_desc_start|> Indoor quiet <|scene_desc_end|>"
    for content in ("Indoor quiet", tagged, f"Generate audio following instruction.\n\n{tagged}"):
        assert np.array_equal(
            spoken(server, [{"role": "system", "content": content}, *HELLO]), quiet
        )
    plain = [{"role": "system", "content": "Generate audio following instruction."}, *HELLO]
    assert np.array_equal(spoken(server, plain), expected(generator, tmp_path))


def test_a_voice_in_the_message_is_cloned(
    server: str, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    without_text = expected(generator, tmp_path, reference_audio=VOICE)
    for item in (
        {"type": "audio_url", "audio_url": {"url": VOICE_URL}},
        {"type": "audio", "audio": VOICE_URL},
        {"type": "audio", "audio": VOICE_URL.partition(",")[2]},
    ):
        assert np.array_equal(spoken(server, with_voice(item)), without_text)
    with_text = spoken(
        server, with_voice(item), chat_template_kwargs={"reference_text": "Glue the sheet."}
    )
    reference = expected(
        generator, tmp_path, reference_audio=VOICE, reference_text="Glue the sheet."
    )
    assert np.array_equal(with_text, reference)
    assert not np.array_equal(with_text, without_text)


def test_sampling_of_the_request_is_honoured(
    server: str, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    fields = {"temperature": 0.9, "top_k": 20, "top_p": 0.8}
    first, again, other = (spoken(server, HELLO, **fields, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(first, expected(generator, tmp_path, sampling=Sampling(**fields, seed=1)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"stream": True},
            "request: stream: True is not available: speech is sent whole; leave it out",
        ),
        (
            {"n": 2, "temperature": 1},
            "request: num_return_sequences: 2 is not available for speech; leave it out",
        ),
        (
            {"max_tokens": 9},
            "request: max_new_tokens: 9 is no room for a frame of audio (25 per second); give 10",
        ),
        ({"logprobs": True}, "request: logprobs: True is not available for speech; leave it out"),
        (
            {"messages": [{"role": "user", "content": " "}]},
            "messages[0].content: ' ' is empty; give the text to speak",
        ),
        (
            {"audios": [VOICE_URL]},
            "request: audios: 1 are in no message; put audio into a message's content list",
        ),
        (
            {"chat_template_kwargs": {"reference_txt": "x"}},
            "'reference_txt' is unknown; did you mean 'reference",
        ),
        ({"chat_template_kwargs": {"reference_text": "x"}}, "1 transcripts for 0 clips"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_done_is_one_line(server: str, fields: dict[str, Any], message: str) -> None:
    status, answer = post(server, **{"messages": HELLO, **fields})
    assert status == 400
    assert message in answer["message"]
    assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"reference_txt": "x"}},
        {"chat_template_kwargs": {"reference_text": ["x", "y"]}},
        {"chat_template_kwargs": {"reference_text": 7}},
        {"max_tokens": 9},
        {"n": 2, "temperature": 1},
        {"logprobs": True},
        {"temperature": 1e308, "seed": 2**70},
        {"messages": with_voice({"type": "audio", "audio": VOICE_URL}, " ")},
        {"messages": with_voice({"type": "audio", "audio": VOICE_URL}, "Hello. " * 3000)},
        {"messages": with_voice({"type": "audio", "audio": "data:audio/wav;base64,AAAA"})},
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": ".lock"}]}]},
        {"messages": [{"role": "user", "content": {"type": "audio"}}]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused_or_not_a_voice_is_not_kept(
    server: str, tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    """Voices of refused requests stayed until the server ended, and for good if it was killed."""
    voice = with_voice({"type": "audio", "audio": VOICE_URL})
    status, answer = post(server, **{"messages": voice, **fields})
    assert status in (400, 422), answer
    temporary = Path(psutil.Process(process_of(server)).environ()["TMPDIR"])
    assert voices_in(temporary) == []
    assert str(temporary) not in json.dumps(answer)
    assert str(Path.home()) + "/" not in json.dumps(answer)


def test_no_url_is_fetched(server: str) -> None:
    """MS-SWIFT downloads the media of a request before a template sees it."""
    asked: list[str] = []

    class Voice(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(VOICE.read_bytes())

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Voice) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{elsewhere.server_port}/voice.flac"
        answers = [
            post(server, with_voice({"type": "audio_url", "audio_url": {"url": url}})),
            post(server, with_voice({"type": "audio", "audio": url})),
            post(server, HELLO, audios=[url]),
        ]
        assert post_to_infer(server, with_voice({"type": "audio", "audio": url})) == 500
        elsewhere.shutdown()
    assert asked == []
    for status, answer in answers:
        assert status == 400
        assert f"Refusing to fetch '{url}'" in answer["message"]


def test_no_file_of_the_server_is_read(server: str, tmp_path: Path) -> None:
    """MS-SWIFT reads the paths that a request names, unless it is told from where."""
    assert post_to_infer(server, with_voice({"type": "audio", "audio": VOICE_URL})) == 200
    gone = str(tmp_path / "gone.flac")
    for path in (str(VOICE), gone):
        for item in (
            {"type": "audio_url", "audio_url": {"url": path}},
            {"type": "audio", "audio": path},
        ):
            status, answer = post(server, with_voice(item))
            assert status in (400, 422)
            assert "Refusing to read the media file" in json.dumps(answer)
        assert post(server, HELLO, audios=[path])[0] in (400, 422)
        assert post_to_infer(server, with_voice({"type": "audio", "audio": path})) == 500
    status, answer = post(server, with_voice({"type": "audio", "audio": f"file://{VOICE}"}))
    assert status in (400, 422)
    not_base64 = {"type": "audio_url", "audio_url": {"url": "data:audio/wav,RIFF"}}
    status, answer = post(server, with_voice(not_base64))
    assert status == 400
    assert "is no audio in base64; send data:audio/wav;base64" in answer["message"]
    no_audio = {"type": "audio", "audio": "data:audio/wav;base64,AAAA"}
    status, answer = post(server, with_voice(no_audio))
    assert status == 400
    assert "request: audio: " in answer["message"]


def test_an_upload_that_would_fill_the_memory_is_refused(server: str, tmp_path: Path) -> None:
    """105 kB of OGG took 5.8 GB and 35 s, for the asking."""
    fields = {"sample_rate_hz": 655_350, "num_channels": 8}
    bomb = base64.b64encode(silence(tmp_path / "bomb.flac", 20, **fields).read_bytes()).decode()
    with in_memory_mb(150, process_of(server)):
        status, answer = post(
            server, with_voice({"type": "audio", "audio": f"data:audio/flac;base64,{bomb}"})
        )
    assert status == 400
    assert (
        "has too high a sample rate (655350 Hz, more than 192000); resample it to 24 kHz"
        in answer["message"]
    )


def process_of(server: str) -> int:
    """The process that serves: the last started of those with this port."""
    port = server.rpartition(":")[2].encode()
    serving = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if port in path.read_bytes().split(b"\0"):
            serving.append(int(path.parent.name))
    return max(serving)


def test_the_server_goes_on_after_an_error(
    server: str, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    assert post(server, HELLO, stream=True)[0] == 400
    assert np.array_equal(spoken(server, HELLO), expected(generator, tmp_path))
