"""Hugging Face datasets as somebody else saved them, and a machine without network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict
from helpers.trees import clip


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No progress bars; the cache of `load_dataset` beside the test; whoever opens a socket
    fails."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("went to the network")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def sound(folder: Path, name: str, frequency_hz: float = 220.0) -> dict[str, Any]:
    """A recording as a dataset holds it: its bytes, and the name that it had."""
    path = clip(folder / "made" / name, frequency_hz=frequency_hz)
    return {"bytes": path.read_bytes(), "path": name}


def table(audio: list[Any], **columns: list[Any]) -> Dataset:
    """A dataset of `audio`, with texts of its own unless `columns` brings them."""
    columns.setdefault("text", [f"Text {number}" for number in range(len(audio))])
    return Dataset.from_dict({"audio": audio, **columns})


def saved(folder: Path, dataset: Dataset | DatasetDict) -> str:
    """Where `save_to_disk` wrote it."""
    dataset.save_to_disk(folder / "saved")
    return str(folder / "saved")
