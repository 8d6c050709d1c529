"""Codes of clips on disk, so that training never touches the codec. L1.

    hash of a clip's file --content_key--> key
    key, codes --CacheWriter.add--> journal --commit--> shards, then the index
    key --CodeCache--> codes (K, F), a view of the mapped shard

A folder holds, all little-endian and without pickle:

    codes-00000.bin  clip after clip, each (K, F) int16: 16 bytes per frame, 400 per second, and nothing else
    index.bin        magic, crc32 of the rest; then 32 bytes per clip, sorted by key (`_ENTRY`)
    journal.bin      only while a run is unfinished: its clips as they came, each with its key and checksum (`_RECORD`)
    lock             empty; locked by the process that writes

Shards never change; a later run adds new ones and replaces the index, which is the moment its clips become visible.
What a run leaves is a function of the keys given to `commit`, in that order, and of what was there before: not of the
order in which clips were finished, nor of how often the run was killed. Clips of another codec are other keys.
This file knows no audio and never encodes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plugins import audio
from plugins.codec import NUM_CODEBOOKS, NUM_CODES
from plugins.errors import problem

# What lies between the bytes of a file and its codes besides the codec: to be changed with `Codec.encode_file`.
METHOD = "channels averaged, soxr HQ to 24 kHz, zero-padded on the right to whole frames"
FRAME_BYTES = 2 * NUM_CODEBOOKS

_INDEX, _JOURNAL, _LOCK, _SHARD = "index.bin", "journal.bin", "lock", "codes-{:05d}.bin"
_HEADER = struct.Struct("<8sI")  # magic, crc32 of the entries
_MAGIC = b"HACODES1"
_KEY_BYTES = 16
_ENTRY = np.dtype(
    [("key", "S16"), ("shard", "<u4"), ("first_frame", "<u4"), ("num_frames", "<u4"), ("crc32", "<u4")]
)  # crc32 of the codes
_RECORD = struct.Struct("<16sII")  # key, number of frames, crc32 of both and of the codes that follow
_REFERENCE = re.compile(r"(.+)#([0-9a-f]{32})", re.DOTALL)
_AGAIN = "delete the folder and run prepare_dataset.py --encode_codes again"

# (process, folder) of every writer: record locks do not keep a process from its own second writer.
_writing: set[tuple[int, str]] = set()


def content_key(file_hash: str, codec_fingerprint: str) -> str:
    """The key of a clip, 32 hex digits. file_hash: `audio.file_hash` of the file that is encoded.

    Of the file and not of its samples: to know that a clip is done takes no decoding then, and the key does not depend
    on the versions of decoder and resampler. The price: the same recording as WAV and as FLAC is encoded twice.
    """
    return hashlib.sha256(f"{file_hash}\n{codec_fingerprint}\n{METHOD}".encode()).hexdigest()[: 2 * _KEY_BYTES]


def codec_fingerprint(folder: Path) -> str:
    """SHA-256 over `config.json` and all weights of a codec in either format; 64 hex digits.

    Each file is read once per process, and again if its size or date changes. Raises UserError if there is no codec.
    """
    weights = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".pth", ".bin")]
    config = folder / "config.json"
    if not config.is_file() or not weights:
        missing = config.name if weights else "weights"
        raise problem(str(folder), "codec", missing, "not found", "give a codec folder, or download it again")
    lines = []
    for path in sorted([config, *weights]):
        status = path.stat()
        lines.append(f"{path.name} {_file_hash(path, status.st_size, status.st_mtime_ns)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=64)
def _file_hash(path: Path, _size: int, _mtime_ns: int) -> str:
    return audio.file_hash(path)


def format_reference(folder: Path, key: str, *, beside: Path) -> str:
    """How a row names codes: ``FOLDER#KEY``, the folder relative to `beside`, the folder of the row's own file."""
    return f"{os.path.relpath(folder.resolve(), beside.resolve())}#{key}"


