"""boson-multimodal 0.1.1 in a venv of its own, because it needs transformers 4.46, and a process in
it to talk to.

Which packages it takes is said in tests/golden/make/prompts.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NEEDS = (
    "transformers==4.46.3 pandas dacite loguru librosa omegaconf einops langid"
    " vector_quantize_pytorch jieba soundfile"
)
_WITHOUT_NEEDS = "boson-multimodal==0.1.1"  # asks for versions that cannot be had together


def python_of(folder: Path) -> Path:
    """The interpreter of the venv in `folder`, which is made first if it is not there: some
    minutes, gigabytes."""
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file():
        print(f"installing boson-multimodal in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        # The torch of this environment: what differs is the code.
        torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, torch, *_NEEDS.split()], check=True)
        subprocess.run([*pip, "--no-deps", _WITHOUT_NEEDS], check=True)
        done.touch()  # at the end: a venv that is half installed is made anew
    return python


class Peer:
    """A script in another interpreter: one JSON line asks it, one JSON line is its answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the peer has ended with {self._process.wait()}"
        return json.loads(answer)


@contextmanager
def peer(python: Path, script: Path) -> Iterator[Peer]:
    """Its warnings go to our stderr; it ends when its stdin does."""
    # One thread, as ours has; and none of our packages, which want another transformers.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [str(python), str(script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        yield Peer(process)
