"""Runs of the whole command `prepare_dataset.py` on small corpora of real audio files, shared by
its tests."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT

from plugins.corpora import Utterance
from plugins.prepare import cli
from plugins.prepare.clips import Outcome, Work
from plugins.prepare.outputs import rejected_path, split_path

TEXT = "Twenty letters here."  # fits clips from one second to twenty
Row = dict[str, Any]


# --- corpora ---


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


def listed(root: Path, *lines: str) -> list[Any]:
    """A CSV with `lines`, the first of which names the columns, and the arguments that name it."""
    root.mkdir(parents=True, exist_ok=True)
    csv = root / "meta.csv"
    csv.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--dataset_type", "custom", "--input_dir", root, "--csv_file", csv]


def table(root: Path, clips: Mapping[str, str] | list[str], *, text: str = TEXT) -> list[Any]:
    """A CSV of the files `clips` (name -> speaker) in `root`, and the arguments that name it. Makes
    no audio."""
    speakers = clips if isinstance(clips, Mapping) else dict.fromkeys(clips, "")
    lines = [f"{name},{text},{speaker}" for name, speaker in speakers.items()]
    return [*listed(root, "audio,text,speaker", *lines), "--speaker_column", "speaker"]


def corpus(root: Path, count: int, *, speakers: int = 2, **sound: Any) -> list[Any]:
    """`count` different clips of `speakers` voices, and the arguments that name them."""
    names = {f"clip{number:03d}.wav": f"voice{number % speakers}" for number in range(count)}
    for number, name in enumerate(names):
        speech(root / name, seed=number, **sound)
    return table(root, names)


# --- the command ---


def prepare(*arguments: Any) -> int:
    """The command in this process, with one worker unless `arguments` say otherwise; its exit code.

    It draws no picture, which takes half a second; tests/prepare/test_report.py looks at that.
    """
    workers = [] if "--workers" in arguments else ["--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "picture", lambda report: b"picture")
        return cli.main([*workers, *map(str, arguments)])


def command_line(*arguments: Any) -> list[str]:
    return [sys.executable, str(ROOT / "prepare_dataset.py"), *map(str, arguments)]


def prepare_apart(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user's shell runs it."""
    return subprocess.run(
        command_line(*arguments), capture_output=True, text=True, timeout=120, **options
    )


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, which must be one line without a traceback."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.strip()


# --- what it wrote ---


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(output: Path) -> list[str]:
    return [row["id"] for row in read(output)]


def sides(output: Path) -> dict[str, list[Row]]:
    """The rows of train, and of val and test where they are."""
    paths = {name: split_path(output, name) for name in ("train", "val", "test")}
    return {name: read(path) for name, path in paths.items() if path.exists()}


def reasons(output: Path) -> list[tuple[str, str]]:
    """(name of the clip, reason) of each rejected one, in order."""
    return [(row["id"], row["reason"]) for row in read(rejected_path(output))]


def report(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(output.with_suffix(".report.json").read_text())
    return content


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file below `folders`, hidden ones too. Of a code cache the rows: its bytes tell their
    history."""
    result = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = str(path.relative_to(folder.parent))
                result[name] = _rows(path) if path.suffix == ".sqlite" else path.read_bytes()
    return result


def _rows(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as file:
        return repr(file.execute("SELECT * FROM clips ORDER BY key").fetchall()).encode()


@contextmanager
def logged_checks(path: Path) -> Iterator[Path]:
    """A file in which every clip that is checked meanwhile stands, also if the process that does it
    is killed."""
    check = Work.__call__
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def logged(self: Work, utterance: Utterance) -> Outcome:
        outcome = check(self, utterance)
        os.write(descriptor, f"checked {utterance.id}\n".encode())
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "__call__", logged)
        yield path
    os.close(descriptor)


def in_child(work: Callable[[], object]) -> int:
    """The status of a forked process that did `work`: 0, or minus the signal that ended it. What
    fails there fails."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            # Whatever ended it: the child must not go back into pytest.
            if status:
                traceback.print_exc()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code <= 0, code
    return code