def parse_reference(reference: str, *, beside: Path, where: str, field: str) -> tuple[Path, str]:
    """``FOLDER#KEY`` -> folder and key. Raises UserError naming the `field` at `where`; touches no disk."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        reason = "is no FOLDER#KEY with a key of 32 hex digits"
        raise problem(where, field, reference, reason, "write rows with prepare_dataset.py --encode_codes")
    return beside / match[1], match[2]


class CodeCache:
    """The finished clips of a folder. Safe beside a writer; pickles as its folder, so workers map it themselves.

    Opening reads the index once, to check it, and no codes. Raises UserError for an index or a shard that is missing,
    of the wrong size or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = _map(folder / _INDEX)
        self.written_ns = os.stat(folder / _INDEX).st_mtime_ns
        self.entries = _entries(self._index, folder / _INDEX)  # (clips,) of `_ENTRY`, a view
        # Where the keys of each beginning of 12 bits begin: they are hashes, so few are left to search among.
        beginnings = np.ndarray(len(self), ">u2", self._index, _HEADER.size, (_ENTRY.itemsize,))
        starts = np.searchsorted(beginnings, np.arange(0, 1 << 16, 16, dtype=np.uint16))
        self._starts = [*starts.tolist(), len(self)]
        ends = self.entries["first_frame"].astype(np.int64) + self.entries["num_frames"]
        num_frames = np.zeros(int(self.entries["shard"].max()) + 1 if len(self) else 0, np.int64)  # per shard
        np.maximum.at(num_frames, self.entries["shard"], ends)
        self._shards = [_map(folder / _SHARD.format(i)) for i in range(len(num_frames))]
        for i, shard in enumerate(self._shards):
            if len(shard) != num_frames[i] * FRAME_BYTES:
                reason = f"has {len(shard)} bytes where the index has {num_frames[i] * FRAME_BYTES}"
                raise problem(str(folder), "code cache", _SHARD.format(i), reason, _AGAIN)

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeCache, (self.folder,)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return (self._key_at(i).hex() for i in range(len(self)))

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def __getitem__(self, key: str) -> np.ndarray:
        """Codes (K, F) int16, a read-only view of the file. Raises UserError if they are missing or damaged."""
        _, shard, first_frame, num_frames, crc32 = self._entry(key)
        count, offset = num_frames * NUM_CODEBOOKS, first_frame * FRAME_BYTES
        codes = np.frombuffer(self._shards[shard], "<i2", count, offset)
        if zlib.crc32(codes.data) != crc32:
            file = str(self.folder / _SHARD.format(shard))
            raise problem(file, "codes", key, "are damaged (another checksum than in the index)", _AGAIN)
        return codes.reshape(NUM_CODEBOOKS, num_frames)

    def num_frames(self, key: str) -> int:
        """F, from the index alone. Raises UserError if `key` is missing."""
        return self._entry(key)[3]

    def _entry(self, key: str) -> Any:
        i = self._find(key)
        if i is None:
            remedy = "run prepare_dataset.py --encode_codes again"
            raise problem(str(self.folder), "key", key, "is not in the code cache", remedy)
        return self.entries[i].item()

    def _find(self, key: str) -> int | None:
        wanted = bytes.fromhex(key)
        beginning = wanted[0] << 4 | wanted[1] >> 4
        start, end = self._starts[beginning], self._starts[beginning + 1]
        i = bisect_left(range(end), wanted, start, end, key=self._key_at)
        return i if i < end and self._key_at(i) == wanted else None

    def _key_at(self, i: int) -> bytes:
        start = _HEADER.size + i * _ENTRY.itemsize
        return self._index[start : start + _KEY_BYTES]


