"""The code cache: what is read is what was written, or one line says why not.

The runs here are killed for good, their disks are full by the kernel's own limit, and two of them
write at once; the files are damaged in every part. Nothing of SQLite is replaced.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import in_child

from plugins.audio import code_cache
from plugins.audio.code_cache import (
    CacheWriter,
    CodeCache,
)
from plugins.corpora.canonical import canonical_row
from plugins.data.rows import dialogue_from_row
from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings

Clips = dict[str, np.ndarray]
AGAIN = "run the same prepare command again, with --encode_codes"


@pytest.fixture(autouse=True)
def _every_clip_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_BATCH_S", 0)


def make_clips(num_clips: int, *, first: int = 0, num_frames: int | None = None) -> Clips:
    """Clips of 5 to 16 frames, or of `num_frames`."""
    clips = {}
    for i in range(first, first + num_clips):
        key = hashlib.md5(str(i).encode()).hexdigest()
        clips[key] = np.random.default_rng(i).integers(0, 1024, (8, num_frames or 5 + i % 12))
    return clips


CLIPS = make_clips(8)


def command(folder: Path, clips: Clips, *, codec: str = "codec") -> list[str]:
    """What prepare does; the keys that it had to encode."""
    encoded = []
    with CacheWriter(folder, codec=codec) as writer:
        for key, codes in clips.items():
            if key not in writer:
                writer.add(key, codes)
                encoded.append(key)
        writer.commit()
    return encoded


def assert_holds(cache: CodeCache, clips: Clips) -> None:
    assert sorted(cache) == sorted(clips)
    for key, codes in clips.items():
        assert np.array_equal(cache[key], codes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_codes_come_back(tmp_path: Path) -> None:
    """In a folder whose name means something else in a URI; keys with zeros and high bytes."""
    folder = tmp_path / "50% of what? #1"
    edges = ["00" * 16, "ff" * 16, "61" + "00" * 15, "7f" * 15 + "00"]
    clips = CLIPS | dict(zip(edges, make_clips(4, first=8).values(), strict=True))
    command(folder, clips)
    cache = CodeCache(folder)
    assert_holds(cache, clips)
    codes = cache["00" * 16]
    assert (codes.dtype, codes.flags.writeable, cache.codec) == (np.int16, False, "codec")
    assert names(folder) == {"codes.sqlite", "incoming.sqlite"}
    key = "00" * 15 + "01"
    missing = f"{folder}: key: '{key}' is not in the code cache; {AGAIN}"
    with pytest.raises(UserError, match=f"^{re.escape(missing)}$"):
        cache[key]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_tensors_are_codes_too(dtype: torch.dtype, tmp_path: Path) -> None:
    codes_FxK = torch.randint(1024, (9, 8), dtype=dtype)
    command(tmp_path, {"0" * 32: codes_FxK.T})
    assert np.array_equal(CodeCache(tmp_path)["0" * 32], codes_FxK.T.numpy())


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
def test_what_is_no_codes_is_not_kept(codes: np.ndarray, expected: str, tmp_path: Path) -> None:
    with CacheWriter(tmp_path, codec="codec") as writer:
        with pytest.raises(UserError, match=rf"^{tmp_path}: {expected}"):
            writer.add("0" * 32, codes)
        assert "0" * 32 not in writer


def test_a_tenth_above_400_bytes_per_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a cache that grew: clips that are finished leave no room behind in the other file."""
    monkeypatch.setattr(code_cache, "_BATCH_S", 1)
    clips = make_clips(4000, num_frames=125)  # 5 s
    command(tmp_path, dict(list(clips.items())[:1000]))
    command(tmp_path, clips)
    num_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 400 < num_bytes / 20_000 < 1.1 * 400


