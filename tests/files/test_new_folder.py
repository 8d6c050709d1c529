"""Folders that appear only when they are complete; what killed processes leave of them is swept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from plugins.files import lock
from plugins.files.hub import new_folder

WRITE = """
import sys, time
from pathlib import Path
from plugins.files.hub import new_folder
with new_folder(Path(sys.argv[1]) / "voice", Path(sys.argv[1]) / "source") as folder:
    (folder / "model.safetensors").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that writes `tmp_path / voice`, and its unfinished folder."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


@pytest.mark.parametrize("target", ["voice", "another"])
def test_what_a_killed_process_left_goes_with_the_next_and_nothing_else(
    target: str, writer: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, left = writer
    kept = [
        tmp_path / name
        for name in (
            "mine.partial",
            ".voice.partial",
            f".voice.{'g' * 32}.partial",
            f".voice.{'a' * 31}.partial",
            f".voice.{'a' * 32}.part",
            f".voice.{'b' * 32}.partial",  # perhaps begun this moment
            f".other.{'c' * 32}.partial",
        )
    ]
    for folder in kept:
        folder.mkdir()
    (tmp_path / f".voice.{'d' * 32}.partial").symlink_to(tmp_path / "mine.partial")
    os.utime(kept[-1], (0, 0))
    with new_folder(tmp_path / target, tmp_path / "source") as folder:
        (folder / "config.json").write_text("{}")
    assert (left / "model.safetensors").exists(), "its process is still writing"
    process.kill()
    process.wait()
    with new_folder(tmp_path / "third", tmp_path / "source"):
        pass
    assert not left.exists()
    assert all(folder.exists() for folder in kept)
    assert [path.name for path in (tmp_path / target).iterdir()] == ["config.json"]
    # Of a version of this kit that had no locks.
    long_ago = time.time() - 7200
    os.utime(kept[-2], (long_ago, long_ago))
    with new_folder(tmp_path / "fourth", tmp_path / "source"):
        pass
    assert kept[-2].exists(), "of another name"
    if target != "voice":
        with new_folder(tmp_path / "voice", tmp_path / "source"):
            pass
        assert not kept[-2].exists()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "new", tmp_path / "source") as folder:
            assert (folder / lock.NAME).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("umask", "mode"),
    [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640), (0, 0o666)],
)
def test_weights_may_be_read_by_whom_the_umask_says(umask: int, mode: int, tmp_path: Path) -> None:
    """safetensors writes 0600 whatever it says: a colleague, or a server's user, could not."""
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "new", tmp_path / "source") as folder:
            (folder / "codec").mkdir()
            for part in (folder, folder / "codec"):
                save_file({"a": torch.zeros(2)}, part / "model.safetensors")
    finally:
        assert os.umask(before) == umask
    for file in (tmp_path / "new").rglob("*.safetensors"):
        assert file.stat().st_mode & 0o777 == mode
