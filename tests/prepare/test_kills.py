"""The command is killed: anywhere, with or without workers. The same command again completes, to
the byte."""

import builtins
import contextlib
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import (
    command_line,
    contents,
    corpus,
    in_child,
    logged_checks,
    prepare,
    prepare_apart,
    read,
    speech,
)
from helpers.trees import at_most

_open = io.open


class Deadly:
    """Every effect of this process on the disk, counted; before effect number `at` the process
    kills itself.

    torn: in the middle of that effect, if it is a write. Nothing is synced: what a killed process
    has written is the kernel's and stays."""

    def __init__(self, patch: pytest.MonkeyPatch, *, at: int, torn: bool) -> None:
        self._count, self._at, self._torn = 0, at, torn
        for name in ("replace", "unlink", "mkdir", "truncate"):
            patch.setattr(os, name, self._watched(getattr(os, name)))
        patch.setattr(io, "open", self._open)
        patch.setattr(builtins, "open", self._open)

    def event(self, *, write: bool = False) -> bool:
        """Count it; True: the process is to die in the middle of it."""
        self._count += 1
        if self._count - 1 != self._at:
            return False
        if not (self._torn and write):
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def _watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.event()
            return original(*args, **kwargs)

        return watched

    def _open(
        self,
        path: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        *rest: Any,
        **named: Any,
    ):
        # Reading changes nothing on the disk.
        if not set(mode) & set("wax+"):
            return _open(path, mode, buffering, encoding, *rest, **named)
        deadly = self

        class File(io.FileIO):
            def write(self, content: Any, /) -> int:
                if deadly.event(write=True):
                    super().write(bytes(content)[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().write(content)

            def truncate(self, size: int | None = None, /) -> int:
                deadly.event()
                return super().truncate(size)

        self.event()  # opening creates the file, or empties it
        raw = File(path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of what is checked, by runs that name their folders from `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    with logged_checks(tmp_path / "log") as path:
        yield path


PLAIN = ["--validate", "--split", "--val_ratio", "0.4"]
PROCESSED = ["--validate", "--audio_output", "audio", "--noise_snr_db", "20"]


def killed_everywhere(
    tmp_path: Path,
    log: Path,
    arguments: list[Any],
    *,
    torn: bool,
    stray: bool = False,
) -> int:
    """Kill at every effect on the disk and start again; the number of effects.

    stray: half written files count as well."""
    folders = [tmp_path / "out", tmp_path / "audio"]
    arguments = [*arguments, "--output_file", "out/train.jsonl"]

    def reset() -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        os.truncate(log, 0)

    def done() -> list[str]:
        """What was checked or encoded since the last question."""
        lines = log.read_text().splitlines()
        os.truncate(log, 0)
        return lines

    reset()
    assert prepare(*arguments) == 0
    expected, everything = contents(*folders), done()
    for at in range(10_000):
        reset()

        def run(at: int = at) -> None:
            with pytest.MonkeyPatch.context() as patch:
                # What a killed process has written is the kernel's and stays.
                patch.setattr(os, "fsync", lambda descriptor: None)
                Deadly(patch, at=at, torn=torn)
                assert prepare(*arguments) == 0

        status, first = in_child(run), done()
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            assert contents(*folders) == expected
            return at
        with contextlib.redirect_stdout(io.StringIO()):
            assert prepare(*arguments) == 0
        assert (contents if stray else without_strays)(*folders) == expected, at
        rest = done()
        again = [line for line in rest if line in first]
        assert len(again) <= 1, (at, again)  # the one that was in the making
        assert {*first, *again, *rest} == set(everything), at
    raise AssertionError("never done")


def without_strays(*folders: Path) -> dict[str, bytes]:
    files = contents(*folders)
    return {name: files[name] for name in files if not name.endswith(".tmp")}


@pytest.mark.parametrize("torn", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(PROCESSED, id="processed", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_effect_and_run_again(flags, torn, tmp_path, log, capsys):
    arguments = corpus(tmp_path / "corpus", 3)
    speech(tmp_path / "corpus" / "clip001.wav", 0.3)  # rejections are kept as well
    assert killed_everywhere(tmp_path, log, [*arguments, *flags], torn=torn) > 20


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_behind_once_it_is_run_again(tmp_path, log, capsys):
    """Hidden and never swept: after some interruptions of a corpus of hours they fill the disk."""
    arguments = corpus(tmp_path / "corpus", 2)
    killed_everywhere(tmp_path, log, [*arguments, *PROCESSED], torn=True, stray=True)


@pytest.mark.slow
def test_killed_at_any_effect_while_encoding(tiny, tmp_path, log, capsys, monkeypatch):
    """References too; the codec is loaded once and inherited."""
    import plugins.audio.codec
    from plugins.audio import code_cache
    from plugins.audio.codec import Codec

    monkeypatch.setattr(code_cache, "_BATCH_S", 0)  # otherwise a kill costs the clips of a second
    codec = str(tiny / "audio_tokenizer")
    loaded = plugins.audio.codec._load_codec(codec)
    monkeypatch.setattr(plugins.audio.codec, "_load_codec", lambda path: loaded)
    encode_file = Codec.encode_file

    def logged(self: Codec, path: str) -> Any:
        codes = encode_file(self, path)
        with log.open("a") as file:
            file.write(f"encoded {path}\n")
        return codes

    monkeypatch.setattr(Codec, "encode_file", logged)
    arguments = corpus(tmp_path / "corpus", 3, speakers=1, duration_s=3.0, rate=16_000)
    flags = ["--references", "--encode_codes", "--codec", codec]
    assert killed_everywhere(tmp_path, log, [*arguments, *flags], torn=False) > 20


@pytest.mark.slow
def test_killed_from_outside_until_it_is_done(tmp_path):
    """No part of the command is replaced here: one worker, SIGKILL at no chosen moment."""
    arguments = corpus(tmp_path / "corpus", 150, rate=44_100, duration_s=3.0)
    arguments += ["--workers", "1", "--validate", "--audio_output", tmp_path / "audio"]
    arguments += ["--output_file", tmp_path / "out" / "train.jsonl"]
    folders = [tmp_path / "audio", tmp_path / "out"]
    assert prepare_apart(*arguments).returncode == 0
    expected = contents(*folders)
    for folder in folders:
        shutil.rmtree(folder)
    kills = 0
    for wait_s in (0.6, 0.8, 0.9, 0.7, 1.0, 0.8):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command_line(*arguments), **quiet)
        time.sleep(wait_s)
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert kills
    assert prepare_apart(*arguments).returncode == 0
    assert without_strays(*folders) == expected


@contextlib.contextmanager
def two_workers(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], list[Any]]]:
    """A run with two workers that has begun to write clips: its process, its workers, its
    arguments."""
    arguments = corpus(tmp_path / "corpus", 100, rate=44_100, duration_s=3.0)
    arguments += ["--workers", "2", "--audio_output", tmp_path / "audio"]
    arguments += ["--output_file", tmp_path / "train.jsonl"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command_line(*arguments), text=True, **pipes)
    workers: list[int] = []
    try:
        with at_most(60):
            while len(list(tmp_path.glob("audio/*.flac"))) < 10:
                time.sleep(0.01)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
        workers = list(map(int, children.split()))
        assert len(workers) == 2
        yield child, workers, arguments
    finally:
        for pid in (child.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.communicate()


def test_workers_do_not_outlive_a_killed_run(tmp_path):
    """They held the lock: the same command was refused until someone found and ended them."""
    with two_workers(tmp_path) as (child, workers, arguments):
        child.kill()
        child.wait()
        with at_most(10):
            while any(Path(f"/proc/{pid}").exists() for pid in workers):
                time.sleep(0.05)
        assert prepare(*arguments) == 0
        assert len(read(tmp_path / "train.jsonl")) == 100


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line_and_a_restart_completes(tmp_path):
    with two_workers(tmp_path) as (child, workers, arguments):
        os.kill(workers[0], signal.SIGKILL)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (1, "")
    lines = [line for line in err.splitlines() if line and not line.startswith("clips")]
    assert lines == [
        "error: workers: a process died (out of memory?); start the same command again with fewer"
        " --workers: finished clips are not done again"
    ]
    assert not (tmp_path / "train.jsonl").exists()
    assert prepare(*arguments) == 0
    assert len(read(tmp_path / "train.jsonl")) == 100


def test_workers_change_no_byte(tmp_path):
    """More than one chunk each, rejections among them; noise that followed from what a worker did
    before would be another."""
    arguments = [*corpus(tmp_path / "corpus", 80), "--validate", "--split", "--trim", "energy"]
    arguments += ["--noise_snr_db", "20", "--speed_factors", "1.1"]
    speech(tmp_path / "corpus" / "clip040.wav", 0.3)
    folders = [tmp_path / "audio", tmp_path / "out"]
    arguments += ["--audio_output", folders[0], "--output_file", folders[1] / "train.jsonl"]

    def written(num_workers: int) -> dict[str, bytes]:
        assert prepare(*arguments, "--workers", num_workers) == 0
        files = contents(*folders)
        for folder in folders:
            shutil.rmtree(folder)
        return files

    alone = written(1)
    assert written(2) == alone
    assert len(alone) > 150
