"""Who takes nothing has left, whatever its socket says; who takes little is served."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from helpers.app import wait_for
from helpers.serving import served

from plugins.commands.serving import answers, guard
from plugins.commands.serving.server import config
from plugins.inference import HiggsAudioGenerator

SIZE = 16 << 20  # more than the buffers of sockets hold
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def _whole(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", str(SIZE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


async def _streamed(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", str(SIZE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    piece = bytes(1 << 16)
    for start in range(0, SIZE, len(piece)):
        is_last = start + len(piece) == SIZE
        await send({"type": "http.response.body", "body": piece, "more_body": not is_last})


@contextmanager
def listening(app: Any) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """A server, and a client that has asked it."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        server = uvicorn.Server(config(app, num_connections=10, drain_s=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
        thread.start()
        try:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
                client.connect(port.getsockname())
                client.sendall(REQUEST)
                yield server, client
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("app", [_whole, _streamed])
def test_who_takes_nothing_has_left(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole file nobody waited for its last byte: file and connection stayed for ever, and so
    many may there not be."""
    monkeypatch.setattr(guard, "_TAKE_TIME_S", 0.2)
    with listening(app) as (server, _):
        wait_for(lambda: server.server_state.connections, "the connection")
        wait_for(lambda: not server.server_state.connections, "its end", seconds=10)


@pytest.mark.parametrize("app", [_whole, _streamed])
def test_who_takes_little_is_served(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_TAKE_TIME_S", 1.5)
    with listening(app) as (_, client):
        answer = bytearray()
        started_s = time.monotonic()
        while len(answer) < SIZE:
            piece = client.recv(1 << 20)
            assert piece, f"it broke off after {len(answer)} bytes"
            answer += piece
            if time.monotonic() < started_s + 4.0:
                time.sleep(0.05)
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_an_answer_that_the_end_of_the_server_cuts_is_no_200(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its time to drain is over, uvicorn cancels what is still answered."""
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    body = b'{"input": "Hello.", "voice": "default"}'
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.sleep(3600, {})

    async def send(message: Any) -> None:
        pytest.fail("it was answered")

    kind = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/audio/speech", "headers": kind}
    with served(generator, max_audio_s=60.0) as server:
        engine = server.service.engine

        async def cut() -> None:
            answering = asyncio.ensure_future(
                answers.SpeechRoute(server.service)(scope, receive, send)
            )
            while not engine.num_speaking:
                await asyncio.sleep(0.01)
            answering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answering

        asyncio.run(cut())
        wait_for(lambda: not engine.num_speaking, "the end of the row")
        assert 'requests_total{status="gone"} 1' in server.service.metrics.text({})
