"""`higgs-audio serve`: the speech endpoint of OpenAI's clients, for this model and these voices.

    options --checked--> port, model, voices --plugins.commands.serving--> served until a signal

Exit codes: 0 ended by a signal, 1 an error that the user can mend."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
from argparse import Namespace
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from plugins.commands.hosts import is_loopback
from plugins.commands.serve_flags import TOKEN
from plugins.commands.serving.answers import Service
from plugins.commands.serving.app import build
from plugins.commands.serving.engine import Engine
from plugins.commands.serving.server import serve
from plugins.commands.serving.voices import BASE, DEFAULT, Voices
from plugins.errors import UserError, problem
from plugins.files.temporary import sweep, temporary_folder
from plugins.inference import HiggsAudioGenerator
from plugins.model.adapter_scale import require_scale
from plugins.speaking.speaker import require_duration
from plugins.speaking.voices import request

logger = logging.getLogger(__name__)

_ROWS = {"cuda": 16, "cpu": 8}
# Connections that ask for nothing, or for little, beside those of the places.
_MORE_CONNECTIONS = 200
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


def run(options: Namespace) -> int:
    """The subcommand: serve until a signal. Its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # All that can be wrong is found before a model is loaded for nothing.
    require_duration(options.max_audio_s)
    require_scale(options.adapter_scale)
    if not 1 <= options.time_limit_s < math.inf:
        raise _refused("time_limit_s", options.time_limit_s, "is no time", "give seconds")
    if options.max_upload_mb is not None and find_spec("python_multipart") is None:
        raise _refused(
            "max_upload_mb",
            options.max_upload_mb,
            "needs python-multipart",
            'pip install -e ".[serve]"',
        )
    token = _token(options)
    adapters = _adapters(options.adapters)
    Voices(_model_name(options), list(adapters), options.voices)
    if not is_loopback(options.host) and token is None:
        warning = f"everybody who reaches this machine can use the model; give {TOKEN}"
        print(f"warning: --host {options.host}: {warning}", file=sys.stderr)
    sweep()  # of a server that was killed
    with ExitStack() as stack:
        listening = stack.enter_context(_listening(options.host, options.port))
        service = _service(options, adapters, stack)
        num_places = service.engine.num_places
        upload_bytes = (options.max_upload_mb or 0) << 20
        app = build(service, host=options.host, token=token, max_upload_bytes=upload_bytes)
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        names = ", ".join(service.voices.names())
        print(f"{address}/v1 (voices: {names}; Ctrl+C ends it)", flush=True)
        serve(
            app,
            listening,
            num_connections=num_places + _MORE_CONNECTIONS,
            drain_s=options.time_limit_s,
        )
    return 0


def _service(options: Namespace, adapters: dict[str, str], stack: ExitStack) -> Service:
    generator = HiggsAudioGenerator.from_pretrained(
        options.model,
        adapters=adapters or None,
        adapter_scale=options.adapter_scale,
        codec=options.codec,
        device=options.device,
        quantization=options.quantization,
        marks=options.marks,
    )
    voices = Voices(_model_name(options), generator.adapters, options.voices)
    _encode_references(generator, voices)
    kind = generator.model.device.type
    engine = Engine(
        generator,
        num_rows=options.batch_size or _ROWS.get(kind, _ROWS["cpu"]),
        max_waiting=options.max_waiting,
        max_audio_s=options.max_audio_s,
        time_limit_s=options.time_limit_s,
    )
    stack.callback(engine.close)
    uploads = None
    if options.max_upload_mb is not None:
        uploads = stack.enter_context(temporary_folder("serve"))
    return Service(
        generator,
        engine,
        voices,
        max_chars=options.max_chars,
        max_audio_s=options.max_audio_s,
        uploads=uploads,
        logs_texts=options.log_texts,
    )


def _encode_references(generator: HiggsAudioGenerator, voices: Voices) -> None:
    """Now, not when the first request waits for it; and one that cannot be heard ends the start."""
    assert generator.codec.model is not None  # loaded here, and by one thread
    references = voices.references()
    for number, (name, voice) in enumerate(references.items(), start=1):
        try:
            generator.speaker.prompt(request("One.", None, [voice], generator.settings))
        except UserError as error:
            raise UserError(f"{voice.audio}: {error}") from None
        logger.info(f"voice {number} of {len(references)}: {name}")


def _model_name(options: Namespace) -> str:
    """Of a folder, or the last part of a Hub id."""
    return Path(options.model).resolve().name or "model"


def _adapters(given: list[str]) -> dict[str, str]:
    """Folders by name."""
    adapters: dict[str, str] = {}
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not equals:
            name, folder = DEFAULT, entry
        if not folder or not _NAME.fullmatch(name) or name == BASE:
            reason = "is no NAME=DIR, with a name of letters, digits, '-' and '.'"
            raise _refused("adapters", entry, reason, f"name it otherwise, and not {BASE!r}")
        if name in adapters:
            raise _refused("adapters", entry, "has the name of another", "give each its own")
        adapters[name] = folder
    return adapters


def _token(options: Namespace) -> str | None:
    """Of the flag, else of the environment, which other users of the machine do not see."""
    token: str | None = options.token
    if token is None:
        token = os.environ.pop(TOKEN, None)
    else:
        print(
            f"warning: --token is seen by all users of this machine; {TOKEN} is not",
            file=sys.stderr,
        )
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise _refused("token", None, "is empty, or not of ASCII letters", "give another")
    return token


def _listening(host: str, port: int) -> socket.socket:
    """The open port. Raises UserError before a model is loaded for nothing."""
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(128)
    except (OSError, OverflowError) as error:
        server.close()
        cause = getattr(error, "strerror", None) or error
        remedy = "give another --port, or 0 for a free one"
        raise _refused("port", f"{host}:{port}", f"cannot be served on ({cause})", remedy) from None
    return server


def _refused(option: str, value: object, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)
