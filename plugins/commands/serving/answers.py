"""A speech request -> its answer: whole, in pieces, or as events. From its place in the queue to
its last byte, and no frame longer than its client stays."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request

from plugins.audio.marks import Mark
from plugins.commands.serving.asked import Asked, asked_of, fields_of_form, fields_of_json
from plugins.commands.serving.engine import Busy, Closed, Ended, Engine, Order, TooLate
from plugins.commands.serving.formats import FORMATS, Encoder
from plugins.commands.serving.guard import Receive, Refusal
from plugins.commands.serving.metrics import Metrics
from plugins.commands.serving.voices import Unheard, Unknown, Voices
from plugins.data.dialogue import AudioClip
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking import voices
from plugins.speaking.line import Line
from plugins.speaking.voices import Script, Voice

logger = logging.getLogger(__name__)

_UPLOAD = "reference"  # the field of a form that holds a recording


@dataclass
class Service:
    """What all requests share. uploads: the folder for what clients send; None: they may not."""

    generator: HiggsAudioGenerator
    engine: Engine
    voices: Voices
    max_chars: int
    max_audio_s: float
    uploads: Path | None = None
    logs_texts: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    # Recordings are encoded one at a time: on a CPU one takes as long as it lasts.
    encoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoder"))
    # Held while a voice of the folder is encoded: the others who ask for it wait for its codes.
    hears: threading.Lock = field(default_factory=threading.Lock)


class Gone(Exception):
    """The client left."""


class SpeechRoute:
    """ASGI: `POST /v1/audio/speech`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        answer = _Answer(self._service, send)
        status: int | str = "gone"  # also if the server ends before the answer
        try:
            with self._service.engine.place():
                asked = await _read(Request(scope, receive), self._service)
                await _while_there(answer.speak(*asked), receive)
            status = 200
        except Gone:
            pass
        except Exception as error:
            refusal = _refusal_of(error)
            status = refusal.status
            if not answer.has_begun:
                await refusal.answer()(scope, receive, send)
        finally:
            self._service.metrics.count(status)
            answer.log(status)


