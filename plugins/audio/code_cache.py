"""Codes of clips on disk, so that training never touches the codec.

    hash of a clip's file, codec --content_key--> key
    key, codes (K, F) --CacheWriter.add--> incoming.sqlite --commit--> codes.sqlite
    key --CodeCache--> codes (K, F)

A folder holds two SQLite files with the same tables (`_TABLES`). Codes lie there as (K, F) int16,
little-endian: 16 bytes per frame, 400 per second.

    codes.sqlite     the finished clips. A run that has more puts a longer file in its place
    incoming.sqlite  clips of runs that have not ended, or were killed; the next run goes on there

Why two: readers open codes.sqlite as immutable, without locks, which shared folders often lack, and
without a look at its journal. That is right for a file that never changes: this one gets its name
when it is complete and on disk, and nobody writes to it afterwards. So it has no journal to miss,
and whoever has opened it goes on reading it when a longer one takes its name. What is written in
place, with SQLite's locks and journal, is incoming.sqlite alone, which no reader opens.
This file knows no audio and never encodes.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES
from plugins.errors import UserError, problem
from plugins.files import disk

# What lies between a file and its codes besides the codec: to be changed with `Codec.encode_file`.
METHOD = "channels averaged, soxr HQ to 24 kHz, zero-padded on the right to whole frames"

_FINISHED, _INCOMING = "codes.sqlite", "incoming.sqlite"
_FRAME_BYTES = 2 * NUM_CODEBOOKS
_TABLES = """
    CREATE TABLE IF NOT EXISTS meta (codec TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS clips
        (key BLOB PRIMARY KEY, codes BLOB NOT NULL, crc32_of_codes INTEGER NOT NULL);
"""
_BATCH_S = 1.0  # clips of this time make one transaction, which waits for the disk
_WAIT_S = 60  # for another writer: what takes it longest is to write codes.sqlite
_AGAIN = "run the same prepare command again, with --encode_codes"
_ANEW = f"delete the folder and {_AGAIN}"


def content_key(file_hash: str, codec: str) -> str:
    """The key of a clip, 32 hex digits. codec: its `codec_fingerprint`.

    file_hash: `disk.file_hash` of the file, not of its samples: to know that a clip is done takes
    no decoding. The price: the same recording as WAV and as FLAC is encoded twice.
    """
    return hashlib.sha256(f"{file_hash}\n{codec}".encode()).hexdigest()[:32]


def codec_fingerprint(folder: Path) -> str:
    """What makes codes of a file: SHA-256 of the codec's config and weights, and `METHOD`.

    Each file is read once per process, and again if its size or date changes. Raises UserError if
    there is no codec.
    """
    suffixes = (".safetensors", ".pth", ".bin")
    weights = [path for path in folder.glob("*") if path.suffix in suffixes]
    config = folder / "config.json"
    if not config.is_file() or not weights:
        missing = config.name if weights else "weights"
        remedy = "give a codec folder, or download it again"
        raise problem(
            source=str(folder), field="codec", value=missing, reason="not found", remedy=remedy
        )
    lines = []
    for path in sorted([config, *weights]):
        status = path.stat()
        lines.append(f"{path.name} {_file_hash(path, status.st_size, status.st_mtime_ns)}\n")
    return f"{hashlib.sha256(''.join(lines).encode()).hexdigest()}\n{METHOD}"


@lru_cache(maxsize=64)
def _file_hash(path: Path, _size: int, _mtime_ns: int) -> str:
    return disk.file_hash(path)


class CodeCache:
    """The finished clips of a folder. Safe beside a writer, in threads and in forked workers.

    It pickles as its folder. codec: the `codec_fingerprint` of the codes. written_ns: when the last
    of them came. Raises UserError, when opened or read, if the file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = -1  # which has opened the connection
        if not os.path.exists(folder / _FINISHED):  # unlike pathlib's, never an error
            reason, remedy = f"holds no {_FINISHED}", _AGAIN
            if not os.path.exists(folder):
                # Rows name it beside their file: whoever moves that must move both.
                reason, remedy = "not found", f"move it there too, beside the rows, or {_AGAIN}"
            elif os.path.exists(folder / "index.bin"):
                reason, remedy = "is of an older format", _ANEW
            raise problem(
                source=str(folder.parent),
                field="code cache",
                value=folder.name,
                reason=reason,
                remedy=remedy,
            )
        self.written_ns = os.stat(folder / _FINISHED).st_mtime_ns
        self.codec = str(self._rows("SELECT max(codec) FROM meta")[0][0])

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeCache, (self.folder,)

    def __iter__(self) -> Iterator[str]:
        return (key.hex() for (key,) in self._rows("SELECT key FROM clips"))

    def __getitem__(self, key: str) -> np.ndarray:
        """Codes (K, F) int16, read-only. Raises UserError if they are missing or damaged."""
        query = "SELECT codes, crc32_of_codes FROM clips WHERE key = ?"
        rows = self._rows(query, bytes.fromhex(key))
        if not rows:
            raise problem(
                source=str(self.folder),
                field="key",
                value=key,
                reason="is not in the code cache",
                remedy=_AGAIN,
            )
        content, crc32 = rows[0]
        is_whole = isinstance(content, bytes) and content and len(content) % _FRAME_BYTES == 0
        if not is_whole or zlib.crc32(content) != crc32:
            reason = f"are damaged (another checksum in {_FINISHED})"
            raise problem(
                source=str(self.folder), field="codes", value=key, reason=reason, remedy=_ANEW
            )
        return np.frombuffer(content, "<i2").reshape(NUM_CODEBOOKS, -1)

    def _rows(self, query: str, *values: bytes) -> list[Any]:
        try:
            # SQLite forbids to carry a connection across a fork: with a file position in common,
            # workers would read each other's pages.
            if self._process != os.getpid():
                uri = _uri(self.folder / _FINISHED, "mode=ro&immutable=1")
                self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
                self._process = os.getpid()
            return self._connection.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise problem(
                source=str(self.folder),
                field="code cache",
                value=_FINISHED,
                reason=f"cannot be read ({error})",
                remedy=f"mend that, or {_ANEW}",
            ) from None


class CacheWriter:
    """Adds clips of one codec to a folder, which is made if need be. Several may do so at once.

        with CacheWriter(folder, codec=codec_fingerprint(codec_folder)) as writer:
            for key in keys:
                if key not in writer:
                    writer.add(key, encode(key))
            writer.commit()

    A killed run loses the clips of its last second, a failed one none; the next run finds the rest.
    Disk errors are UserErrors that name the file. During `commit` clips take their space twice.
    """

    def __init__(self, folder: Path, *, codec: str) -> None:
        self.folder, self.codec = folder, codec
        self._finished, self._incoming = folder / _FINISHED, folder / _INCOMING
        self._batch: list[tuple[bytes, bytes, int]] = []  # rows of `clips` that are not on disk yet
        self._keys: set[str] = set()

    def __enter__(self) -> CacheWriter:
        if self._finished.exists():
            cache = CodeCache(self.folder)
            self._require_codec(cache.codec)
            self._keys.update(cache)
        with _explained(self._incoming):
            self.folder.mkdir(parents=True, exist_ok=True)
            uri = _uri(self._incoming, "mode=rwc")
            self._file = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_WAIT_S)
            # With SQLite's journal, on disk before the file is touched: what a killed run leaves
            # half done, the next one undoes. An emptied file shrinks, without being overwritten.
            self._file.executescript(
                "PRAGMA synchronous = FULL; PRAGMA auto_vacuum = FULL; PRAGMA secure_delete = OFF;"
                f"BEGIN IMMEDIATE; {_TABLES} COMMIT"
            )
            first_writer = "INSERT INTO meta SELECT ? WHERE NOT EXISTS (SELECT * FROM meta)"
            self._file.execute(first_writer, (self.codec,))
            self._require_codec(self._file.execute("SELECT codec FROM meta").fetchone()[0])
            for (key,) in self._file.execute("SELECT key FROM clips"):
                self._keys.add(key.hex())
        self._written_s = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        with closing(self._file):
            self._write_batch()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, codes: Tensor | np.ndarray) -> None:
        """Keep codes (K, F), integers in 0..1023; a key that is there already is left as it is.

        Raises UserError for codes of another shape or range, and if they cannot be written.
        """
        codes_KxF = np.asarray(codes)
        assert codes_KxF.dtype.kind in "iu", codes_KxF.dtype
        if codes_KxF.ndim != 2 or codes_KxF.shape[0] != NUM_CODEBOOKS or not codes_KxF.shape[1]:
            raise self._wrong_codes(codes_KxF.shape, f"is not ({NUM_CODEBOOKS}, F)")
        for code in (codes_KxF.min(), codes_KxF.max()):
            if not 0 <= code < NUM_CODES:
                raise self._wrong_codes(int(code), f"is outside 0..{NUM_CODES - 1}")
        content = codes_KxF.astype("<i2").tobytes()
        self._batch.append((bytes.fromhex(key), content, zlib.crc32(content)))
        self._keys.add(key)
        if time.monotonic() - self._written_s >= _BATCH_S:
            self._write_batch()

    def commit(self) -> None:
        """Make all clips that were added, by whichever run, visible to readers, at once."""
        self._write_batch()
        with self._alone() as incoming:
            has_clips = incoming.execute("SELECT 1 FROM clips").fetchone() is not None
            if not has_clips and self._finished.exists():
                return
            with _explained(self._finished):
                for left_by_kill in self.folder.glob(f".{_FINISHED}.*.tmp"):
                    left_by_kill.unlink()
                with disk.replace_when_done(self._finished) as longer:
                    self._write_finished(longer)
                # The new name has to be on disk before the clips leave the other file.
                disk.sync(self.folder)
            incoming.execute("DELETE FROM clips")

    def _write_finished(self, path: Path) -> None:
        """The clips of both files. No journal: one that is not completed is thrown away."""
        with closing(sqlite3.connect(path, uri=True, isolation_level=None)) as new:
            # In pages of the usual 4 KiB, which hold one or two clips, a third would stay empty.
            new.executescript(f"PRAGMA page_size = 65536; PRAGMA journal_mode = OFF; {_TABLES}")
            new.execute("INSERT INTO meta VALUES (?)", (self.codec,))
            for file in (self._finished, self._incoming):
                if file.exists():
                    with _explained(file):
                        new.execute("ATTACH ? AS old", (_uri(file, "mode=ro"),))
                        new.execute("INSERT OR IGNORE INTO clips SELECT * FROM old.clips")
                        new.execute("DETACH old")

    def _write_batch(self) -> None:
        if self._batch:
            with self._alone() as incoming:
                incoming.executemany("INSERT OR IGNORE INTO clips VALUES (?, ?, ?)", self._batch)
            self._batch.clear()
        self._written_s = time.monotonic()

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """A transaction beside which no other run writes; undone if it fails."""
        with _explained(self._incoming):
            self._file.execute("BEGIN IMMEDIATE")
            with self._file:
                yield self._file

    def _require_codec(self, codec: str) -> None:
        if codec != self.codec:
            raise problem(
                source=str(self.folder.parent),
                field="code cache",
                value=self.folder.name,
                reason="holds codes of another codec",
                remedy="give --codes_dir another folder, or delete this one",
            )

    def _wrong_codes(self, value: object, reason: str) -> UserError:
        return problem(
            source=str(self.folder),
            field="codes",
            value=value,
            reason=reason,
            remedy="use the codec that the model was trained with",
        )


def _uri(file: Path, options: str) -> str:
    """Percent-encoded: a folder may be called `50%`, `what?` or `#1`."""
    return f"{file.resolve().as_uri()}?{options}"


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Disk full, no permission, damage, another writer: as a UserError that names `file`."""
    try:
        yield
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        reason = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        remedy = "mend that and run the same command again: finished clips are kept"
        if type(error) in (sqlite3.DatabaseError, UnicodeDecodeError):  # damage
            remedy = "delete that file and run the same command again"
        raise problem(
            source=str(file.parent),
            field="code cache",
            value=file.name,
            reason=reason,
            remedy=remedy,
        ) from error
