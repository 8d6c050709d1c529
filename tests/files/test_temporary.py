"""Folders of recordings that others sent: gone with their maker, or when the next one starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from plugins.files.temporary import sweep, temporary_folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_gone_with_its_block_whatever_happens(place: Path) -> None:
    def interrupted() -> None:
        with temporary_folder("app") as folder:
            (folder / "voice.wav").write_text("x")
            assert folder.name.startswith("higgs-audio-app-")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(place.iterdir()) == []


def test_what_the_dead_left_goes_and_what_is_not_ours_stays(place: Path) -> None:
    code = (
        "import os, signal\n"
        "from plugins.files.temporary import temporary_folder\n"
        "with temporary_folder('app') as folder:\n"
        "    (folder / 'voice.wav').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "TMPDIR": str(place)}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, check=False)
    (left,) = place.iterdir()
    (place / "higgs-audio-3b").mkdir()  # a model of the user's
    (place / "higgs-audio-file").write_text("x")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / ".higgs-audio-lock").write_text("")
    (place / "higgs-audio-link").symlink_to(place / "elsewhere")
    with temporary_folder("app") as alive:
        sweep()
        assert alive.is_dir()
    assert not left.exists()
    names = sorted(path.name for path in place.iterdir())
    assert names == ["elsewhere", "higgs-audio-3b", "higgs-audio-file", "higgs-audio-link"]
    assert (place / "elsewhere" / ".higgs-audio-lock").exists()
