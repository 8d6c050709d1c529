"""The command on a machine that fails: killed anywhere, disk full, two at once, files that lie."""

import builtins
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT
from helpers.commands import (
    command_line,
    contents,
    corpus,
    in_child,
    prepare,
    prepare_apart,
    read,
    reasons,
    speech,
    table,
)
from helpers.trees import at_most

from plugins.prepare import cli
from plugins.prepare.clips import Work
from plugins.prepare.run import journal_of


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
        patch.setattr(sf, "write", self._sound(sf.write))

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

    def _sound(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def write(path: Path, samples: np.ndarray, *args: Any, **kwargs: Any) -> None:
            dies = self.event(write=True)
            original(path, samples[: len(samples) // 2] if dies else samples, *args, **kwargs)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

        return write

    def _open(
        self,
        path: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        *rest: Any,
        **named: Any,
    ):
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

        self.event()
        raw = File(path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)


_open = io.open


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes half a second, and these runs are many."""
    monkeypatch.setattr(cli, "picture", lambda report: b"picture")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in which every clip that was checked or encoded stands, also by a process that is
    killed later."""
    path = tmp_path / "log"
    path.touch()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    original = Work.__call__

    def logged(self: Work, utterance: Any) -> Any:
        outcome = original(self, utterance)
        os.write(descriptor, f"checked {utterance.id}\n".encode())
        return outcome

    monkeypatch.setattr(Work, "__call__", logged)
    yield path
    os.close(descriptor)


# --- killed ---


def plain(tmp_path: Path) -> list[Any]:
    return ["--validate", "--split", "--val_ratio", "0.4"]


def processed(tmp_path: Path) -> list[Any]:
    return ["--audio_output", tmp_path / "audio", "--noise_snr_db", "20", "--validate"]


def killed_everywhere(
    tmp_path: Path,
    log: Path,
    arguments: list[Any],
    *,
    torn: bool,
    ok_again: int = 1,
    stray: bool = False,
) -> int:
    """Kill at every effect on the disk and start again; the number of effects."""
    folders = [tmp_path / name for name in ("out", "audio")]
    arguments = [*arguments, "--output_file", tmp_path / "out" / "train.jsonl"]

    def reset() -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        os.truncate(log, 0)

    def done() -> list[str]:
        lines = log.read_text().split("\n")[:-1]
        os.truncate(log, 0)
        return lines

    reset()
    assert prepare(*arguments) == 0
    expected, everything = contents(*folders), done()
    for at in range(10_000):
        reset()

        def run(at: int = at) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", lambda descriptor: None)
                Deadly(patch, at=at, torn=torn)
                assert prepare(*arguments) == 0

        status = in_child(run)
        first = done()
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            assert contents(*folders) == expected
            return at
        with contextlib.redirect_stdout(io.StringIO()):
            assert prepare(*arguments) == 0
        found = contents(*folders)
        if not stray:
            found = {name: content for name, content in found.items() if not name.endswith(".tmp")}
        assert found == expected, at
        rest = done()
        again = [line for line in rest if line in first]
        assert len(again) <= ok_again, (at, again)  # the one that was in the making
        assert {*first, *again, *rest} == set(everything), at
    raise AssertionError("never done")


@pytest.mark.parametrize("torn", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("flags", [plain, processed])
def test_killed_at_any_effect_and_run_again(flags, torn, tmp_path, log, capsys):
    arguments = corpus(tmp_path / "corpus", 3)
    speech(tmp_path / "corpus" / "clip001.wav", 0.3)  # rejections are kept as well
    assert killed_everywhere(tmp_path, log, [*arguments, *flags(tmp_path)], torn=torn) > 20


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_behind_once_it_is_run_again(tmp_path, log, capsys):
    """Hidden and never swept: after some interruptions of a corpus of hours they fill the disk."""
    arguments = corpus(tmp_path / "corpus", 2)
    killed_everywhere(tmp_path, log, [*arguments, *processed(tmp_path)], torn=True, stray=True)


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
    arguments = [
        *corpus(tmp_path / "corpus", 150, rate=44_100, duration_s=3.0),
        "--workers",
        "1",
        "--validate",
    ]
    arguments += [
        "--audio_output",
        tmp_path / "audio",
        "--output_file",
        tmp_path / "out" / "train.jsonl",
    ]
    folders = [tmp_path / "audio", tmp_path / "out"]
    assert prepare_apart(*arguments).returncode == 0
    expected = contents(*folders)
    for folder in folders:
        shutil.rmtree(folder)
    kills = 0
    for wait_s in (0.6, 0.8, 0.9, 0.7, 1.0, 0.8):
        child = subprocess.Popen(
            command_line(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(wait_s)
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert kills
    assert prepare_apart(*arguments).returncode == 0
    assert {
        name: content for name, content in contents(*folders).items() if not name.endswith(".tmp")
    } == expected


@contextlib.contextmanager
def two_workers(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], list[Any]]]:
    """A run with two workers that has begun to write clips: its process, its workers, its
    arguments."""
    arguments = corpus(tmp_path / "corpus", 100, rate=44_100, duration_s=3.0)
    arguments += [
        "--workers",
        "2",
        "--audio_output",
        tmp_path / "audio",
        "--output_file",
        tmp_path / "train.jsonl",
    ]
    child = subprocess.Popen(
        command_line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers: list[int] = []
    try:
        with at_most(60):
            while len(list(tmp_path.glob("audio/*.flac"))) < 10:
                time.sleep(0.01)
        workers = [
            int(pid)
            for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        ]
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
        time.sleep(3)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        again = prepare_apart(*arguments)
        assert again.returncode == 0, again.stderr
        assert len(read(tmp_path / "train.jsonl")) == 100


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line_and_a_restart_completes(tmp_path):
    with two_workers(tmp_path) as (child, workers, arguments):
        os.kill(workers[0], signal.SIGKILL)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (1, "")
    lines = [line for line in err.splitlines() if line and not line.startswith("clips")]
    assert lines == [
        "error: workers: a process died (out of memory?); start the same command again with fewer --workers: finished"
        " clips are not done again"
    ]
    assert not (tmp_path / "train.jsonl").exists()
    assert prepare_apart(*arguments).returncode == 0
    assert len(read(tmp_path / "train.jsonl")) == 100


def test_workers_change_no_byte(tmp_path):
    """More than one chunk each, rejections among them."""
    arguments = [*corpus(tmp_path / "corpus", 80), "--validate", "--noise_snr_db", "20", "--split"]
    speech(tmp_path / "corpus" / "clip040.wav", 0.3)
    folders, found = [tmp_path / "audio", tmp_path / "out"], []
    for workers in (1, 2):
        flags = [
            "--audio_output",
            tmp_path / "audio",
            "--output_file",
            tmp_path / "out" / "train.jsonl",
        ]
        assert prepare(*arguments, *flags, "--workers", workers) == 0
        found.append(contents(*folders))
        for folder in folders:
            shutil.rmtree(folder)
    assert found[0] == found[1]
    assert len(found[0]) > 150


# --- what the journal of an interrupted run claims ---


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def interrupted(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """A run that ended when all clips were in its journal, two copies each. The same command again,
    which must give the bytes of one that was never interrupted; what it has checked again."""
    arguments = [
        *corpus(tmp_path / "corpus", 4),
        *processed(tmp_path),
        "--output_file",
        tmp_path / "out" / "x.jsonl",
    ]
    folders = [tmp_path / "out", tmp_path / "audio"]
    assert prepare(*arguments) == 0
    expected = contents(*folders)
    for folder in folders:
        shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments)
    os.truncate(log, 0)

    def again() -> list[str]:
        assert prepare(*arguments) == 0
        assert contents(*folders) == expected
        return [line.removeprefix("checked ") for line in log.read_text().splitlines()]

    return again


def test_a_journal_that_is_true_is_believed(interrupted):
    assert interrupted() == []


def test_copies_that_are_gone_are_made_again(interrupted, tmp_path):
    """It ended well, with rows that named files which were not there."""
    shutil.rmtree(tmp_path / "audio")
    assert len(interrupted()) == 4


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: os.truncate(path, 1000), _flip], ids=["gone", "cut", "bit"]
)
def test_a_copy_that_is_no_longer_what_was_written_is_made_again(harm, interrupted, tmp_path):
    """The second copy of a clip, so that the first one's being there does not count for it."""
    harm(
        next(
            path
            for path in sorted((tmp_path / "audio").glob("clip002*.flac"))
            if "snr20" in path.name
        )
    )
    assert interrupted() == ["clip002.wav"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda line: bytes(len(line)),
    "half": lambda line: line[: len(line) // 2],
    "another half before it": lambda line: line[: len(line) // 2] + line,
    "a digit": lambda line: line.replace(b"1.2", b"9.2", 1),
    "another type": lambda line: b"[1, 2]",
    "a number": lambda line: b"7",
    "deep": lambda line: b"[" * 100_000,
    "not UTF-8": lambda line: b"\xff\xfe",
    "empty": lambda line: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_of_the_journal_is_redone(damage, interrupted, tmp_path):
    """A power cut leaves zeros where a line was; it was a traceback, and the corpus had to be done
    anew."""
    journal = tmp_path / "out" / ".x.jsonl.journal"
    lines = journal.read_bytes().splitlines()
    lines[1] = DAMAGES[damage](lines[1])
    journal.write_bytes(b"".join(line + b"\n" for line in lines))
    assert interrupted() == ["clip001.wav"]


# --- two at once ---


def test_two_runs_into_one_file(tmp_path):
    arguments = [*corpus(tmp_path / "corpus", 3), "--output_file", tmp_path / "train.jsonl"]
    os.mkfifo(tmp_path / "gate")

    def waiting() -> None:
        original = Work.__call__

        def slow(self: Work, utterance: Any) -> Any:
            (tmp_path / "started").touch()
            (tmp_path / "gate").read_text()  # until the other has been refused
            Work.__call__ = original
            return original(self, utterance)

        Work.__call__ = slow
        assert prepare(*arguments) == 0

    first = os.fork()
    if first == 0:
        try:
            waiting()
        finally:
            os._exit(0)
    with at_most(20):
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        second = prepare_apart(*arguments)
        (tmp_path / "gate").write_text("")
        os.waitpid(first, 0)
    assert (second.returncode, second.stdout) == (1, "")
    error = f"error: --output_file: path: '{tmp_path}/train.jsonl' is being written by another run; wait for it, or "
    assert second.stderr.splitlines() == [f"{error}name another one"]
    assert len(read(tmp_path / "train.jsonl")) == 3
    assert prepare(*arguments) == 0


def test_one_run_at_a_time_writes_into_a_folder_of_audio(tmp_path, capsys):
    """Each takes what the other has half written for strays."""
    folder = tmp_path / "24k"
    arguments = [*corpus(tmp_path / "corpus", 1), "--audio_output", folder]
    with journal_of(folder):
        assert prepare(*arguments, "--output_file", tmp_path / "a.jsonl") == 1
    assert (
        f"--audio_output: path: '{folder}' is being written by another run"
        in capsys.readouterr().err
    )
    assert prepare(*arguments, "--output_file", tmp_path / "b.jsonl") == 0


def test_two_runs_into_two_files_of_one_folder(tmp_path):
    arguments = [*corpus(tmp_path / "corpus", 40), "--validate", "header"]
    outputs = [tmp_path / "out" / f"{name}.jsonl" for name in "ab"]
    runs = [subprocess.Popen(command_line(*arguments, "--output_file", output), stdout=subprocess.DEVNULL)
            for output in outputs]  # fmt: skip
    assert [run.wait(60) for run in runs] == [0, 0]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert len(read(outputs[0])) == 40


@pytest.mark.slow
def test_two_runs_into_one_codes_folder(tiny, tmp_path):
    """Both finish, and the codes serve both."""
    from plugins.audio.code_cache import CodeCache

    runs = {}
    for name, seed in (("a", 0), ("b", 50)):
        root = tmp_path / name
        for number in range(8):
            speech(root / f"{number}.wav", seed=seed + number)
        flags = [
            "--output_file",
            tmp_path / f"{name}.jsonl",
            "--encode_codes",
            "--codec",
            tiny / "audio_tokenizer",
        ]
        runs[name] = [*table(root, [f"{number}.wav" for number in range(8)]), *flags]
    children = {
        name: subprocess.Popen(
            command_line(*run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, run in runs.items()
    }
    errors = {name: child.communicate(timeout=120)[1] for name, child in children.items()}
    assert [child.returncode for child in children.values()] == [0, 0], errors
    cache = CodeCache(tmp_path / "codes")
    keys = [
        row["audio_codes"][0].split("#")[1]
        for name in runs
        for row in read(tmp_path / f"{name}.jsonl")
    ]
    assert sorted(cache) == sorted(keys)
    assert len(set(keys)) == 16


# --- disk full ---


def limited(num_bytes: int) -> Callable[[], None]:
    """No file of this process may become larger, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.mark.parametrize(
    ("num_bytes", "flags"),
    [(1_500, []), (4_000, ["--validate", "header"]), (10_000, ["--split"])],
    ids=["journal", "picture", "rows"],
)
def test_disk_full_is_one_line_and_leaves_the_old_output(tmp_path, num_bytes, flags):
    output = tmp_path / "out" / "train.jsonl"
    arguments = [
        *corpus(tmp_path / "corpus", 12 if num_bytes < 10_000 else 40),
        "--output_file",
        output,
        "--workers",
        "1",
    ]
    output.parent.mkdir()
    old = {
        name: f"old {name}"
        for name in ("train.jsonl", "train.rejected.jsonl", "val.jsonl", "train.report.json")
    }
    for name, content in old.items():
        (output.parent / name).write_text(content)
    found = prepare_apart(*arguments, *flags, preexec_fn=limited(num_bytes))
    assert (found.returncode, found.stdout) == (1, ""), found
    assert [line for line in found.stderr.splitlines() if line.strip()] == [
        f"error: {output}: File too large"
    ]
    assert {
        path.name: path.read_text()
        for path in output.parent.iterdir()
        if not path.name.startswith(".")
    } == old
    assert prepare_apart(*arguments, *flags).returncode == 0
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full_while_clips_are_written(tmp_path, workers):
    """libsndfile tells of it in its own way."""
    output = tmp_path / "out" / "train.jsonl"
    arguments = [*corpus(tmp_path / "corpus", 6), "--output_file", output, "--workers", workers]
    arguments += ["--audio_output", tmp_path / "audio", "--noise_snr_db", "10"]
    found = prepare_apart(*arguments, preexec_fn=limited(30_000))
    assert (found.returncode, found.stdout) == (1, ""), found
    lines = [line for line in found.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert not output.exists()
    assert not [
        path for path in (tmp_path / "audio").glob("*.flac") if sf.info(path).duration < 1.2
    ]
    assert prepare_apart(*arguments).returncode == 0
    assert len(read(output)) == 12


# --- files that lie ---


def peak_mb(*arguments: Any) -> float:
    """The most memory that the command took, in MB, asked of itself: rusage counts this process's
    before `exec` too."""
    code = "import sys; from plugins.prepare.cli import main; code = main(sys.argv[1:])"
    code += "; print(code, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    status, peak_kb = done.stdout.splitlines()[-1].split()
    assert status == "0"
    return int(peak_kb) / 1024


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight hours of silence in about a megabyte of FLAC, and a normal clip."""
    root = tmp_path_factory.mktemp("hours")
    with sf.SoundFile(root / "long.flac", "w", 16_000, 1) as file:
        minute = np.zeros(16_000 * 60, dtype=np.int16)
        for _ in range(8 * 60):
            file.write(minute)
    speech(root / "ok.wav")
    return root


@pytest.mark.parametrize("level", ["header", "full"])
def test_eight_hours_of_silence_take_no_memory(hours, tmp_path, level):
    output = tmp_path / "train.jsonl"
    arguments = [
        *table(hours, ["long.flac", "ok.wav"]),
        "--output_file",
        output,
        "--validate",
        level,
        "--workers",
        "1",
    ]
    assert peak_mb(*arguments) < 300
    reason = "is too long to be decoded (28800 s at 16000 Hz, channels: 1)"
    assert reasons(output) == [("long.flac", reason)]
    assert [row["id"] for row in read(output)] == ["ok.wav"]


def test_eight_hours_whose_header_says_two_seconds(hours, tmp_path):
    """The bound on the duration is asked of the header; the samples must not come as a surprise."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    speech(root / "ok.wav")
    content = bytearray((hours / "long.flac").read_bytes())
    packed = int.from_bytes(
        content[18:26], "big"
    )  # rate, channels, bits and 36 bits of length (STREAMINFO)
    content[18:26] = (packed >> 36 << 36 | 32_000).to_bytes(8, "big")
    (root / "liar.flac").write_bytes(content)
    arguments = table(root, ["liar.flac", "ok.wav"])
    assert peak_mb(*arguments, "--output_file", output, "--validate", "--workers", "1") < 300
    assert [row["id"] for row in read(output)] == ["ok.wav"]
    assert [id_ for id_, _ in reasons(output)] == ["liar.flac"]


def lying(root: Path) -> dict[str, str]:
    """One file per lie; name -> the reason of its rejection."""
    wav = speech(root / "a.wav", 2.0, seed=5).read_bytes()
    flac = speech(root / "b.flac", 2.0, seed=6).read_bytes()
    huge = bytearray(wav)
    huge[40:44] = (0x7FFFEFFF).to_bytes(4, "little")  # the length of the samples
    (root / "huge.wav").write_bytes(huge)
    rate = bytearray(wav)
    rate[24:28] = (2_000_000).to_bytes(4, "little")
    (root / "rate.wav").write_bytes(rate)
    many = bytearray(wav)
    many[22:24] = (1024).to_bytes(2, "little")
    (root / "many.wav").write_bytes(many)
    (root / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (root / "head.flac").write_bytes(flac[:50])
    packed = int.from_bytes(flac[18:26], "big")
    (root / "long.flac").write_bytes(flac[:18] + (packed + 24_000).to_bytes(8, "big") + flac[26:])
    (root / "zero.flac").touch()
    sf.write(
        root / "nan.wav", np.where(np.arange(36_000) == 100, np.nan, 0.1), 24_000, subtype="FLOAT"
    )
    sf.write(
        root / "inf.wav", np.where(np.arange(36_000) == 100, np.inf, 0.1), 24_000, subtype="FLOAT"
    )
    sf.write(root / "silent.flac", np.zeros(36_000), 24_000)
    sf.write(root / "loud.wav", np.clip(5 * np.sin(np.arange(36_000) / 20), -1, 1), 24_000)
    os.mkfifo(root / "pipe.wav")
    (root / "link.wav").symlink_to("/dev/zero")
    (root / "folder.wav").mkdir()
    return {
        "huge.wav": "is truncated",
        "rate.wav": "has too high a sample rate",
        "many.wav": "is not readable audio|has too many channels",
        "cut.flac": "does not decode to its end|is truncated",
        "head.flac": "is not readable audio|does not decode to its end|is truncated",
        "long.flac": "does not decode to its end|is truncated",
        "zero.flac": "is empty",
        "nan.wav": "holds NaN or infinite samples",
        "inf.wav": "holds NaN or infinite samples",
        "silent.flac": "silence share above max_silence_share",
        "loud.wav": "clipped share above max_clipped_share",
        "pipe.wav": "is not a regular file",
        "link.wav": "is not a regular file",
        "folder.wav": "is a folder",
        "https://example.org/a.wav": "is a URL",
        "gone.wav": "not found",
    }


@pytest.mark.parametrize("flags", [["--validate"], ["--audio_output", "audio"]])
def test_files_that_lie_are_told_by_name(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("opened a socket"))
    wanted = lying(tmp_path / "corpus")
    arguments = table(tmp_path / "corpus", ["a.wav", "b.flac", *wanted])
    output = tmp_path / "train.jsonl"
    with at_most(30):
        assert prepare(*arguments, "--output_file", output, *flags, "--strict") == 3
    assert [row["id"] for row in read(output)] == ["a.wav", "b.flac"]
    told = {id_: reason.partition(" (")[0] for id_, reason in reasons(output)}
    assert told.keys() == wanted.keys()
    assert {
        id_: reason for id_, reason in told.items() if reason not in wanted[id_].split("|")
    } == {}
    lines = (tmp_path / "corpus" / "meta.csv").read_text().splitlines()
    for row in read(output.with_suffix(".rejected.jsonl")):
        line = int(row["file"].rpartition(":")[2])
        assert lines[line - 1].startswith(f"{row['id']},")
    if "--validate" in flags:
        kinds = json.loads(output.with_suffix(".report.json").read_text())["rejected"]
        assert kinds["clips"] == len(wanted) == sum(kinds["reasons"].values())
