"""The map in `plugins/__init__.py` shows the rooms that are there."""

from __future__ import annotations

import re

from conftest import ROOT

import plugins


def test_each_room_has_its_line() -> None:
    shown = re.findall(r"^([\w/]+/|\w+\.py) {2,}", plugins.__doc__ or "", re.MULTILINE)
    folder = ROOT / "plugins"
    files = [path.name for path in folder.glob("[!_]*.py")]
    folders = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    assert sorted(room for room in shown if room.count("/") < 2) == sorted(files + folders)
    for room in shown:
        assert (folder / room).exists(), room
