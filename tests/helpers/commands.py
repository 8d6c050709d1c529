"""Runs of the whole command `prepare_dataset.py` on small corpora of real audio files, shared by
its tests."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from conftest import ROOT

from plugins.prepare.cli import main

TEXT = "Twenty letters here."  # fits clips from one second to twenty


def speech(
    path: Path,
    duration_s: float = 1.2,
    *,
    seed: int = 0,
    rate: int = 24_000,
    channels: int = 1,
    pad_s: float = 0.0,
) -> Path:
    """A tone of a pitch of its own for each `seed`, with `pad_s` of silence at both ends; the
    format by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(duration_s * rate)) / rate
    tone = np.pad(0.4 * np.sin(2 * np.pi * (150 + 7 * seed) * time_s), round(pad_s * rate))
    sf.write(path, np.stack([tone] * channels, axis=1), rate)
    return path


def table(root: Path, clips: Mapping[str, str] | list[str], *, text: str = TEXT) -> list[Any]:
    """A CSV of the files `clips` (name -> speaker) in `root`, and the arguments that name it. Makes
    no audio."""
    root.mkdir(parents=True, exist_ok=True)
    speakers = clips if isinstance(clips, Mapping) else dict.fromkeys(clips, "")
    lines = [
        "audio,text,speaker",
        *(f"{name},{text},{speaker}" for name, speaker in speakers.items()),
    ]
    (root / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--dataset_type", "custom", "--input_dir", root, "--csv_file", root / "meta.csv", "--speaker_column",
            "speaker"]  # fmt: skip


def corpus(root: Path, count: int, *, speakers: int = 2, **sound: Any) -> list[Any]:
    """`count` different clips of `speakers` voices, and the arguments that name them."""
    names = {f"clip{number:03d}.wav": f"voice{number % speakers}" for number in range(count)}
    for number, name in enumerate(names):
        speech(root / name, seed=number, **sound)
    return table(root, names)


def prepare(*arguments: Any) -> int:
    """The command in this process, with one worker unless told otherwise; its exit code."""
    return main([*([] if "--workers" in arguments else ["--workers", "1"]), *map(str, arguments)])


def command_line(*arguments: Any) -> list[str]:
    return [sys.executable, str(ROOT / "prepare_dataset.py"), *map(str, arguments)]


def prepare_apart(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user's shell runs it."""
    return subprocess.run(
        command_line(*arguments), capture_output=True, text=True, timeout=120, **options
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reasons(output: Path) -> list[tuple[str, str]]:
    """(name of the clip, reason) of each rejected one, in order."""
    return [(each["id"], each["reason"]) for each in read(output.with_suffix(".rejected.jsonl"))]


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file below `folders`, hidden ones too. Of a code cache the rows: its bytes tell their
    history."""
    return {
        str(path.relative_to(folder.parent)): _clips(path)
        if path.suffix == ".sqlite"
        else path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _clips(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as file:
        return repr(file.execute("SELECT * FROM clips ORDER BY key").fetchall()).encode()


def in_child(work: Callable[[], object]) -> int:
    """The status of a forked process that did `work`: 0, or minus the signal that ended it. What
    fails there fails."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code <= 0, code
    return code
