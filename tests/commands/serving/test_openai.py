"""OpenAI's own client, unchanged: every format, whole and streamed; what decodes is what the
generator speaks."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import CORPUS
from helpers.serving import MAX_AUDIO_S, Served, lora_folders, served
from helpers.sounds import decoded

from plugins.audio.waveforms import to_pcm16
from plugins.commands.serving.formats import FORMATS
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.running import RunningBatch
from plugins.speaking.sampling import Sampling

openai = pytest.importorskip("openai")
TEXT, SEED = "The harbour lights went out one by one.", 7
TOKEN = "a-token"
VOICE = CORPUS / "wavs" / "DEMO-0002.flac"
TRANSCRIPT = "Glue the sheet."
EXTRA = {"seed": SEED, "temperature": 0.3}
LOSSLESS = ("wav", "flac", "pcm")


@pytest.fixture(scope="module")
def generator(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> HiggsAudioGenerator:
    adapters = lora_folders(tiny, tmp_path_factory.mktemp("loras"), "bob", "eve")
    return HiggsAudioGenerator.from_pretrained(str(tiny), adapters=adapters)


@pytest.fixture(scope="module")
def expected(generator: HiggsAudioGenerator) -> dict[str, np.ndarray]:
    """16 bit samples of each voice, by the generator alone."""
    options: dict[str, Any] = {
        "sampling": Sampling(seed=SEED),
        "max_audio_s": MAX_AUDIO_S,
    }
    samples = {}
    for voice, adapter in (("default", None), ("bob", "bob")):
        generator.use_adapter(adapter)
        samples[voice] = to_pcm16(generator.generate(TEXT, **options).audio)
    generator.use_adapter(None)
    reference = {"reference_audio": VOICE, "reference_text": TRANSCRIPT}
    samples["ann"] = to_pcm16(generator.generate(TEXT, **reference, **options).audio)
    pieces = list(generator.stream(TEXT, **options))
    samples["stream"] = to_pcm16(np.concatenate(pieces))
    return samples


@pytest.fixture(scope="module")
def server(
    generator: HiggsAudioGenerator,
    expected: dict[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """After `expected`, for which the generator had to be free."""
    voices, uploads = tmp_path_factory.mktemp("voices"), tmp_path_factory.mktemp("uploads")
    (voices / "ann.flac").write_bytes(VOICE.read_bytes())
    (voices / "ann.txt").write_text(f"{TRANSCRIPT}\n", encoding="utf-8")
    with served(generator, voices=voices, uploads=uploads, token=TOKEN) as server:
        yield server
    assert list(uploads.iterdir()) == []


@pytest.fixture(scope="module")
def client(server: Served) -> Any:
    return openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0, timeout=600)


def samples_of(data: bytes, format_: str) -> np.ndarray:
    if format_ == "pcm":
        return np.frombuffer(data, dtype="<i2")
    return decoded(data)


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tts-1", "voice": "default", "input": TEXT, "extra_body": EXTRA, **fields}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_whole_file(client: Any, expected: dict[str, np.ndarray], format_: str) -> None:
    answer = client.audio.speech.create(**asked(response_format=format_))
    samples = samples_of(answer.content, format_)
    wanted = expected["stream" if format_ == "pcm" else "default"]
    if format_ in LOSSLESS:
        assert np.array_equal(samples, wanted)
    else:
        assert abs(len(samples) - len(wanted)) < 0.2 * 24_000, "an encoder's delay"
        assert np.abs(samples).max() > 0
    assert answer.response.headers["content-type"] == FORMATS[format_].media_type
    assert answer.response.headers["x-seed"] == str(SEED)
    assert json.loads(answer.response.headers["x-synthetic-speech"])["synthetic"] is True


@pytest.mark.parametrize("format_", FORMATS)
def test_a_stream(client: Any, expected: dict[str, np.ndarray], format_: str) -> None:
    fields = asked(response_format=format_, stream_format="audio")
    with client.audio.speech.with_streaming_response.create(**fields) as answer:
        pieces = list(answer.iter_bytes())
    data = b"".join(pieces)
    if format_ == "wav":
        # Its header was sent before anybody knew how long it would be.
        start = data.index(b"data\xff\xff\xff\xff") + 8
        assert np.array_equal(np.frombuffer(data[start:], dtype="<i2"), expected["stream"])
    samples = samples_of(data, format_)
    if format_ in LOSSLESS:
        assert np.array_equal(samples, expected["stream"])
    else:
        assert abs(len(samples) - len(expected["stream"])) < 0.2 * 24_000


def test_events(client: Any, expected: dict[str, np.ndarray]) -> None:
    fields = asked(response_format="pcm", stream_format="sse")
    with client.audio.speech.with_streaming_response.create(**fields) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    data = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert np.array_equal(samples_of(data, "pcm"), expected["stream"])
    assert done["type"] == "speech.audio.done"
    assert done["truncated"] is True, "the tiny model ends nowhere"
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == len(expected["stream"]) // 960


def test_a_fault_in_the_middle_is_an_event(
    client: Any, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status was sent long before; a stream of bytes just breaks off."""
    step, numbers = RunningBatch.step, count()

    def fail(batch: RunningBatch) -> Any:
        # After the first samples, which come with frame 19.
        if next(numbers) % 30 == 29:
            time.sleep(1)  # the samples before it are on their way
            raise RuntimeError("CUDA out of memory")
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", fail)
    fields = asked(response_format="pcm", stream_format="sse")
    with client.audio.speech.with_streaming_response.create(**fields) as answer:
        lines = [line for line in answer.iter_lines() if line]
    last = json.loads(lines[-1].removeprefix("data: "))
    assert last["type"] == "error"
    assert "memory" not in last["error"]["message"], "that is the log's business"
    numbers = count()
    fields = asked(response_format="pcm")
    with (
        pytest.raises(Exception, match=r"closed|peer|incomplete"),
        client.audio.speech.with_streaming_response.create(**fields) as answer,
    ):
        list(answer.iter_bytes())


