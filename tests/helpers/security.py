"""What a stranger builds: pickles that call, folders with code beside the weights, files whose
entries name more. Each builder shows, where it can, that its proof of concept works.
"""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

TYPE = "higgs-audio-v2-3b"
KERNEL = "evil/kernel"  # a repository of a hub, whose code transformers would run


class Payload:
    """What a pickle runs when it is read: makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def plant(file: Path, marker: Path) -> Path:
    """Write a malicious file of torch.save. Reading it as a pickle makes the marker, which is
    removed again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": Payload(marker)}, file)
    torch.load(file, weights_only=False)
    assert marker.exists(), "the proof of concept is none"
    marker.unlink()
    return file


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that are tried and the names that are looked up from now on: all fail."""
    tried: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        tried.append(address)
        raise OSError("no network in this test")

    # Below every client: requests, httpx, urllib.
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # An address for documentation (RFC 5737), should the refusal fail.
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://203.0.113.1/a.wav")
    assert tried, "the proof of concept is none"
    tried.clear()
    return tried


def adapter_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
        "r": 4,
        "base_model_name_or_path": "x",
    }
    rewrite(folder / "adapter_config.json", **config)
    return folder


def hostile_code(folder: Path, marker: Path) -> None:
    """`hostile.py`, which ends whatever imports it."""
    (folder / "hostile.py").write_text(
        f"open({str(marker)!r}, 'w')\nraise SystemExit\n", encoding="utf-8"
    )


def rewrite(file: Path, **values: Any) -> None:
    """Change entries of a JSON file, which may be new."""
    entries = {}
    if file.is_file():
        entries = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**entries, **values}), encoding="utf-8")
