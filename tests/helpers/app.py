"""The page's server in a process of its own, and a client that sends what no page would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, ROOT

VOICE = CORPUS / "wavs" / "DEMO-0002.flac"
# Everything that the server connects to, asks the name of, or listens on.
AUDITED = """
import signal, sys
from plugins.cli import main
# What a shell has put into the background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
log = open(sys.argv[1], "a", buffering=1)
def hook(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo"):
        address = args[0] if event == "socket.getaddrinfo" else args[1]
        log.write(f"{event} {address[0] if isinstance(address, tuple) else address}\\n")
sys.addaudithook(hook)
sys.exit(main(sys.argv[2:]))
"""


class Server:
    """`higgs-audio app` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.audit, self.log = folder / "audit.txt", folder / "log.txt"
        self.temporary, self.workspace = folder / "tmp", folder / "studio"
        self.temporary.mkdir(exist_ok=True)
        self.workspace.mkdir(exist_ok=True)
        command = [sys.executable, "-c", AUDITED, str(self.audit), "app", "--port", "0"]
        command += ["--workspace", str(self.workspace), *arguments]
        env = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", **variables}
        env["XDG_CACHE_HOME"] = str(folder / "cache")  # of the locks of devices
        env.pop("HF_HUB_OFFLINE", None)  # what it asks the network for should be seen
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            self.url = wait_for(self._address, "the server", seconds=90)
        except (pytest.fail.Exception, AssertionError):
            self.process.kill()
            raise

    def _address(self) -> str | None:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        _, _, rest = self.log.read_text(encoding="utf-8").partition("http://")
        return f"http://{rest.split()[0]}" if rest.endswith("\n") else None

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> float:
        """Seconds that it took."""
        started_s = time.monotonic()
        self.process.send_signal(with_signal)
        try:
            assert self.process.wait(timeout=60) == 0
        finally:
            self.process.kill()
        return time.monotonic() - started_s


# A machine that has much else to do is given more time: PATIENCE=5 pytest ...
PATIENCE = float(os.environ.get("PATIENCE", "1"))


def wait_for(look: Callable[[], Any], what: str, *, seconds: float = 20) -> Any:
    """What `look` returns, as soon as that is true."""
    seconds *= PATIENCE
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if value := look():
            return value
        time.sleep(0.1)
    pytest.fail(f"{what} did not come in {seconds} s")


class Client:
    """Sends to an event what nobody typed: any value for any field. Gradio's own client obeys the
    page's rules."""

    def __init__(self, server: Server) -> None:
        import httpx

        self.http = httpx.Client(base_url=f"{server.url}/gradio_api", timeout=60)
        self.config = httpx.get(f"{server.url}/config").json()
        components = {entry["id"]: entry["props"] for entry in self.config["components"]}
        self.events = {}
        for event in self.config["dependencies"]:
            target, kind = event["targets"][0]
            # A page that is opened, a clock, and what follows another event have none.
            name = components.get(target, {}).get("elem_id")
            if name is not None and kind in ("click", "upload", "input", "change"):
                name = name if kind == "click" else f"{name}.{kind}"
                self.events[name] = (event["id"], [components[id_] for id_ in event["inputs"]])

    def join(self, button: str, *, session: str | None = None, **fields: Any) -> str:
        """Fields by `elem_id`, or label. The others are as the page shows them at first. The
        session's name."""
        index, inputs = self.events[button]
        names = [component.get("elem_id") or component["label"] for component in inputs]
        assert not set(fields) - set(names), names
        data = []
        for name, component in zip(names, inputs, strict=True):
            value = fields.get(name, component.get("value"))
            # A text box that nobody filled in sends an empty text.
            data.append("" if value is None and "lines" in component else value)
        session = session or os.urandom(6).hex()
        body = {"data": data, "fn_index": index, "session_hash": session}
        # By hand: httpx sends no half characters, which JSON can spell.
        answer = self.http.post(
            "/queue/join",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 200
        return session

    def events_of(self, session: str, num_events: int = 1) -> Iterator[dict[str, Any]]:
        """The messages of a session, until so many of its events have ended."""
        with self.http.stream("GET", "/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    num_events -= message["msg"] == "process_completed"
                    if num_events == 0 or message["msg"] == "close_stream":
                        return

    def call(self, button: str, **fields: Any) -> dict[str, Any]:
        """The last message: what was spoken, or why it was not."""
        return list(self.events_of(self.join(button, **fields)))[-1]

    def upload(self, name: str, content: bytes) -> Any:
        return self.http.post("/upload", files={"files": (name, content)})

    def recording(self, name: str, content: bytes) -> dict[str, Any]:
        return file_data(self.upload(name, content).json()[0])


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
