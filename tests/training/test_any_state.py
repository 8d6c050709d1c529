"""Files in which a run keeps its state, with anything in them: read, or refused in a line of ours,
and never written over by mistake."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.commands import speak_list
from plugins.errors import UserError
from plugins.evaluation.journal import PROGRESS, Journal, check_folder
from plugins.files import checkpoints
from plugins.settings import SETTINGS_FILE, HiggsAudioSettings
from plugins.training import saves

VALUES = [
    None, True, -1, 10**30, 1e300, float("nan"), "", "x", "a\0b", "/etc/passwd", "../x", [], [[]],
    {}, {"": None}, {"files": []}, {"files": {"a": {"bytes": "x", "sha256": 1}}},
    {"files": {"../a": {"bytes": 1, "sha256": ""}}, "saved_at_s": "x", "resumable": 1},
    {"run": [], "trained": {}}, ["settings", {}], ["settings", 5], [[], {}], [1, 2, 3],
    {"id": [], "key": {}}, {"id": "a", "key": "b", "sha256": []}, {"raw_prompt": "x"},
    {"clean_text": 5}, {"audio_codebook_weights": [[]]}, {"codec": {}}, {"unknown": 1},
]  # fmt: skip
DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    lambda content, draw: content,
    lambda content, draw: content[: draw.randrange(len(content) + 1)],
    lambda content, draw: content + b"\xff\xfe\n",
    lambda content, draw: b"\0" * 40,
    lambda content, draw: b"[" * 200_000,
    lambda content, draw: b'{"a": ' + b"9" * 6000 + b"}\n",
    lambda content, draw: content + b"\n" + content,
    lambda content, draw: b"[" * 900 + b"]" * 900 + b"\n",
]


def read_checkpoint(folder: Path) -> None:
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir(exist_ok=True)
    for name in (checkpoints.MARKER, saves.NOTE):
        (checkpoint / name).write_bytes((folder / "state").read_bytes())
    checkpoints.newest(folder, lambda text: None)
    owner = saves.Owner("a", "b")
    assert saves.owned(folder, owner) == []
    saves.require_whole(checkpoint)


def read_settings(folder: Path) -> None:
    (folder / SETTINGS_FILE).write_bytes((folder / "state").read_bytes())
    HiggsAudioSettings.of_checkpoint(folder, {})


def read_journal(folder: Path) -> None:
    evaluation = folder / "evaluation"
    evaluation.mkdir(exist_ok=True)
    (evaluation / PROGRESS).write_bytes((folder / "state").read_bytes())
    check_folder(evaluation, overwrite=False)
    with Journal(evaluation / PROGRESS, {"model": "x"}):
        pass


def read_results(folder: Path) -> None:
    (folder / speak_list.RESULTS).write_bytes((folder / "state").read_bytes())
    speak_list._spoken_before(folder)


@pytest.mark.parametrize("read", [read_checkpoint, read_settings, read_journal, read_results])
def test_any_state(read: Callable[[Path], None], tmp_path: Path) -> None:
    draw = random.Random(7)
    contents: list[Any] = [json.dumps(value).encode() + b"\n" for value in VALUES]
    for content in contents:
        for damage in DAMAGES:
            (tmp_path / "state").write_bytes(damage(content, draw))
            with contextlib.suppress(UserError):
                read(tmp_path)