def test_the_same_command_again_writes_nothing(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    before = (tmp_path / "codes.sqlite").stat()
    assert command(tmp_path, CLIPS) == []
    assert (tmp_path / "codes.sqlite").stat() == before
    command(tmp_path / "none", {})
    assert list(CodeCache(tmp_path / "none")) == []


@pytest.mark.parametrize("finished", [True, False])
def test_another_codec_takes_another_folder(finished: bool, tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    if not finished:
        (tmp_path / "codes.sqlite").unlink()
    line = rf"code cache: '{tmp_path.name}' holds codes of another codec; give --codes_dir another"
    with pytest.raises(UserError, match=line):
        command(tmp_path, make_clips(1, first=50), codec="another")
    assert command(tmp_path, {}) == []


# Killed.


def dies(at: str, folder: Path, clips: Clips) -> None:
    """A run that kills itself, as `kill -9` would, before or after it does `at`."""
    moment, effect = at.split()
    owner = sqlite3 if effect == "connect" else os
    original = getattr(owner, effect)

    def watched(*args: object, **kwargs: object) -> object:
        if moment == "after":
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    with CacheWriter(folder, codec="codec") as writer:
        for key, codes in clips.items():
            writer.add(key, codes)
        setattr(owner, effect, watched)
        writer.commit()


@pytest.mark.parametrize(
    "at", ["before connect", "before fsync", "before replace", "after replace"]
)
def test_killed_while_the_clips_are_made_visible(at: str, tmp_path: Path) -> None:
    """Nothing is encoded again, readers see all of it or none, and nothing stays behind."""
    old, new = make_clips(3, first=50), CLIPS
    command(tmp_path, old)
    assert in_child(lambda: dies(at, tmp_path, new)) == -signal.SIGKILL
    assert_holds(CodeCache(tmp_path), old | new if at == "after replace" else old)
    assert command(tmp_path, new) == []
    assert_holds(CodeCache(tmp_path), old | new)
    assert names(tmp_path) == {"codes.sqlite", "incoming.sqlite"}


def test_killed_in_the_middle_of_a_transaction(tmp_path: Path) -> None:
    """Half of it stands in the file already; the journal beside it undoes that."""
    command(tmp_path, CLIPS)

    def killed() -> None:
        with CacheWriter(tmp_path, codec="codec") as writer, writer._alone() as incoming:
            incoming.execute("PRAGMA cache_size = 1")  # page: others go to the disk at once
            for _ in range(100):
                row = (os.urandom(16), bytes(4000), 0)
                incoming.execute("INSERT INTO clips VALUES (?, ?, ?)", row)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    assert (tmp_path / "incoming.sqlite").stat().st_size > 100_000
    assert "incoming.sqlite-journal" in names(tmp_path)
    more = make_clips(2, first=50)
    assert command(tmp_path, more) == list(more)
    assert_holds(CodeCache(tmp_path), CLIPS | more)
    assert names(tmp_path) == {"codes.sqlite", "incoming.sqlite"}


def test_killed_from_outside_at_no_chosen_moment(tmp_path: Path) -> None:
    """What one run has on disk no later one loses, killed or not."""
    clips, chance = make_clips(40, num_frames=400), random.Random(0)
    incoming, counts = tmp_path / "incoming.sqlite", []
    for _ in range(6):
        before = incoming.stat().st_size if incoming.exists() else 30_000
        child = os.fork()
        if child == 0:
            command(tmp_path, clips)
            os._exit(0)
        for _ in range(200):  # until it has written, or has nothing left to write
            if incoming.exists() and incoming.stat().st_size > before:
                break
            time.sleep(0.005)
        # Anywhere in what follows the first write.
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with CacheWriter(tmp_path, codec="codec") as writer:
            counts.append(sum(key in writer for key in clips))
    assert counts[0] > 0
    assert counts == sorted(counts)
    command(tmp_path, clips)
    assert_holds(CodeCache(tmp_path), clips)


# Full, damaged, old.


def test_disk_full_anywhere_then_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses what goes beyond a size, after a part of it was written."""
    monkeypatch.setattr(code_cache, "_BATCH_S", 1)
    report, lines = tmp_path / "report", set()
    for limit in (0, 5_000, 20_000, 50_000, 100_000, 300_000, 400_000):
        folder = tmp_path / str(limit)

        def limited(limit: int = limit, folder: Path = folder) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            line = "done"
            try:
                command(folder, make_clips(30, num_frames=75))
            except UserError as error:
                line = str(error).replace(str(folder), "F")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            report.write_text(line)

        assert in_child(limited) == 0
        lines.add(report.read_text())
        assert (folder / "codes.sqlite").exists() == (report.read_text() == "done")
        command(folder, make_clips(30, num_frames=75))
        assert_holds(CodeCache(folder), make_clips(30, num_frames=75))
    assert "done" in lines
    pattern = (
        r"F: code cache: '(.*)\.sqlite' cannot be written \(.*\); mend that and run the same .*"
    )
    files = set()
    for line in lines - {"done"}:
        match = re.fullmatch(pattern, line)
        assert match, line
        files.add(match[1])
    assert files == {"incoming", "codes"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot be written \(Not a directory\); mend that and run"
    ):
        command(tmp_path / "file" / "codes", CLIPS)


def test_damage_never_changes_a_code(tmp_path: Path) -> None:
    """Cut off or one bit flipped, wherever: the codes that were written, or one line with a
    remedy."""
    clips = make_clips(8, num_frames=75)
    command(tmp_path, clips)
    file, chance = tmp_path / "codes.sqlite", random.Random(0)
    whole, lines = file.read_bytes(), set()
    # SQLite leaves parts of a page unused: a bit that is flipped there says nothing.
    used = np.flatnonzero(np.frombuffer(whole, np.uint8)).tolist()
    damages = [whole[:length] for length in range(0, len(whole), 29_989)]
    for _ in range(200):
        i = chance.choice(used)
        flipped = whole[i] ^ 1 << chance.randrange(8)
        damages.append(whole[:i] + bytes([flipped]) + whole[i + 1 :])
    for damaged in damages:
        file.write_bytes(damaged)
        for key, codes in clips.items():
            try:
                assert np.array_equal(CodeCache(tmp_path)[key], codes)
            except UserError as error:
                lines.add(str(error).replace(key, "KEY"))
    for part in ("sqlite' cannot be read", "'KEY' are damaged", "'KEY' is not in the code cache"):
        assert part in "".join(lines)
    for line in lines:
        assert line.startswith(f"{tmp_path}: ")
        assert line.endswith(AGAIN)
        assert "is not in" in line or "delete the folder and run" in line
    file.write_text("nonsense " * 100)
    with pytest.raises(UserError, match=r"'codes\.sqlite' cannot be read .*; mend that, or delete"):
        command(tmp_path, clips)
    file.unlink()
    (tmp_path / "incoming.sqlite").write_text("nonsense " * 100)
    with pytest.raises(
        UserError, match=r"'incoming\.sqlite' cannot be written .*; delete that file"
    ):
        command(tmp_path, clips)


@pytest.mark.parametrize("code", [1024, 1025, -1])
def test_no_code_of_the_stream_is_trained(code: int, tmp_path: Path) -> None:
    """1024 and 1025 begin and end a stream: whatever wrote them, the row is named."""
    command(tmp_path / "codes", CLIPS)
    key, codes = next(iter(CLIPS.items()))
    content = (
        np.where(np.arange(codes.size).reshape(codes.shape) == 7, code, codes)
        .astype("<i2")
        .tobytes()
    )
    with sqlite3.connect(tmp_path / "codes" / "codes.sqlite") as file:
        row = (content, zlib.crc32(content), bytes.fromhex(key))
        file.execute("UPDATE clips SET codes = ?, crc32_of_codes = ? WHERE key = ?", row)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    row = {"messages": messages, "audio_codes": [f"codes#{key}"]}
    settings = HiggsAudioSettings()
    expected = (
        rf"^t\.jsonl:7: audio_codes\[0\]: {code} is outside 0\.\.1023; encode with the model's"
    )
    with pytest.raises(UserError, match=expected):
        dialogue_from_row(canonical_row(row, "t.jsonl:7", settings, beside=tmp_path), settings)


def test_an_older_format_is_told_and_encoded_anew(tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    remedy = f"move it there too, beside the rows, or {AGAIN}"
    line = f"^{tmp_path}: code cache: 'codes' not found; {remedy}$"
    with pytest.raises(UserError, match=line):
        CodeCache(folder)
    folder.mkdir()
    (folder / "index.bin").write_bytes(b"HACODES1")
    line = f"^{tmp_path}: code cache: 'codes' is of an older format; delete the folder and {AGAIN}$"
    with pytest.raises(UserError, match=line):
        CodeCache(folder)
    assert command(folder, CLIPS) == list(CLIPS)
    assert_holds(CodeCache(folder), CLIPS)


# Several at once.


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    """Each adds clip by clip and makes visible what both have; some clips are in both."""
    runs = [make_clips(30), make_clips(30, first=20)]
    children = []
    for clips in runs:
        child = os.fork()
        if child == 0:
            command(tmp_path, clips)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert_holds(CodeCache(tmp_path), runs[0] | runs[1])


def test_a_writer_that_does_not_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "_WAIT_S", 0.1)
    busy = pytest.raises(
        UserError, match=r"'incoming\.sqlite' cannot be written \(database is locked\)"
    )
    with CacheWriter(tmp_path, codec="codec") as first, first._alone(), busy:
        command(tmp_path, CLIPS)
    assert command(tmp_path, CLIPS) == list(CLIPS)


def test_readers_beside_a_writer_see_whole_clips_only(tmp_path: Path) -> None:
    clips = make_clips(40)
    command(tmp_path, {})

    child = os.fork()
    if child == 0:
        for num_clips in range(4, 41, 4):
            command(tmp_path, dict(list(clips.items())[:num_clips]))
        os._exit(0)
    sizes, opened = [0], CodeCache(tmp_path)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        cache = CodeCache(tmp_path)
        keys = list(cache)
        for key in keys:
            assert np.array_equal(cache[key], clips[key])
        sizes.append(len(keys))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    assert list(opened) == [], "an open one stays as it was"
    assert_holds(CodeCache(tmp_path), clips)


def test_many_readers_of_one_open_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, and workers that were forked after the parent had read: each its own connection."""
    monkeypatch.setattr(code_cache, "_BATCH_S", 1)
    clips = make_clips(200, num_frames=1000)  # 3 MB, more than SQLite keeps of a file
    command(tmp_path, clips)
    cache = CodeCache(tmp_path)

    def read(seed: int) -> None:
        keys = random.Random(seed).sample(list(clips), len(clips))
        for key in keys:
            assert np.array_equal(cache[key], clips[key])

    children = []
    for seed in range(4):
        read(seed)
        child = os.fork()
        if child == 0:
            read(seed)
            # A connection that is carried over may read well for long: SQLite forbids it.
            os._exit(int(cache._process != os.getpid()))
        children.append(child)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def test_it_pickles_as_its_folder(tmp_path: Path) -> None:
    command(tmp_path, CLIPS)
    content = pickle.dumps(CodeCache(tmp_path))
    assert len(content) < 500
    assert_holds(pickle.loads(content), CLIPS)


def test_a_folder_that_cannot_be_written_is_read() -> None:
    folder = Path(tempfile.mkdtemp())  # that another user may enter, which pytest's is not
    try:
        command(folder, CLIPS)
        folder.chmod(0o555)

        def nobody() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            with pytest.raises(OSError, match="Permission denied"):
                (folder / "new").touch()
            assert_holds(CodeCache(folder), CLIPS)

        assert in_child(nobody) == 0
    finally:
        shutil.rmtree(folder)
