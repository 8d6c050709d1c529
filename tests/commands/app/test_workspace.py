"""What a visitor names or uploads stays inside the workspace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plugins.commands.app.workspace import Workspace, safe_name
from plugins.errors import UserError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "studio"
    (root / "clips").mkdir(parents=True)
    (root / "clips" / "a.wav").write_bytes(b"RIFF")
    (root / "leads out").symlink_to(tmp_path)
    (root / "stays in").symlink_to(root / "clips")
    return Workspace(root)


@pytest.mark.parametrize("typed", [
    "..", "../other", "clips/../../other", "/etc/passwd", "/", "leads out", "leads out/studio2",
    "clips/../leads out/x", "stays in/../../x", "../studio2",
])  # fmt: skip
def test_a_path_out_of_the_workspace_is_refused(workspace: Workspace, typed: str) -> None:
    with pytest.raises(UserError, match=r"page: folder: '.*' leads out of the workspace .*; name"):
        workspace.inside(typed, field="folder")


@pytest.mark.parametrize("typed", ["a\0b", "half \ud800"])
def test_what_names_no_file_is_refused(workspace: Workspace, typed: str) -> None:
    with pytest.raises(UserError, match="is no name of a file"):
        workspace.inside(typed, field="folder")
    with pytest.raises(UserError, match="page: folder is missing; name one"):
        workspace.inside("  ", field="folder")


def test_what_lies_inside_is_taken(workspace: Workspace) -> None:
    root = workspace.root
    assert workspace.inside("clips/a.wav", field="x") == root / "clips" / "a.wav"
    assert workspace.inside(str(root / "clips"), field="x") == root / "clips"
    assert workspace.inside("stays in/a.wav", field="x") == root / "clips" / "a.wav"
    assert workspace.inside("new/one", field="x") == root / "new" / "one"
    assert workspace.inside(".", field="x") == root
    assert workspace.word(root / "-x.jsonl") == "./-x.jsonl"
    with pytest.raises(UserError, match="'new' is not there"):
        workspace.existing("new", field="x")
    with pytest.raises(UserError, match=r"'clips/a\.wav' is no folder"):
        workspace.existing("clips/a.wav", field="x", folder=True)


def test_choices_are_sorted_and_follow_no_link(workspace: Workspace) -> None:
    assert workspace.files(".wav") == ["clips/a.wav"]
    assert workspace.folders("a.wav") == ["clips"]


@pytest.mark.parametrize(("given", "kept"), [
    ("ann.wav", "ann.wav"),
    ("../../etc/passwd.wav", "passwd.wav"),
    ("C:\\Users\\ann\\take 1.wav", "take 1.wav"),
    ("a\nb\x07\x1b[31m.wav", "a_b__[31m.wav"),
    ("--output=x.wav", "output=x.wav"),
    (".hidden.wav", "hidden.wav"),
    ("e\u0301t\u00e9.flac", "\u00e9t\u00e9.flac"),
    ("gnp\u202evaw.exe", "gnpvaw.exe"),
    ("$(rm -rf ~).wav", "$(rm -rf ~).wav"),
    ("a:b|c?.wav", "a_b_c_.wav"),
    ("x" * 500 + ".wav", "x" * 116 + ".wav"),
    ("\u00e9" * 500 + ".wav", "\u00e9" * 58 + ".wav"),
    ("name. ", "name"),
])  # fmt: skip
def test_names_of_uploads_are_cleaned(given: str, kept: str) -> None:
    assert safe_name(given) == kept
    assert len(kept.encode()) <= 120


@pytest.mark.parametrize("given", ["", ".", "...", "/", "..\\", "\x00\x01", "--", "\u202e", "a/",
                                   "x." + "y" * 200])  # fmt: skip
def test_a_name_of_nothing_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="has nothing that a name could be made of; rename"):
        safe_name(given)


def test_an_upload_takes_nobodys_place(workspace: Workspace, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"new")
    folder = workspace.root / "clips"
    for name, expected in (("a.wav", "a-2.wav"), ("../a.wav", "a-3.wav"), ("b.wav", "b.wav")):
        kept = workspace.keep(upload, folder=folder, name=name)
        assert kept == folder / expected
        assert kept.read_bytes() == b"new"
    assert (folder / "a.wav").read_bytes() == b"RIFF"
    assert len(os.listdir(folder)) == 4


def test_a_workspace_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"workspace: .* is no folder; make it"):
        Workspace(tmp_path / "none")
