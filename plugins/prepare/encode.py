"""Recordings -> codes in the cache, and the references by which rows name them. Needs torch.

In: rows. Out: the same rows, with `audio_codes` and `reference_codes`; what they name are codes
(F, K) of the codec. Knows neither splits nor limits.

Every clip is encoded alone: padding inside a batch changes the codes (`plugins.audio.codec`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plugins.audio import waveforms as audio
from plugins.audio.code_cache import CacheWriter, codec_fingerprint, content_key
from plugins.audio.code_references import format_reference
from plugins.audio.codec import Codec
from plugins.errors import problem
from plugins.files import disk
from plugins.files.hub import local_folder

_COLUMNS = {"audios": "audio_codes", "reference_audio": "reference_codes"}


def encode_rows(
    rows: Iterable[dict[str, Any]], *, folder: Path, codec: str, device: str, beside: Path
) -> None:
    """Encode the targets and references of `rows` into the cache `folder` and add `audio_codes`,
    `reference_codes`.

    beside: the folder of the JSONL files, to which references are relative. Clips that are there
    are not encoded again, also those of a run that was killed. Raises UserError for a clip that
    cannot be decoded and for a codec that cannot be loaded."""
    codec_folder = Path(local_folder(codec, option="codec"))
    encoder, fingerprint = Codec(str(codec_folder), device=device), codec_fingerprint(codec_folder)
    rows = list(rows)
    # A recording may be the reference of many rows: it is hashed and encoded once.
    keys: dict[str, str] = {}
    for row in rows:
        for column in _COLUMNS:
            for path in _paths(row, column):
                if path not in keys:
                    keys[path] = content_key(disk.file_hash(path), fingerprint)
    with CacheWriter(folder, codec=fingerprint) as writer:
        for path, key in tqdm(keys.items(), desc="codes", unit="clip", disable=None):
            if key in writer:
                continue
            try:
                writer.add(key, encoder.encode_file(path))
            except audio.AudioError as error:
                raise problem(
                    source="--encode_codes",
                    field="audio",
                    value=path,
                    reason=error.reason,
                    remedy=error.remedy,
                ) from None
        # The rest: the writer itself commits now and then, for the sake of runs that are killed.
        writer.commit()
    for row in rows:
        for column, codes in _COLUMNS.items():
            if paths := _paths(row, column):
                row[codes] = [format_reference(folder, keys[path], beside=beside) for path in paths]


def _paths(row: dict[str, Any], column: str) -> list[str]:
    value = row.get(column) or []  # a row of one reference names it without a list
    return [value] if isinstance(value, str) else value