class CacheWriter:
    """Adds clips to a folder, which is made if need be. One process writes: a second one is refused, not kept waiting.

        with CacheWriter(folder) as writer:
            for key, codes in encode(key for key in keys if key not in writer):
                writer.add(key, codes)
            writer.commit(keys)

    A clip is safe from `kill -9` once `add` returns. An error leaves the finished clips in the journal, where the next
    run finds them. Disk errors are UserErrors that name the file. While `commit` runs, the new clips take their space
    twice.
    """

    def __init__(self, folder: Path, *, max_shard_bytes: int = 1 << 28) -> None:
        self.folder = folder
        self._max_frames = max_shard_bytes // FRAME_BYTES
        self._committed: CodeCache | None = None
        self._staged: dict[str, tuple[int, int]] = {}  # key -> offset of its codes in the journal, number of frames

    def __enter__(self) -> CacheWriter:
        with ExitStack() as stack:
            with _told(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(self.folder))
            if (self.folder / _INDEX).exists():
                self._committed = CodeCache(self.folder)
            with _told(self.folder / _JOURNAL):
                self._sweep()
                self._journal = stack.enter_context(open(self.folder / _JOURNAL, "ab+", buffering=0))
                self._staged, self._journal_bytes = _whole_records(self._journal.fileno())
                self._journal.truncate(self._journal_bytes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __contains__(self, key: str) -> bool:
        return key in self._staged or self._is_committed(key)

    def add(self, key: str, codes: Tensor | np.ndarray) -> None:
        """Keep codes (K, F), integers in 0..1023; a key that is there already is left as it is.

        Raises UserError for codes of another shape or range and if they cannot be written; then they are not there.
        """
        if key in self:
            return
        content = self._checked(codes)
        record = _record(bytes.fromhex(key), content)
        with _told(self.folder / _JOURNAL):
            self._journal.truncate(self._journal_bytes)  # an `add` that failed may have left half a record
            _write(self._journal, record)
        self._staged[key] = self._journal_bytes + _RECORD.size, len(content) // FRAME_BYTES
        self._journal_bytes += len(record)

    def commit(self, order: Iterable[str]) -> None:
        """Make the clips of `order` visible to readers, all at once; the last thing to do with a writer.

        Each must have been added, by this run or an earlier one. Staged clips that `order` does not name (another run
        was interrupted and its clips are others) stay staged.
        """
        named = dict.fromkeys(order)
        new = [key for key in named if not self._is_committed(key)]
        missing = next((key for key in new if key not in self._staged), None)
        assert missing is None, f"{missing} was never added"
        if new or self._committed is None:
            entries = self._write_shards(new)
            with _told(self.folder / _INDEX):
                self._write_index(entries)
        rest = [key for key in self._staged if not self._is_committed(key)]
        with _told(self.folder / _JOURNAL):
            self._close_journal(rest)

    def _is_committed(self, key: str) -> bool:
        return self._committed is not None and key in self._committed

    def _num_shards(self) -> int:
        return 0 if self._committed is None else len(self._committed._shards)

    def _sweep(self) -> None:
        """Remove what a killed or failed run left besides its journal. The index does not name it: nobody reads it."""
        named = {_SHARD.format(i) for i in range(self._num_shards())}
        patterns = ("codes-[0-9]*.bin", ".codes-[0-9]*.tmp", f".{_INDEX}.*.tmp", f".{_JOURNAL}.*.tmp")
        for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
            if path.name not in named:
                os.unlink(path)

    def _checked(self, codes: Tensor | np.ndarray) -> bytes:
        codes_KxF = np.asarray(codes)
        assert codes_KxF.dtype.kind in "iu", codes_KxF.dtype
        remedy = "use the codec that the model was trained with"
        if codes_KxF.ndim != 2 or codes_KxF.shape[0] != NUM_CODEBOOKS or not codes_KxF.shape[1]:
            raise problem(str(self.folder), "codes", codes_KxF.shape, f"is not ({NUM_CODEBOOKS}, F)", remedy)
        for code in (codes_KxF.min(), codes_KxF.max()):
            if not 0 <= code < NUM_CODES:
                raise problem(str(self.folder), "codes", int(code), f"is outside 0..{NUM_CODES - 1}", remedy)
        return codes_KxF.astype("<i2").tobytes()

    def _staged_codes(self, key: str) -> bytes:
        offset, num_frames = self._staged[key]
        return os.pread(self._journal.fileno(), num_frames * FRAME_BYTES, offset)

    def _write_shards(self, keys: list[str]) -> list[tuple[bytes, int, int, int, int]]:
        """The codes of `keys` in new shards, as few as `max_shard_bytes` allows; their `_ENTRY`s."""
        entries = []
        for number, shard in enumerate(self._divided(keys), start=self._num_shards()):
            path, first_frame = self.folder / _SHARD.format(number), 0
            with _told(path), _new_file(path) as file:
                for key in shard:
                    codes, num_frames = self._staged_codes(key), self._staged[key][1]
                    _write(file, codes)
                    entries.append((bytes.fromhex(key), number, first_frame, num_frames, zlib.crc32(codes)))
                    first_frame += num_frames
        return entries

    def _divided(self, keys: list[str]) -> Iterator[list[str]]:
        shard: list[str] = []
        shard_frames = 0
        for key in keys:
            num_frames = self._staged[key][1]
            if shard and shard_frames + num_frames > self._max_frames:
                yield shard
                shard, shard_frames = [], 0
            shard.append(key)
            shard_frames += num_frames
        if shard:
            yield shard

    def _write_index(self, new: list[tuple[bytes, int, int, int, int]]) -> None:
        entries = np.array(new, _ENTRY)
        if self._committed is not None:
            entries = np.concatenate([self._committed.entries, entries])
        content = entries[np.argsort(entries["key"])].tobytes()
        with _new_file(self.folder / _INDEX) as file:
            _write(file, _HEADER.pack(_MAGIC, zlib.crc32(content)) + content)
        self._committed = CodeCache(self.folder)

    def _close_journal(self, rest: list[str]) -> None:
        """The journal of `rest`, none if that is empty."""
        if rest:
            with _new_file(self.folder / _JOURNAL) as file:
                for key in rest:
                    _write(file, _record(bytes.fromhex(key), self._staged_codes(key)))
        else:
            os.unlink(self.folder / _JOURNAL)
        self._journal.close()


# Files.


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise problem(str(path.parent), "code cache", path.name, reason, f"mend that, or {_AGAIN}") from None


def _entries(index: mmap.mmap, path: Path) -> np.ndarray:
    content = memoryview(index)[_HEADER.size :]
    whole = len(index) >= _HEADER.size and len(content) % _ENTRY.itemsize == 0
    if not whole or _HEADER.unpack_from(index) != (_MAGIC, zlib.crc32(content)):
        raise problem(str(path.parent), "code cache", path.name, "is damaged", _AGAIN)
    return np.frombuffer(content, _ENTRY)


def _record(key: bytes, codes: bytes) -> bytes:
    num_frames = len(codes) // FRAME_BYTES
    return _RECORD.pack(key, num_frames, _record_crc32(key, num_frames, codes)) + codes


def _record_crc32(key: bytes, num_frames: int, codes: bytes) -> int:
    return zlib.crc32(codes, zlib.crc32(key + num_frames.to_bytes(4, "little")))


def _whole_records(journal: int) -> tuple[dict[str, tuple[int, int]], int]:
    """key -> (offset of the codes, number of frames) in the file `journal`, up to the first record that is torn or
    damaged; and where that begins."""
    staged: dict[str, tuple[int, int]] = {}
    num_bytes, end = os.fstat(journal).st_size, 0
    while end + _RECORD.size <= num_bytes:
        key, num_frames, crc32 = _RECORD.unpack(os.pread(journal, _RECORD.size, end))
        start = end + _RECORD.size
        # Before reading: a damaged number may ask for 64 GB.
        if start + num_frames * FRAME_BYTES > num_bytes:
            break
        if _record_crc32(key, num_frames, os.pread(journal, num_frames * FRAME_BYTES, start)) != crc32:
            break
        staged[key.hex()] = start, num_frames
        end = start + num_frames * FRAME_BYTES
    return staged, end


def _write(file: Any, content: bytes) -> None:
    """All of `content`: an unbuffered file may take a part, on a disk that is full the last one."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    """An unbuffered file that appears as `path` when it is complete and on disk, its name too."""
    with audio.replace_when_done(path) as temporary, open(temporary, "wb", buffering=0) as file:
        yield file
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Disk full, no permission: as a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        remedy = "mend that and run the same command again: finished clips are kept"
        raise problem(str(path.parent), "code cache", path.name, reason, remedy) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`. Raises UserError if another writer does.

    A record lock, not `flock`: forked workers would inherit that one and hold it for as long as they outlive a run
    that was killed.
    """
    holder = os.getpid(), str(folder.resolve())
    reason, remedy = "is being written by another run", "wait until that has ended, or name another folder"
    busy = problem(str(folder.parent), "code cache", folder.name, reason, remedy)
    if holder in _writing:
        raise busy
    with open(folder / _LOCK, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy if error.errno in (errno.EACCES, errno.EAGAIN) else error from None
        _writing.add(holder)
        try:
            yield
        finally:
            _writing.discard(holder)
