"""`higgs-audio app`: a page on this machine to speak with a model.

hosts.py   whether a request names this server
fields.py  what the fields say -> what the generator is asked; knows no Gradio
page.py    fields, buttons, players; needs Gradio

This file opens the port, loads the model and ends in order. What a browser may do here is little:
it sends fields and recordings, and hears what was said. It names no file, is given none but its
own, asks no other host for anything, and what it sent is deleted with the server at the latest."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from pathlib import Path

from plugins.commands.app.hosts import is_loopback
from plugins.errors import problem
from plugins.files.temporary import sweep, temporary_folder


def run(options: Namespace) -> int:
    """The subcommand: serve until Ctrl+C or SIGTERM. Its exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise problem(
            source="options",
            field="app",
            value="gradio",
            reason="is not installed",
            remedy='pip install -e ".[app]"',
        )
    from plugins.model.adapter_scale import require_scale
    from plugins.speaking.speaker import require_duration  # torch takes seconds

    require_duration(options.max_audio_s)
    require_scale(options.adapter_scale)
    if options.max_audio_s < 1:
        raise problem(
            source="options",
            field="max_audio_s",
            value=options.max_audio_s,
            reason="is below 1",
            remedy="give seconds of speech",
        )
    port = _free_port(options.host, options.port)
    # As early as a command can be told, and turned into what ends it in order: its folder must not
    # stay behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # A server that was killed could not remove what it had been sent.
        sweep()
        with temporary_folder("app") as folder:
            # Gradio's upload cache, which otherwise is one folder for all programs of the machine.
            os.environ["GRADIO_TEMP_DIR"] = str(folder)
            _serve(options, port)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # A speech under way goes on in a thread that Python would wait for, up to minutes after Ctrl+C.
    os._exit(0)


def _serve(options: Namespace, port: int) -> None:
    from plugins.commands.app.page import build, launch
    from plugins.inference import HiggsAudioGenerator

    generator = HiggsAudioGenerator.from_pretrained(
        options.model,
        adapters=options.adapters,
        adapter_scale=options.adapter_scale,
        codec=options.codec,
        device=options.device,
    )
    name = " + ".join(Path(path).name for path in (options.model, options.adapters) if path)
    if options.adapter_scale != 1:
        name += f", adapter_scale {options.adapter_scale:g}"
    page = build(generator, name=name, max_audio_s=options.max_audio_s)
    if not is_loopback(options.host):
        warning = "everybody who reaches this machine can use the model, there is no password"
        print(f"warning: --host {options.host}: {warning}", file=sys.stderr)
    try:
        launch(page, host=options.host, port=port, max_upload_mb=options.max_upload_mb)
        print(f"{name}: http://{options.host}:{port} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def _free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises UserError before a model is loaded for nothing."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            # As Gradio will: a port that was just closed is free.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or error
        raise problem(
            source="options",
            field="port",
            value=f"{host}:{port}",
            reason=f"cannot be served on ({cause})",
            remedy="give another --port, or 0 for a free one",
        ) from None
