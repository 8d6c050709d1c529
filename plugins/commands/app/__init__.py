"""`higgs-audio app`: a page on this machine, from recordings to a voice.

workspace.py    the one folder that is read and written by path; safe names
jobs.py         the kit's commands as processes that outlive tab and page, one per device
runner.py       the process beside each of them: lock, log, exit code
actions.py      what fields say -> the command that does it
presets.py      the recipes, what they need, their settings explained
corrections.py  what a listener changes of a preparation
curves.py       a run's own log -> curves, samples
votes.py        blind comparisons, kept
served.py       which files of the workspace a browser may fetch
fields.py       what the fields of speaking say -> what the generator is asked
parts.py        what tabs have in common; from here on Gradio is needed
desk.py         where requests wait for the one model
studio.py       what all tabs share
reports.py      listening pages inside the page
job_panel.py    Start, Stop, Resume, the shell's command, the log
data_tab.py train_tab.py listen.py compare_tab.py export_tab.py    the tabs
page.py         all of them, and their server

This file opens the port, loads the model and ends in order. What a browser may do here is little:
it sends fields and recordings, hears what was said, and starts commands of this kit in one folder.
It is given no file but those of that folder that are listening pages or their sounds; the page asks
no other host for anything (a job may: a base has to come from somewhere), and what was sent to be
spoken is deleted with the server at the latest."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
from argparse import Namespace

from plugins.commands.app.jobs import PASSWORD
from plugins.commands.app.workspace import Workspace
from plugins.commands.hosts import is_loopback
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
    if options.adapters is not None and options.model is None:
        raise problem(
            source="options",
            field="adapters",
            value=options.adapters,
            reason="have no --model to belong to",
            remedy="give --model",
        )
    Workspace(options.workspace)  # refused before a model is loaded for nothing
    options.password = _password(options)
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
    from plugins.commands.app.studio import open_studio

    studio = open_studio(options)
    page = build(studio, max_audio_s=options.max_audio_s)
    if not is_loopback(options.host):
        print(f"warning: --host {options.host}: {_warning(options)}", file=sys.stderr)
    try:
        launch(page, options, studio, port=port)
        address = f"http://{options.host}:{port}"
        print(
            f"{studio.desk.name}, {studio.workspace.root}: {address} (Ctrl+C ends it)", flush=True
        )
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def _warning(options: Namespace) -> str:
    if options.password is None:
        reach = "everybody who reaches this machine can use the model, train and read the workspace"
        return f"{reach}, there is no password; give --password or {PASSWORD}"
    return "the password travels unencrypted: put a server with HTTPS before it"


def _password(options: Namespace) -> str | None:
    """Of the flag, else of the environment, which other users of the machine do not see."""
    password: str | None = options.password
    source = "--password"
    if password is None and PASSWORD in os.environ:
        password, source = os.environ.pop(PASSWORD), PASSWORD
    elif password is not None:
        print(
            f"warning: --password is seen by all users of this machine; {PASSWORD} is not",
            file=sys.stderr,
        )
    if password is not None and not password.strip():
        raise problem(
            source="options",
            field=source,
            value=password,
            reason="is empty",
            remedy="give one, or leave it out",
        )
    return password


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
