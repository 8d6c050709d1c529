"""Voices of the folder come, go and are no good while the server speaks."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
from conftest import CORPUS
from helpers.serving import Served, served

from plugins.audio.codec import Codec
from plugins.inference import HiggsAudioGenerator

VOICE = (CORPUS / "wavs" / "DEMO-0002.flac").read_bytes()
LONG = "One sentence that is spoken. " * 12  # two lines


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    (folder / "ann.flac").write_bytes(VOICE)
    return folder


@pytest.fixture
def server(generator: HiggsAudioGenerator, folder: Path, tmp_path: Path) -> Iterator[Served]:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with served(generator, voices=folder, uploads=uploads, max_audio_s=0.6) as server:
        yield server
    assert list(uploads.iterdir()) == []


def ask(server: Served, voice: str, text: str = "Hello.") -> httpx.Response:
    body = {"input": text, "voice": voice, "response_format": "wav", "seed": 1}
    return httpx.post(f"{server.url}/audio/speech", json=body, timeout=300)


def test_a_voice_may_go_while_it_is_cloned(
    server: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read again for the second line: that request, and all others, were lost."""
    whole = ask(server, "ann", LONG)
    speaker = server.service.generator.speaker
    line = speaker.line

    def remove(script: Any, said: Any, max_audio_s: float) -> Any:
        if said:
            (folder / "ann.flac").unlink()
        return line(script, said, max_audio_s)

    monkeypatch.setattr(speaker, "line", remove)
    answer = ask(server, "ann", LONG)
    assert not (folder / "ann.flac").exists()
    assert answer.status_code == 200, answer.text
    assert answer.content == whole.content
    assert ask(server, "ann").status_code == 404


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.txt", b"\xff\xfe\xfa"),
        ("bad.wav", b"no sound"),
        ("bad.wav", b""),
        ("bad.wav", VOICE[:2000]),
    ],
)
def test_a_voice_that_is_no_good_is_its_owners_fault(
    server: Served, folder: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    """And no other voice suffers from it. The client is not told where it lies; the log is."""
    (folder / "bad.wav").write_bytes(VOICE)
    (folder / name).write_bytes(content)
    answer = ask(server, "bad")
    assert answer.status_code == 500
    assert len(answer.text.splitlines()) == 1
    assert "'bad'" in answer.text
    assert str(folder) not in answer.text
    assert name in caplog.text
    assert ask(server, "ann").status_code == 200
    names = httpx.get(f"{server.url}/audio/voices").json()["voices"]
    assert {"ann", "bad"} <= {voice["id"] for voice in names}


def test_a_folder_is_no_voice(server: Served, folder: Path) -> None:
    (folder / "sub.wav").mkdir()
    assert ask(server, "sub").status_code == 404
    names = httpx.get(f"{server.url}/audio/voices").json()["voices"]
    assert "sub" not in {voice["id"] for voice in names}


def test_a_new_voice_is_encoded_once(
    server: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask for it before it is."""
    encoded: list[str] = []
    encode = Codec.encode_file

    def slow(codec: Codec, path: str) -> Any:
        encoded.append(path)
        time.sleep(0.3)
        return encode(codec, path)

    monkeypatch.setattr(Codec, "encode_file", slow)
    (folder / "new.flac").write_bytes(VOICE)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(server, "new"), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert encoded == [str(folder / "new.flac")]


def upload(server: Served, recording: bytes) -> httpx.Response:
    return httpx.post(
        f"{server.url}/audio/speech",
        data={"input": "Hello."},
        files={"reference": recording},
        timeout=300,
    )


def test_a_recording_that_is_too_long_is_not_encoded(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute of next to nothing is a few KB, and hours are not many more."""
    monkeypatch.setattr(Codec, "encode_file", lambda *_: pytest.fail("it is encoded"))
    noise = np.random.default_rng(0).integers(-1, 2, 60 * 24_000).astype(np.int16)
    file = io.BytesIO()
    sf.write(file, noise, 24_000, format="FLAC")
    assert len(file.getvalue()) < 1 << 20
    answer = upload(server, file.getvalue())
    assert answer.status_code == 400
    assert "60.0 s" in answer.text
    assert "/tmp" not in answer.text


def test_what_waits_too_long_to_be_encoded_is_not(
    generator: HiggsAudioGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings are encoded one after the other, and their clients' time is over meanwhile."""
    encoded: list[str] = []

    def slow(codec: Codec, path: str) -> Any:
        encoded.append(path)
        time.sleep(3.0)  # on a busy machine the others may come late
        return encode(codec, path)

    encode = Codec.encode_file
    monkeypatch.setattr(Codec, "encode_file", slow)
    with served(generator, uploads=tmp_path, time_limit_s=0.7) as server:
        threads = ThreadPoolExecutor(3)
        answers = list(threads.map(lambda _: upload(server, VOICE), range(3)))
    threads.shutdown()
    assert [answer.status_code for answer in answers].count(504) >= 2
    assert len(encoded) == 1
    assert threading.active_count() < 50
