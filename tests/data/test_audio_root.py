"""`resolve` with an audio root: nothing outside of it can be named; and what no caller may be
given, root or not."""

import os
import socket
from pathlib import Path

import pytest
from helpers.trees import as_nobody, at_most, clip, folder_of_others

from plugins.audio.waveforms import AudioError, load, probe, resolve


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a clip, beside a clip that is none of its own."""
    clip(tmp_path / "outside.wav")
    clip(tmp_path / "root" / "sub" / "a.wav")
    return tmp_path / "root"


def refusal(path: str, root: Path) -> AudioError:
    with pytest.raises(AudioError) as caught:
        resolve(path, folders=[root], root=root)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_lies_inside_is_found(root, tmp_path, monkeypatch):
    """Also through links that stay inside, through a root that is a link itself, and by a relative
    root."""
    (root / "link.wav").symlink_to(root / "sub" / "a.wav")
    (root / "folder").symlink_to("sub")
    (tmp_path / "alias").symlink_to(root)
    for name in ("sub/a.wav", "./sub//a.wav", "link.wav", "folder/a.wav"):
        assert resolve(name, folders=[root], root=root) == root / name
        assert (
            resolve(name, folders=[tmp_path / "alias"], root=tmp_path / "alias")
            == tmp_path / "alias" / name
        )
        assert resolve(name, folders=[tmp_path / "alias"], root=root) == tmp_path / "alias" / name
    monkeypatch.chdir(tmp_path)
    assert resolve("sub/a.wav", folders=[Path("root")], root=Path("root")) == Path("root/sub/a.wav")


@pytest.mark.parametrize(
    "path", ["../outside.wav", "sub/../../outside.wav", "sub/../sub/a.wav", "..", "sub/.."]
)
def test_dots_are_refused_wherever_they_lead(root, path):
    """After a link, `..` leads elsewhere than it reads."""
    error = refusal(path, root)
    assert error.reason == 'holds "..", which the audio root forbids'
    assert error.remedy == f"write it relative to {root}"


def test_dots_inside_a_name_are_no_way_up(root):
    """`a..wav` and `...` are plain names."""
    clip(root / "..." / "a..b.wav")
    assert resolve(".../a..b.wav", folders=[root], root=root) == root / "..." / "a..b.wav"


def test_absolute_paths_are_refused_wherever_they_lead(root, tmp_path):
    """A row that names a machine's folders is no row to carry around; without a root it may."""
    for path in (
        str(tmp_path / "outside.wav"),
        str(root / "sub" / "a.wav"),
        "/etc/passwd",
        "/dev/zero",
    ):
        assert refusal(path, root).reason == "is absolute, which the audio root forbids"
    assert resolve(str(root / "sub" / "a.wav"), folders=[]) == root / "sub" / "a.wav"


@pytest.mark.parametrize("path", ["~", "~/a.wav", "~root/a.wav"])
def test_a_home_folder_is_refused(root, path):
    """Nothing here expands it, but the next program may."""
    assert refusal(path, root).reason == 'starts with "~", which the audio root forbids'


def test_a_name_with_a_tilde_can_be_written(root):
    """The refusal must leave a way to name such a file."""
    clip(root / "~a.wav")
    assert resolve("./~a.wav", folders=[root], root=root) == root / "~a.wav"


def test_links_that_lead_out_are_refused_by_their_target(root, tmp_path):
    """A file, a folder, a chain of links, a link to a device, a neighbour whose name only begins
    like the root."""
    outside = tmp_path / "outside.wav"
    neighbour = clip(tmp_path / "root2" / "a.wav")
    (root / "file.wav").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "chain.wav").symlink_to("file.wav")
    (root / "device.wav").symlink_to("/dev/zero")
    (root / "neighbour").symlink_to(neighbour.parent)
    targets = {
        "file.wav": outside,
        "folder/outside.wav": outside,
        "chain.wav": outside,
        "device.wav": "/dev/zero",
        "neighbour/a.wav": neighbour,
    }
    for path, target in targets.items():
        error = refusal(path, root)
        assert (error.reason, error.remedy) == (
            f"leads out of the audio root (to {target})",
            f"move it into {root}",
        )
        if path != "device.wav":
            assert resolve(path, folders=[root]) == root / path


def test_a_folder_to_look_in_that_lies_outside_helps_nobody(root, tmp_path):
    """`folders` say where to look, the root says what may be found there."""
    with pytest.raises(AudioError, match=r"leads out of the audio root \(to .*outside\.wav\)"):
        resolve("outside.wav", folders=[root, tmp_path], root=root)


def test_refused_paths_are_not_looked_up(root, monkeypatch):
    """Otherwise the answer would tell what exists outside, and a network file system could hang."""
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: pytest.fail("looked up"))
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("opened a socket"))
    for path in ("/etc/passwd", "../outside.wav", "~/a.wav", "https://x.org/a.wav"):
        refusal(path, root)


@pytest.mark.parametrize("jailed", [False, True])
@pytest.mark.parametrize("path", ["a\0.wav", "\ud800.wav"])
def test_what_no_file_can_be_called_is_refused(root, path, jailed):
    """JSON can spell a NUL and half a character; the system call would raise ValueError."""
    with pytest.raises(AudioError, match="names no file"):
        resolve(path, folders=[root], root=root if jailed else None)


def test_what_is_no_file_of_samples_is_refused_unopened(tmp_path):
    """A pipe, a socket, a device, a folder, an empty file, a link to itself, a name too long."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(
            os.path.relpath(tmp_path / "socket")
        )  # the absolute path may be longer than a socket's name
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "terminal").symlink_to("/dev/tty")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    reasons = {
        "pipe": "is not a regular file",
        "socket": "is not a regular file",
        "device": "is not a regular file",
        "terminal": "is not a regular file",
        "folder": "is a folder",
        "empty": "is empty (0 bytes)",
        "loop": "cannot be opened (Too many levels of symbolic links)",
        "x" * 300: "cannot be opened (File name too long)",
    }
    with at_most(10):
        for name, reason in reasons.items():
            with pytest.raises(AudioError) as caught:
                resolve(name, folders=[tmp_path])
            assert (name, caught.value.reason) == (name, reason)


def test_a_file_below_a_file_is_not_found(tmp_path):
    """`a.wav/b.wav` is no fault of a permission."""
    clip(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="not found"):
        resolve("a.wav/b.wav", folders=[tmp_path])


@pytest.mark.parametrize("read", [lambda path: resolve(str(path), folders=[]), probe, load])
def test_no_permission_is_told_from_no_file_and_from_no_audio(read):
    """libsndfile says the same of a locked file as of a text file."""
    with folder_of_others() as folder:
        locked, hidden = clip(folder / "locked.wav"), clip(folder / "hidden" / "a.wav")
        locked.chmod(0)
        hidden.parent.chmod(0)

        def attempt() -> str:
            told = []
            for path in (locked, hidden):
                try:
                    read(path)
                except AudioError as error:
                    told.append(str(error))
            return "\n".join(told)

        assert as_nobody(attempt).splitlines() == [
            f"{locked}: may not be read; grant read permission",
            f"{hidden}: may not be read; grant read permission",
        ]
        hidden.parent.chmod(0o755)
