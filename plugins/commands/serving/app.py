"""The routes of the server, as OpenAI names them, and three of its own."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from plugins.commands.hosts import OnlyOwnNames
from plugins.commands.serving.answers import Service, SpeechRoute
from plugins.commands.serving.guard import Guard, error_answer


def build(service: Service, *, host: str, token: str | None, max_upload_bytes: int) -> Any:
    """ASGI. host: what it listens on. token: None if everybody who reaches it may ask; then it
    answers under its own names only."""
    # Neither pages nor a scheme: they would fetch scripts from elsewhere.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    started = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        if not service.engine.is_alive:
            return error_answer(503, "nothing is spoken any more; start the server again")
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Any:
        entries = [_model(name, started) for name in service.voices.models()]
        return {"object": "list", "data": entries}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        if name not in service.voices.models():
            return error_answer(404, f"request: model: {name[:100]!r} is unknown; see /v1/models")
        return JSONResponse(_model(name, started))

    @app.get("/v1/audio/voices")
    def voices() -> Any:  # reads a folder: not in the loop
        entries = []
        for name, kind in service.voices.names().items():
            entries.append({"id": name, "name": name, "kind": kind})
        return {"voices": entries}

    @app.get("/metrics")
    async def metrics() -> Response:
        engine = service.engine
        gauges = {
            "speaking": engine.num_speaking,
            "waiting": engine.num_waiting,
            "frames_total": engine.num_computed,
        }
        return PlainTextResponse(service.metrics.text(gauges), media_type="text/plain")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = f"request: {request.method} {request.scope['path'][:100]!r}: {error.detail}"
        return error_answer(error.status_code, message, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_answer(500, "something went wrong here; the server's log says what")

    app.router.routes.append(
        Route("/v1/audio/speech", endpoint=SpeechRoute(service), methods=["POST"])
    )
    guarded: Any = Guard(app, token=token, max_upload_bytes=max_upload_bytes)
    return guarded if token is not None else OnlyOwnNames(guarded, host)


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "higgs-audio"}
