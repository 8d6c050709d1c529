"""Who may ask, how much and how slowly: before any request is understood.

In: ASGI. Out: the same, with its body read, or an error in one line. Every refusal of the server
looks like this, as OpenAI's clients read it (but for a header that never ends: nobody asked yet):

    {"error": {"message": ..., "type": "invalid_request_error", "param": null, "code": null}}"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

Receive = Callable[[], Awaitable[dict[str, Any]]]
OPEN_PATHS = ("/health",)  # what a container's health check asks, without a token
_MAX_JSON_BYTES = 256 << 10
_BODY_TIME_S = 20.0
_BODY_BYTES_PER_S = 100_000  # and for each of so many bytes that it may have a second more
_HEADER_TIME_S = 20.0
_TAKE_TIME_S = 30.0
# Of a socket, bytes: with the megabytes that the system gives it, a slow client's taking would not
# be seen in half a minute.
_SEND_BUFFER = 1 << 17
_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 14\r\nconnection: close\r\n\r\ntoo slow: 20 s"
)


class Refusal(Exception):
    """An answer of this status, which says why in one line."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})

    def answer(self) -> Response:
        return error_answer(self.status, str(self), self.headers)


def error_answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = " ".join(message.split())
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    content = json.dumps(body, ensure_ascii=False) + "\n"
    headers = {"x-content-type-options": "nosniff", **(headers or {})}
    return Response(content, status, headers=headers, media_type="application/json")


class Guard:
    """token: None if everybody may ask. max_upload_bytes: of a form; 0: none are taken."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        token: str | None,
        max_upload_bytes: int,
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"] not in OPEN_PATHS:
                self._check_token(_values(scope, b"authorization"))
            if scope["method"] == "POST":
                receive = _again(await self._body(scope, receive), receive)
        except Refusal as refusal:
            await refusal.answer()(scope, receive, send)
            return
        except ConnectionError:
            return  # nobody is there to be answered
        await self._app(scope, receive, send)

    def _check_token(self, given: list[bytes]) -> None:
        if self._token is None:
            return
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        # In a time that does not tell how many of its letters are right.
        is_right = hmac.compare_digest(token.strip(), self._token)
        if scheme.lower() != b"bearer" or not is_right:
            message = "request: Authorization is missing or wrong; send 'Bearer' and the token"
            raise Refusal(401, message, {"www-authenticate": "Bearer"})

    async def _body(self, scope: dict[str, Any], receive: Receive) -> bytes:
        most = self._most_bytes(scope)
        too_much = Refusal(
            413, f"request: body: is larger than {most} bytes; send less", {"connection": "close"}
        )
        lengths = _values(scope, b"content-length")
        if lengths and int(lengths[0]) > most:
            raise too_much

        async def read() -> bytes:
            body = bytearray()
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_much
                if not message.get("more_body"):
                    return bytes(body)

        limit_s = _BODY_TIME_S + most / _BODY_BYTES_PER_S
        try:
            return await asyncio.wait_for(read(), limit_s)
        except asyncio.TimeoutError:
            message = f"request: body: did not come within {limit_s:.0f} s; send it at once"
            raise Refusal(408, message, {"connection": "close"}) from None

    def _most_bytes(self, scope: dict[str, Any]) -> int:
        """By its content type, which has to be one that is read."""
        types = _values(scope, b"content-type")
        kind = (types[0] if len(types) == 1 else b"").partition(b";")[0].strip().lower()
        if kind == b"application/json":
            return _MAX_JSON_BYTES
        if kind == b"multipart/form-data" and self._max_upload_bytes:
            return self._max_upload_bytes
        message = f"request: Content-Type: {kind.decode('latin-1')!r} is not read"
        raise Refusal(415, f"{message}; send application/json")


def _values(scope: dict[str, Any], name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that has been read, then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> dict[str, Any]:
        return messages.pop() if messages else await receive()

    return next_message


class PatientProtocol(H11Protocol):
    """uvicorn's, which waits for ever: for the end of a header, and for a client to take what was
    written. Who takes nothing for `_TAKE_TIME_S` has left, whatever its socket says."""

    _timer: asyncio.TimerHandle | None = None
    _takes: asyncio.TimerHandle | None = None
    _num_untaken = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._stop_taking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_taking()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_taking()

    def _watch(self) -> None:
        is_asking = self.cycle is None or self.cycle.response_complete
        if not is_asking:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEADER_TIME_S, self._end)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_taking(self) -> None:
        """Nothing is written meanwhile: what waits for the client gets less, or it has left."""
        self._stop_taking()
        self._num_untaken = self.transport.get_write_buffer_size()
        if self._num_untaken:
            self._takes = self.loop.call_later(_TAKE_TIME_S, self._look_at_taking)

    def _look_at_taking(self) -> None:
        if self.transport.get_write_buffer_size() >= self._num_untaken:
            self.transport.abort()
        else:
            self._watch_taking()

    def _stop_taking(self) -> None:
        if self._takes is not None:
            self._takes.cancel()
            self._takes = None

    def _end(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_SLOW)
            self.transport.close()