async def _while_there(answer: Any, receive: Receive) -> None:
    """Raises Gone as soon as the client is; then `answer` has been cancelled."""
    speaking = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({speaking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not speaking.done():
            raise Gone
        await speaking
    finally:
        for task in (speaking, leaving):
            task.cancel()
        await asyncio.gather(speaking, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, service: Service) -> tuple[Asked, bytes | None]:
    """What is asked, and the recording that came with it."""
    upload = None
    if request.headers["content-type"].lower().startswith("multipart/"):
        texts: dict[str, str] = {}
        async with request.form(max_files=1, max_fields=20) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    texts[name] = value
                elif name == _UPLOAD:
                    upload = await value.read()
                else:
                    raise Refusal(400, f"request: {name[:100]!r} takes no file; send {_UPLOAD!r}")
        fields = fields_of_form(texts)
    else:
        fields = fields_of_json(await request.body())
    return asked_of(fields, max_chars=service.max_chars), upload


class _Answer:
    """One request's, while it is made and sent."""

    def __init__(self, service: Service, send: Any) -> None:
        self._service, self._send = service, send
        self._id = uuid.uuid4().hex[:12]
        self._began_s = time.monotonic()
        self._asked: Asked | None = None
        self._mark: Mark | None = None
        self._num_samples = 0
        self.has_begun = False

    async def speak(self, asked: Asked, upload: bytes | None) -> None:
        self._asked = asked
        service = self._service
        # Beside the loop, and what clients record one after the other.
        pool = None if upload is None else service.encoders
        loop = asyncio.get_running_loop()
        order, line = await loop.run_in_executor(pool, self._order, upload)
        del upload  # megabytes, that would stay until the last byte is sent
        async with aclosing(service.engine.speak(order, line)) as items:
            if asked.stream is None:
                await self._whole(items)
            else:
                await self._pieces(items)
        self._service.metrics.spoken(self._audio_s, time.monotonic() - self._began_s)

    def log(self, status: int | str) -> None:
        """One line; the text only if the server was asked to."""
        took_s = time.monotonic() - self._began_s
        line = f"speech {self._id}: {status}, {self._audio_s:.2f} s spoken in {took_s:.2f} s"
        if self._asked is not None:
            line += f", {len(self._asked.text)} characters, voice {self._asked.voice[:60]!r}"
            if self._service.logs_texts:
                line += f": {self._asked.text!r}"
        logger.info(line)

    @property
    def _audio_s(self) -> float:
        return self._num_samples / self._service.generator.codec.sample_rate_hz

    # What is spoken.

    def _order(self, upload: bytes | None) -> tuple[Order, Line]:
        asked, service = self._asked, self._service
        assert asked is not None
        if time.monotonic() - self._began_s > service.engine.time_limit_s:
            raise TooLate  # it waited behind other recordings
        model = service.voices.models()[0]
        choice = service.voices.choose(asked.model or model, asked.voice)
        maker = service.generator.maker(choice.adapter)
        self._mark = None if maker is None else maker.mark()
        if upload is not None and choice.voice is not None:
            message = "request: reference: is given beside a voice that has one; give one of them"
            raise Refusal(400, message)
        if asked.transcript is not None and upload is None:
            raise Refusal(400, "request: reference_text: has no reference; send a recording")
        # First without a voice: what is wrong with its text is the client's own fault.
        script = self._script(choice.adapter, None)
        if upload is not None:
            script = self._script_of_upload(choice.adapter, upload)
        elif choice.voice is not None:
            script = self._script_of_folder(choice.adapter, choice.voice)
        in_pieces = asked.stream is not None
        order = Order(script, asked.sampling, choice.adapter, service.max_audio_s, in_pieces)
        return order, service.engine.first_line(order)

    def _script(self, adapter: str | None, voice: Voice | None) -> Script:
        assert self._asked is not None
        settings = self._service.generator.settings_of(adapter)
        chosen = () if voice is None else (voice,)
        return voices.Request(settings, self._asked.scene, chosen).script(self._asked.text)

    def _script_of_folder(self, adapter: str | None, voice: Voice) -> Script:
        """With the recording in codes: its file may change, or go, before the last line."""
        assert self._asked is not None
        with self._service.hears:
            try:
                script = self._script(adapter, voice)
                whole = self._service.generator.speaker.heard(script.whole)
            except UserError as error:
                raise Unheard(self._asked.voice) from error
        return replace(script, whole=whole.map_clips(_without_path))

    def _script_of_upload(self, adapter: str | None, upload: bytes) -> Script:
        """With the recording in codes, as its file is there for this moment only."""
        assert self._service.uploads is not None
        assert self._asked is not None
        generator, folder = self._service.generator, self._service.uploads
        file = folder / f"{self._id}.reference"
        try:
            file.write_bytes(upload)
            script = self._script(adapter, Voice(str(file), self._asked.transcript))
            whole = generator.speaker.heard(script.whole, is_kept=False)
        except UserError as error:
            # The server's folders are nobody's business.
            message = str(error).replace(f"{folder}/", "").replace(file.name, "reference")
            raise UserError(message) from None
        finally:
            file.unlink(missing_ok=True)
        return replace(script, whole=whole.map_clips(_without_path))

    # How it is sent.

    async def _whole(self, items: AsyncIterator[np.ndarray | Ended]) -> None:
        assert self._asked is not None
        pieces: list[np.ndarray] = []
        async for item in items:
            if isinstance(item, Ended):
                break
            pieces.append(item)
            self._heard(item)
        ended = item
        assert isinstance(ended, Ended)
        # Minutes of mp3 take seconds: beside the loop.
        body = await asyncio.get_running_loop().run_in_executor(None, self._file, pieces)
        headers = {"content-length": str(len(body)), "x-truncated": str(not ended.stopped).lower()}
        await self._start(FORMATS[self._asked.format].media_type, headers)
        await self._body(body, is_last=True)

    def _file(self, pieces: list[np.ndarray]) -> bytes:
        encoder = self._encoder()
        for piece in pieces:
            encoder.push(piece)
        return encoder.finish()

    async def _pieces(self, items: AsyncIterator[np.ndarray | Ended]) -> None:
        """The header goes with the first samples: until then a fault still has a status."""
        assert self._asked is not None
        is_event = self._asked.stream == "sse"
        media_type = "text/event-stream" if is_event else FORMATS[self._asked.format].media_type
        try:
            with closing(self._encoder()) as encoder:
                async for item in items:
                    if isinstance(item, Ended):
                        data, ended = encoder.finish(), item
                    else:
                        self._heard(item)
                        data = encoder.push(item)
                    if not self.has_begun:
                        await self._start(media_type, {"cache-control": "no-store"})
                    if data:
                        await self._body(_delta(data) if is_event else data)
        except Exception as error:
            if self.has_begun and is_event and not isinstance(error, Gone):
                message = str(_refusal_of(error))
                event = _event({"type": "error", "error": {"message": message}})
                await self._body(event, is_last=True)
            raise
        await self._body(_done(ended) if is_event else b"", is_last=True)

    def _encoder(self) -> Encoder:
        assert self._asked is not None
        rate = self._service.generator.codec.sample_rate_hz
        in_pieces = self._asked.stream is not None
        return Encoder(self._asked.format, rate, in_pieces=in_pieces, mark=self._mark)

    def _heard(self, samples: np.ndarray) -> None:
        if not self._num_samples:
            self._service.metrics.first_audio(time.monotonic() - self._began_s)
        self._num_samples += len(samples)

    async def _start(self, media_type: str, headers: dict[str, str]) -> None:
        assert self._asked is not None
        headers |= {
            "content-type": media_type,
            "x-request-id": self._id,
            "x-seed": str(self._asked.sampling.seed),
            "x-content-type-options": "nosniff",
        }
        if self._mark is not None:
            headers["x-synthetic-speech"] = self._mark.text
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.has_begun = True
        await self._sent({"type": "http.response.start", "status": 200, "headers": pairs})

    async def _body(self, data: bytes, *, is_last: bool = False) -> None:
        await self._sent({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def _sent(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except OSError:
            raise Gone from None


def _without_path(clip: AudioClip) -> AudioClip:
    return replace(clip, path=None, header=None)


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        retry = str(error.retry_after_s)
        message = f"the server is busy; ask again in {retry} s"
        return Refusal(429, message, {"retry-after": retry})
    if isinstance(error, TooLate):
        return Refusal(504, "this took longer than the server's time limit; ask later, or for less")
    if isinstance(error, Closed):
        return Refusal(503, "the server is closing; ask again", {"retry-after": "10"})
    if isinstance(error, Unknown):
        return Refusal(404, str(error))
    if isinstance(error, Unheard):
        logger.error("voice %r cannot be heard: %s", error.name, error.__cause__)
        message = f"voice {error.name!r} cannot be heard here; the server's log says why"
        return Refusal(500, message)
    if isinstance(error, UserError):
        return Refusal(400, str(error))
    status = getattr(error, "status_code", None)  # of the parser of forms
    if status is not None:
        return Refusal(status, f"request: body: {getattr(error, 'detail', error)}; mend the form")
    logger.error("a request is lost", exc_info=error)
    return Refusal(500, "something went wrong here; the server's log says what")


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _delta(data: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _done(ended: Ended) -> bytes:
    usage = {
        "input_tokens": ended.num_prompt_tokens,
        "output_tokens": ended.num_frames,
        "total_tokens": ended.num_prompt_tokens + ended.num_frames,
    }
    return _event({"type": "speech.audio.done", "usage": usage, "truncated": not ended.stopped})
