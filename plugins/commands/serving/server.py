"""The port and the process: served until a signal, which lets what is spoken end."""

from __future__ import annotations

import logging
import signal
import socket
from typing import Any

import uvicorn

from plugins.commands.serving.guard import PatientProtocol

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Says what it does when it is told to end."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        if not self.should_exit:
            name = signal.Signals(sig).name
            logger.info(f"{name}: no new requests, what is spoken ends first (again: ends at once)")
        else:
            self.force_exit = True
        super().handle_exit(sig, frame)


def serve(app: Any, listening: socket.socket, *, num_connections: int, drain_s: float) -> None:
    """Until SIGINT or SIGTERM; then for as long as requests need, `drain_s` at most. A second
    signal ends at once."""
    server = _Server(config(app, num_connections=num_connections, drain_s=drain_s))
    # uvicorn raises the signal again when it has ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        logger.info("stopped")


def config(app: Any, *, num_connections: int, drain_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody is believed to be another
        limit_concurrency=num_connections,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