@pytest.mark.parametrize(
    ("fields", "voice"),
    [
        ({"voice": "ann"}, "ann"),
        ({"voice": "bob"}, "bob"),
        ({"model": "bob"}, "bob"),
        ({"voice": {"id": "bob"}}, "bob"),
        ({"model": "tiny"}, "default"),
        ({"voice": "base"}, "default"),
        ({"speed": 1.0}, "default"),
    ],
)
def test_a_voice_is_an_adapter_or_a_reference(
    client: Any, expected: dict[str, np.ndarray], fields: dict[str, Any], voice: str
) -> None:
    answer = client.audio.speech.create(**asked(response_format="wav", **fields))
    assert np.array_equal(samples_of(answer.content, "wav"), expected[voice])


def test_a_reference_may_be_uploaded(server: Served, expected: dict[str, np.ndarray]) -> None:
    fields = {"input": TEXT, "reference_text": TRANSCRIPT, "response_format": "wav"}
    fields |= {"seed": str(SEED), "temperature": "0.3"}
    answer = httpx.post(
        f"{server.url}/audio/speech",
        data=fields,
        files={"reference": ("../../a.flac", VOICE.read_bytes())},
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=600,
    )
    assert answer.status_code == 200, answer.text
    assert np.array_equal(samples_of(answer.content, "wav"), expected["ann"])
    cached = server.service.generator.speaker._references
    assert all(Path(path).parent.name.startswith("voices") or "wavs" in path for path, _ in cached)


def test_models_and_voices_are_listed(client: Any, server: Served) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:3] == ["tiny", "bob", "eve"]
    assert client.models.retrieve("bob").id == "bob"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    voices = httpx.get(f"{server.url}/audio/voices", headers=headers).json()["voices"]
    kinds = {voice["id"]: voice["kind"] for voice in voices}
    assert kinds == {
        "default": "base",
        "base": "base",
        "bob": "adapter",
        "eve": "adapter",
        "ann": "reference",
    }


def test_errors_are_openais(client: Any, server: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'bob'"):
        client.audio.speech.create(**asked(voice="bab"))
    with pytest.raises(openai.BadRequestError, match="speed"):
        client.audio.speech.create(**asked(speed=2.0))
    stranger = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.audio.speech.create(**asked())


def test_metrics_and_health(server: Served, client: Any) -> None:
    """After the requests above."""
    client.audio.speech.create(**asked())
    root = server.url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    assert httpx.get(f"{root}/metrics").status_code == 401
    text = httpx.get(f"{root}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    assert values['higgs_audio_requests_total{status="200"}'] >= 1
    assert values["higgs_audio_frames_total"] >= 20
    assert values["higgs_audio_audio_seconds_total"] > 0
    assert values["higgs_audio_speaking"] == values["higgs_audio_waiting"] == 0
    count = values["higgs_audio_request_seconds_count"]
    assert values['higgs_audio_request_seconds_bucket{le="+Inf"}'] == count >= 1
