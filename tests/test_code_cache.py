"""The code cache: what is read is what was written, or one line says why not; whatever happens to the run."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import pickle
import random
import re
import resource
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import in_child

from plugins import audio, code_cache
from plugins.code_cache import (
    FRAME_BYTES,
    CacheWriter,
    CodeCache,
    codec_fingerprint,
    content_key,
    format_reference,
    parse_reference,
)
from plugins.errors import UserError

Clips = dict[str, np.ndarray]
SHARD_BYTES = 40 * FRAME_BYTES


def make_clips(num_clips: int, *, first: int = 0, num_frames: int | None = None) -> Clips:
    """Clips of 5 to 16 frames, or of `num_frames`."""
    clips = {}
    for i in range(first, first + num_clips):
        key = hashlib.md5(str(i).encode()).hexdigest()
        clips[key] = np.random.default_rng(i).integers(0, 1024, (8, num_frames or 5 + i % 12))
    return clips


CLIPS = make_clips(8)
CODES_BYTES = sum(codes.shape[1] for codes in CLIPS.values()) * FRAME_BYTES


def command(folder: Path, clips: Clips, *, seed: int = 0, finished: Callable[[str], None] = lambda key: None) -> None:
    """A run over `clips` whose workers finish in an order of their own."""
    arriving = list(clips)
    random.Random(seed).shuffle(arriving)
    with CacheWriter(folder, max_shard_bytes=SHARD_BYTES) as writer:
        for key in arriving:
            if key not in writer:
                writer.add(key, clips[key])
                finished(key)
        writer.commit(clips)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_holds(cache: CodeCache, clips: Clips) -> None:
    assert sorted(cache) == sorted(clips)
    for key, codes in clips.items():
        assert np.array_equal(cache[key], codes)


# Reading and writing.


def test_codes_come_back_as_views_of_the_file(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    cache = CodeCache(tmp_path)
    assert_holds(cache, CLIPS)
    for key, codes in CLIPS.items():
        found = cache[key]
        assert (found.dtype, found.shape, found.flags.writeable) == (np.int16, codes.shape, False)
        assert cache.num_frames(key) == codes.shape[1]
        base: Any = found
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def test_reading_allocates_nothing_that_grows_with_the_cache(tmp_path: Path) -> None:
    clips = make_clips(4, num_frames=1 << 17)  # 8 MB
    command(tmp_path, clips)
    tracemalloc.start()
    cache = CodeCache(tmp_path)
    views = [cache[key] for key in cache]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(view.nbytes for view in views) == 8 << 20
    assert peak < 200_000


def test_400_bytes_per_second_and_an_index_below_5_percent(tmp_path: Path) -> None:
    num_clips, duration_s = 40, 5
    command(tmp_path, make_clips(num_clips, num_frames=25 * duration_s))
    sizes = {name: len(content) for name, content in contents(tmp_path).items()}
    index_bytes = sizes.pop("index.bin")
    assert sum(sizes.values()) == num_clips * duration_s * 400
    assert index_bytes == 12 + 32 * num_clips
    assert index_bytes < 0.05 * sum(sizes.values())


def test_shards_hold_the_clips_in_the_given_order_and_no_more_than_their_size(tmp_path: Path) -> None:
    clips = make_clips(6) | make_clips(1, first=6, num_frames=50)  # the last is larger than a shard may be
    command(tmp_path, clips)
    shards = [content for name, content in sorted(contents(tmp_path).items()) if name.startswith("codes-")]
    assert [len(shard) // FRAME_BYTES for shard in shards] == [5 + 6 + 7 + 8 + 9, 10, 50]
    assert b"".join(shards) == b"".join(codes.astype("<i2").tobytes() for codes in clips.values())


def test_it_pickles_as_its_folder_and_opens_anew(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    content = pickle.dumps(CodeCache(tmp_path))
    assert len(content) < 500
    assert in_child(lambda: assert_holds(pickle.loads(content), CLIPS)) == 0


def test_keys_of_any_bytes_are_found(tmp_path: Path) -> None:
    """Zeros at the end, high bytes, neighbours: numpy strips and sorts bytes by its own rules."""
    edges = ["00" * 16, "ff" * 16, "61" + "00" * 15, "61" + "00" * 14 + "01", "80" * 16, "7f" * 15 + "00"]
    clips = dict(zip([*edges, *make_clips(200)], make_clips(206).values(), strict=True))
    command(tmp_path, clips)
    cache = CodeCache(tmp_path)
    assert_holds(cache, clips)
    assert list(cache) == sorted(clips)
    for absent in ("00" * 15 + "01", "61" + "00" * 14 + "02", "fe" + "ff" * 15):
        assert absent not in cache


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (np.zeros((7, 3), int), r"codes: \(7, 3\) is not \(8, F\); use the codec"),
        (np.zeros((8, 0), int), r"codes: \(8, 0\) is not \(8, F\)"),
        (np.zeros(8, int), r"codes: \(8,\) is not \(8, F\)"),
        (np.full((8, 3), 1024), r"codes: 1024 is outside 0\.\.1023"),
        (np.full((8, 3), -1), r"codes: -1 is outside 0\.\.1023"),
    ],
)
def test_codes_of_another_codec_are_refused(codes: np.ndarray, expected: str, tmp_path: Path) -> None:
    key = next(iter(CLIPS))
    with CacheWriter(tmp_path) as writer:
        with pytest.raises(UserError, match=rf"^{tmp_path}: {expected}"):
            writer.add(key, codes)
        assert key not in writer


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_tensors_are_codes_too(dtype: torch.dtype, tmp_path: Path) -> None:
    key = next(iter(CLIPS))
    codes_FxK = torch.randint(1024, (9, 8), dtype=dtype)
    with CacheWriter(tmp_path) as writer:
        writer.add(key, codes_FxK.T)
        writer.commit([key])
    assert np.array_equal(CodeCache(tmp_path)[key], codes_FxK.T.numpy())


def test_committing_what_was_never_added_is_our_own_mistake(tmp_path: Path) -> None:
    with CacheWriter(tmp_path) as writer, pytest.raises(AssertionError, match="was never added"):
        writer.commit(CLIPS)


def test_a_cache_without_clips_is_one(tmp_path: Path) -> None:
    command(tmp_path, {})
    assert len(CodeCache(tmp_path)) == 0
    assert next(iter(CLIPS)) not in CodeCache(tmp_path)


# Runs after runs.


def test_a_later_run_adds_shards_and_leaves_the_old_ones_alone(tmp_path: Path) -> None:
    first, more = make_clips(5), make_clips(9)
    command(tmp_path, first)
    before, reader = contents(tmp_path), CodeCache(tmp_path)
    dates = {name: (tmp_path / name).stat().st_mtime_ns for name in before if name.startswith("codes-")}
    command(tmp_path, more)
    assert_holds(CodeCache(tmp_path), more)
    assert_holds(reader, first)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in dates} == dates
    assert len(contents(tmp_path)) > len(before)


def test_the_same_command_again_encodes_and_writes_nothing(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    encoded: list[str] = []
    command(tmp_path, CLIPS, finished=encoded.append)
    assert encoded == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_files_do_not_depend_on_the_order_in_which_clips_are_finished(tmp_path: Path) -> None:
    for seed in range(3):
        command(tmp_path / str(seed), CLIPS, seed=seed)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
    command(tmp_path / "reversed", dict(reversed(CLIPS.items())))
    assert contents(tmp_path / "reversed") != contents(tmp_path / "0"), "the given order is that of the shards"


def test_clips_named_or_added_twice_are_kept_once(tmp_path: Path) -> None:
    command(tmp_path / "once", CLIPS)
    with CacheWriter(tmp_path / "twice", max_shard_bytes=SHARD_BYTES) as writer:
        for key, codes in CLIPS.items():
            writer.add(key, codes)
            writer.add(key, np.zeros_like(codes))
        writer.commit([*CLIPS, *reversed(CLIPS)])
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_clips_of_an_interrupted_run_survive_another_one(tmp_path: Path) -> None:
    """Someone whose long run was killed tries a small one in the same folder: hours of encoding must not be lost."""
    small = make_clips(2, first=100)
    with CacheWriter(tmp_path) as writer:
        for key, codes in CLIPS.items():
            writer.add(key, codes)
    command(tmp_path, small)
    assert_holds(CodeCache(tmp_path), small)
    encoded: list[str] = []
    command(tmp_path, CLIPS, finished=encoded.append)
    assert encoded == []
    assert_holds(CodeCache(tmp_path), small | CLIPS)
    assert not (tmp_path / "journal.bin").exists()


# Killed.


class Faults:
    """Every effect of this process on the disk, in order; at effect number `kill_at` the process kills itself.

    Before the effect, but in the middle of a write. Syncing is recorded and not done: what a killed process has written
    is the kernel's and stays.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, kill_at: int | None = None) -> None:
        self.events: list[str] = []
        self._kill_at = kill_at
        for name in ("replace", "unlink", "mkdir"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        patch.setattr(os, "fsync", lambda fd: self.event("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        patch.setattr(code_cache, "open", self._open, raising=False)

    def event(self, name: str, path: object) -> bool:
        """Record it; True: the process is to die in the middle of it."""
        shown = re.sub(r"^\.(.*)\.[0-9a-f]{32}\.tmp$", r"\1.tmp", Path(str(path)).name)
        self.events.append(f"{name} {shown}")
        due = len(self.events) - 1 == self._kill_at
        if due and name != "write":
            os.kill(os.getpid(), signal.SIGKILL)
        return due

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.event(name, args[-1] if name == "replace" else args[0])
            return original(*args, **kwargs)

        return watched

    def _open(self, path: Path, mode: str, buffering: int = -1) -> io.FileIO:
        faults = self

        class File(io.FileIO):
            def write(self, content: Any, /) -> int:
                if faults.event("write", path):
                    super().write(content[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().write(content)

            def truncate(self, size: int | None = None, /) -> int:
                faults.event("truncate", path)
                return super().truncate(size)

        self.event("open", path)
        return File(path, mode)


def nothing(folder: Path) -> None:
    pass


def an_earlier_run(folder: Path) -> None:
    command(folder, make_clips(3, first=50))


def an_earlier_run_and_clips_of_a_killed_one(folder: Path) -> None:
    an_earlier_run(folder)
    with CacheWriter(folder) as writer:
        for key, codes in (make_clips(2, first=60) | make_clips(2, first=8)).items():
            writer.add(key, codes)


KILLED = make_clips(4, first=8)  # two shards
STARTS = [nothing, an_earlier_run, an_earlier_run_and_clips_of_a_killed_one]


def readable(folder: Path) -> set[str]:
    """The keys that a reader sees, all of whose codes are whole."""
    if not (folder / "index.bin").exists():
        with pytest.raises(UserError, match=rf"^{folder}: code cache: 'index.bin' cannot be read"):
            CodeCache(folder)
        return set()
    cache = CodeCache(folder)
    return {key for key in cache if cache[key].size}


@pytest.mark.parametrize("start", STARTS)
def test_killed_at_any_effect_and_run_again(
    start: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    folder, before, log = tmp_path / "codes", tmp_path / "before", tmp_path / "finished"
    start(before)
    old = readable(before)

    def reset() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        log.write_text("")
        if before.exists():
            shutil.copytree(before, folder)

    reset()
    with monkeypatch.context() as patch:
        faults = Faults(patch)
        command(folder, KILLED)
    expected, seen = contents(folder), set()
    assert readable(folder) == old | set(KILLED)

    for kill_at, event in enumerate(faults.events):
        reset()

        def killed(kill_at: int = kill_at) -> None:
            with log.open("a", buffering=1) as file:
                Faults(monkeypatch, kill_at=kill_at)
                command(folder, KILLED, finished=lambda key: print(key, file=file))

        assert in_child(killed) == -signal.SIGKILL, event
        keys = readable(folder)
        assert keys in (old, old | set(KILLED)), event
        seen.add(len(keys))
        encoded: list[str] = []
        command(folder, KILLED, seed=1, finished=encoded.append)
        assert contents(folder) == expected, event
        assert not set(encoded) & set(log.read_text().split()), event
    assert seen == {len(old), len(old) + len(KILLED)}


def test_codes_are_on_disk_before_their_name_and_the_index_is_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power failure needs and no test can stage: the order of writing, syncing and naming."""
    faults = Faults(monkeypatch)
    key = next(iter(CLIPS))
    command(tmp_path / "codes", {key: CLIPS[key]})

    def appears(name: str) -> list[str]:
        return [f"open {name}.tmp", f"write {name}.tmp", f"fsync {name}.tmp", f"replace {name}", "fsync codes"]

    idle = ("truncate journal.bin", "mkdir codes", "unlink codes-00000.bin.tmp", "unlink index.bin.tmp")
    assert [event for event in faults.events if event not in idle] == [
        "open lock",
        "open journal.bin",
        "write journal.bin",
        *appears("codes-00000.bin"),
        *appears("index.bin"),
        "unlink journal.bin",
    ]


def test_killed_from_outside_until_it_is_done(tmp_path: Path) -> None:
    """No part of the writer is replaced here: real files, real syncing, SIGKILL at no chosen moment."""
    clips = make_clips(30)
    command(tmp_path / "expected", clips)
    folder, moments = tmp_path / "codes", random.Random(0)
    for seed in range(15):
        child = os.fork()
        if child == 0:
            command(folder, clips, seed=seed)
            os._exit(0)
        time.sleep(moments.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert readable(folder) in (set(), set(clips))
    command(folder, clips)
    assert contents(folder) == contents(tmp_path / "expected")


# Damaged.


def staged_by_a_killed_run(folder: Path, clips: Clips) -> bytes:
    with CacheWriter(folder) as writer:
        for key, codes in clips.items():
            writer.add(key, codes)
    return (folder / "journal.bin").read_bytes()


def test_a_torn_tail_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    clips = make_clips(3)
    journal = staged_by_a_killed_run(tmp_path, clips)
    ends = np.cumsum([24 + codes.nbytes // 4 for codes in clips.values()])  # int64 here, int16 there
    assert ends[-1] == len(journal)
    for num_bytes in range(len(journal) + 1):
        (tmp_path / "journal.bin").write_bytes(journal[:num_bytes])
        with CacheWriter(tmp_path) as writer:
            num_whole = int((ends <= num_bytes).sum())
            assert [key in writer for key in clips] == [i < num_whole for i in range(3)]
        assert (tmp_path / "journal.bin").stat().st_size == [0, *ends][num_whole]


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"\xff" * 4096])
def test_garbage_behind_the_journal_is_no_clip(garbage: bytes, tmp_path: Path) -> None:
    """What some file systems leave after a power failure: a file of the new length with blocks of the old disk."""
    staged_by_a_killed_run(tmp_path, make_clips(2))
    with (tmp_path / "journal.bin").open("ab") as file:
        file.write(garbage)
    command(tmp_path, CLIPS)
    assert_holds(CodeCache(tmp_path), CLIPS)


def flipped(content: bytes) -> Iterable[tuple[int, bytes]]:
    """`content` with one bit flipped, in each of its bytes."""
    for i in range(len(content)):
        yield i, content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :]


def test_a_flipped_bit_in_the_journal_costs_clips_but_never_changes_one(tmp_path: Path) -> None:
    clips = make_clips(3)
    journal = staged_by_a_killed_run(tmp_path, clips)
    end_of_first = 24 + 5 * FRAME_BYTES
    for i, damaged in flipped(journal[: end_of_first * 2]):
        (tmp_path / "journal.bin").write_bytes(damaged)
        with CacheWriter(tmp_path) as writer:
            assert [key in writer for key in clips] == [i >= end_of_first, False, False]


def test_a_flipped_bit_in_a_shard_names_shard_and_clip(tmp_path: Path) -> None:
    clips = make_clips(8)
    command(tmp_path, clips)
    shard = tmp_path / "codes-00001.bin"  # of the last three: 10, 11 and 12 frames
    owners = [key for key in list(clips)[5:] for _ in range(clips[key].shape[1] * FRAME_BYTES)]
    for i, damaged in flipped(shard.read_bytes()):
        shard.write_bytes(damaged)
        cache = CodeCache(tmp_path)
        with pytest.raises(UserError, match=rf"^{shard}: codes: '{owners[i]}' are damaged .*; delete the folder"):
            cache[owners[i]]
        assert all(np.array_equal(cache[key], codes) for key, codes in clips.items() if key != owners[i])


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    index = tmp_path / "index.bin"
    whole = index.read_bytes()
    longer = [whole + b"\0", whole + b"\0" * 32]
    for damaged in [*longer, *(whole[:i] for i in range(len(whole))), *(content for _, content in flipped(whole))]:
        index.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^{tmp_path}: code cache: 'index.bin' (is damaged|cannot be read).*;"):
            CodeCache(tmp_path)
    with pytest.raises(UserError, match=r"'index.bin' is damaged; delete the folder and run"):
        command(tmp_path, CLIPS)


def test_a_shard_that_is_gone_or_of_another_length_is_named(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    shard = tmp_path / "codes-00001.bin"
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:7], whole + b"\0"):
        shard.write_bytes(damaged)
        expected = (
            rf"^{tmp_path}: code cache: 'codes-00001.bin' has {len(damaged)} bytes where the index has {len(whole)};"
        )
        with pytest.raises(UserError, match=expected):
            CodeCache(tmp_path)
    for damage in (lambda: shard.write_bytes(b""), shard.unlink):
        damage()
        with pytest.raises(UserError, match=rf"^{tmp_path}: code cache: 'codes-00001.bin' cannot be read \(.*\);"):
            CodeCache(tmp_path)


def test_a_missing_clip_is_named(tmp_path: Path) -> None:
    command(tmp_path, make_clips(2))
    key = list(CLIPS)[5]
    cache = CodeCache(tmp_path)
    for read in (cache.__getitem__, cache.num_frames):
        with pytest.raises(UserError, match=rf"^{tmp_path}: key: '{key}' is not in the code cache; run prepare_"):
            read(key)


# The disk is full.


def limit_files(num_bytes: int) -> None:
    """Of this process: what goes beyond is refused as on a full disk, after a part of it was written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize("staged", [False, True])
def test_disk_full_anywhere_then_run_again(staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(f"{__name__}.SHARD_BYTES", 10 * FRAME_BYTES)  # smaller than the index
    folder, told, messages = tmp_path / "codes", tmp_path / "told", set()
    command(tmp_path / "expected", CLIPS)
    expected = contents(tmp_path / "expected")

    for limit in range(0, CODES_BYTES, 71):
        shutil.rmtree(folder, ignore_errors=True)
        told.write_text("done")
        if staged:
            staged_by_a_killed_run(folder, CLIPS)

        def limited(limit: int = limit) -> None:
            limit_files(limit)
            try:
                command(folder, CLIPS)
            except UserError as error:
                limit_files(resource.RLIM_INFINITY)
                told.write_text(str(error))

        assert in_child(limited) == 0
        messages.add(told.read_text())
        assert readable(folder) == (set(CLIPS) if told.read_text() == "done" else set())
        command(folder, CLIPS)
        assert contents(folder) == expected
    pattern = rf"{folder}: code cache: '(.*)\.bin' cannot be written \(File too large\); mend that and run the same .*"
    named = [re.fullmatch(pattern, message)[1] for message in messages - {"done"}]
    assert set(named) >= ({"codes-00000", "codes-00004", "index"} if staged else {"journal"})


def test_after_a_failed_write_the_same_writer_goes_on(tmp_path: Path) -> None:
    """Half a record stays where the disk was full; the next clip must not be appended to it."""
    command(tmp_path / "expected", CLIPS)
    first, second, *rest = CLIPS

    def work() -> None:
        with CacheWriter(tmp_path / "codes", max_shard_bytes=SHARD_BYTES) as writer:
            writer.add(first, CLIPS[first])
            limit_files(150)
            with pytest.raises(UserError, match=r"'journal\.bin' cannot be written"):
                writer.add(second, CLIPS[second])
            assert (tmp_path / "codes" / "journal.bin").stat().st_size == 150
            assert second not in writer
            limit_files(resource.RLIM_INFINITY)
            for key in (second, *rest):
                writer.add(key, CLIPS[key])
            writer.commit(CLIPS)

    assert in_child(work) == 0
    assert contents(tmp_path / "codes") == contents(tmp_path / "expected")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"code cache: 'codes' cannot be written \(Not a directory\);"):
        command(tmp_path / "file" / "codes", CLIPS)


# Several at once.

BUSY = r"code cache: 'codes' is being written by another run; wait until that has ended, or name another folder$"


def test_a_second_writer_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    folder = tmp_path / "codes"

    def second() -> None:
        with pytest.raises(UserError, match=BUSY):
            command(folder, CLIPS)

    with CacheWriter(folder, max_shard_bytes=SHARD_BYTES) as writer:
        for key, codes in CLIPS.items():
            writer.add(key, codes)
        assert in_child(second) == 0
        second()  # in this very process
        assert in_child(second) == 0, "the refused one has not taken the lock along"
        writer.commit(CLIPS)
    assert in_child(lambda: command(folder, CLIPS)) == 0
    command(tmp_path / "expected", CLIPS)
    assert contents(folder) == contents(tmp_path / "expected")


def test_two_commands_at_once_leave_what_one_of_them_would(tmp_path: Path) -> None:
    folder, results = tmp_path / "codes", []
    for seed in range(2):
        child = os.fork()
        if child == 0:
            try:
                command(folder, CLIPS, seed=seed, finished=lambda key: time.sleep(0.01))
                os._exit(0)
            except UserError as error:
                os._exit(3 if re.search(BUSY, str(error)) else 1)
        results.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in results)
    assert codes == [0, 3]
    command(tmp_path / "expected", CLIPS)
    assert contents(folder) == contents(tmp_path / "expected")


def test_workers_that_outlive_a_killed_run_do_not_hold_its_lock(tmp_path: Path) -> None:
    """A worker in the middle of a long clip lives on for seconds; the user has started the command again by then."""
    folder = tmp_path / "codes"
    reading, writing = os.pipe()
    run = os.fork()
    if run == 0:
        with CacheWriter(folder):
            worker = os.fork()
            if worker:
                os.write(writing, str(worker).encode())
            time.sleep(60)
    worker = int(os.read(reading, 100))
    try:
        with pytest.raises(UserError, match=BUSY):
            command(folder, CLIPS)
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        os.kill(worker, 0)  # it lives
        command(folder, CLIPS)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert_holds(CodeCache(folder), CLIPS)


def test_readers_beside_a_writer_see_whole_clips_only(tmp_path: Path) -> None:
    clips = make_clips(60)
    command(tmp_path, {})

    def runs() -> None:
        for num_clips in range(4, 61, 4):
            command(tmp_path, dict(list(clips.items())[:num_clips]))

    child = os.fork()
    if child == 0:
        runs()
        os._exit(0)
    sizes, held = [0], CodeCache(tmp_path)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        cache = CodeCache(tmp_path)
        assert all(np.array_equal(cache[key], clips[key]) for key in cache)
        sizes.append(len(cache))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    assert len(held) == 0, "an open one stays as it was"
    assert_holds(CodeCache(tmp_path), clips)


# Keys.


def test_a_key_depends_on_the_file_the_codec_and_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    key = content_key("ab" * 32, "cd" * 32)
    # printf '%s\n%s\n%s' abab... cdcd... METHOD | sha256sum: another key and every cache would be encoded again.
    assert key == "441fb6297eb2b5d2b53ed0c78e127e50"
    assert len({key, content_key("ba" * 32, "cd" * 32), content_key("ab" * 32, "dc" * 32)}) == 3
    monkeypatch.setattr(code_cache, "METHOD", "another padding")
    assert content_key("ab" * 32, "cd" * 32) != key


def codec_folder(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in {"config.json": "{}", **files}.items():
        (folder / name).write_text(content)
    return folder


def test_a_fingerprint_is_that_of_config_and_weights(tmp_path: Path) -> None:
    weights = {"model.safetensors": "weights"}
    original = codec_fingerprint(codec_folder(tmp_path / "a", **weights))
    assert re.fullmatch("[0-9a-f]{64}", original)
    same = codec_folder(tmp_path / "b", **weights, **{"README.md": "text"})
    others = [
        codec_folder(tmp_path / "c", **{"model.safetensors": "other weights"}),
        codec_folder(tmp_path / "d", **weights, **{"config.json": "[]"}),
        codec_folder(tmp_path / "e", **{"model.pth": "weights"}),
        codec_folder(tmp_path / "f", **weights, **{"model-2.safetensors": ""}),
    ]
    assert codec_fingerprint(same) == original
    assert len({original, *map(codec_fingerprint, others)}) == 5


def test_a_fingerprint_is_cheap_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = codec_folder(tmp_path / "codec", **{"model.safetensors": "weights"})
    before = codec_fingerprint(folder)
    with monkeypatch.context() as patch:
        patch.setattr(audio, "file_hash", lambda path: pytest.fail("read again"))
        assert codec_fingerprint(folder) == before
    (folder / "model.safetensors").write_text("WEIGHTS")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert codec_fingerprint(folder) != before


@pytest.mark.parametrize(
    ("files", "missing"),
    [({}, "config.json"), ({"config.json": "{}"}, "weights"), ({"model.safetensors": ""}, "config.json")],
)
def test_a_folder_without_codec_has_no_fingerprint(files: dict[str, str], missing: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for folder in (tmp_path, tmp_path / "gone") if not files else (tmp_path,):
        with pytest.raises(UserError, match=rf"^{folder}: codec: '({missing}|weights)' not found; give a codec folder"):
            codec_fingerprint(folder)


# References in rows.


def test_references_are_relative_to_the_file_of_their_row(tmp_path: Path) -> None:
    key = next(iter(CLIPS))
    data = tmp_path / "data"
    data.mkdir()
    for folder, expected in [
        (data / "codes", f"codes#{key}"),
        (tmp_path / "a #1 cache", f"../a #1 cache#{key}"),
        (data, f".#{key}"),
    ]:
        assert format_reference(folder, key, beside=data) == expected
        found, found_key = parse_reference(expected, beside=data, where="train.jsonl:17", field="audio_codes[0]")
        assert (found.resolve(), found_key) == (folder, key)


def test_references_survive_a_link_to_the_data(tmp_path: Path) -> None:
    """`..` behind a link leads to the parent of what it points to."""
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "data")
    reference = format_reference(tmp_path / "codes", "0" * 32, beside=tmp_path / "link")
    found, _ = parse_reference(reference, beside=(tmp_path / "link").resolve(), where="", field="")
    assert found.resolve() == tmp_path / "codes"


@pytest.mark.parametrize("reference", ["", "codes", "#" + "0" * 32, "codes#", "codes#0123", f"codes#{'g' * 32}"])
def test_a_wrong_reference_is_named(reference: str, tmp_path: Path) -> None:
    expected = rf"^train\.jsonl:17: audio_codes\[0\]: '{reference}' is no FOLDER#KEY with a key of 32 hex digits; write"
    with pytest.raises(UserError, match=expected):
        parse_reference(reference, beside=tmp_path, where="train.jsonl:17", field="audio_codes[0]")
