"""Flags of `higgs-audio serve`. Torch-free, as all of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from plugins.commands import flags

TOKEN = "HIGGS_AUDIO_TOKEN"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="a server that speaks as OpenAI's does: POST /v1/audio/speech, whole and streamed",
        description="Requests share one batch: each joins at the next frame and leaves when it has"
        " ended. Ctrl-C or SIGTERM lets what is spoken end. What is answered: docs/serve.md.",
    )
    _add_speakers(command)
    _add_limits(command)
    command.set_defaults(run=_run)


def _add_speakers(command: argparse.ArgumentParser) -> None:
    """Who speaks, where."""
    add = command.add_argument
    add("--model", required=True, help="checkpoint folder (base, merged, or LoRA) or Hub id")
    add(
        "--adapters",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="LoRA folders on top of --model, each a voice; without NAME= it is the default one",
    )
    add("--codec", help="codec folder or Hub id (default: the one beside the model)")
    flags.scale_flag(command)
    add(
        "--voices",
        type=Path,
        metavar="FOLDER",
        help="recordings to clone, each with its transcript beside it: ann.wav and ann.txt",
    )
    add(
        "--host", default="127.0.0.1", help="others are reached by everybody (default: %(default)s)"
    )
    add("--port", type=int, default=8000, help="0: a free one (default: %(default)s)")
    add(
        "--token",
        help=f"that each request has to bring; in the environment, as {TOKEN}, no other user of the"
        " machine sees it",
    )
    add("--quantization", choices=("4bit", "8bit"), help="load with bitsandbytes")
    flags.device_flag(command)


def _add_limits(command: argparse.ArgumentParser) -> None:
    """How much, and what is said of it."""
    add = command.add_argument
    add(
        "--batch_size",
        type=flags.positive,
        help="requests spoken together (default: 8, on a GPU 16)",
    )
    add(
        "--max_waiting",
        type=flags.positive,
        default=64,
        help="requests that wait; more are answered with 429 (default: %(default)s)",
    )
    add(
        "--max_chars",
        type=flags.positive,
        default=4096,
        help="of one text (default: %(default)s, as OpenAI's)",
    )
    flags.max_audio_flag(command)
    add(
        "--time_limit_s",
        type=float,
        default=300.0,
        help="of a request, in the queue and spoken (default: %(default)s)",
    )
    add(
        "--max_upload_mb",
        type=flags.positive,
        help="largest recording that a request may bring, MiB (default: none may)",
    )
    add("--log_texts", action="store_true", help="write what is spoken into the log")
    flags.marks_flag(command)


def _run(options: argparse.Namespace) -> int:
    from plugins.commands.serve import run  # torch takes seconds

    return run(options)
