"""The paths and codes of a canonical row -> clips, with codes where the row brings them.

Codes are inline, [F][K] as MS-SWIFT writes them, or keys of a code cache; clips hold them as (K, F)
int64. No recording is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.audio.code_cache import CodeCache
from plugins.audio.code_references import parse_reference
from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES
from plugins.corpora.canonical import KEY_COLUMNS, as_list
from plugins.data.dialogue import AudioClip
from plugins.errors import UserError, problem


def clips_of(
    row: Mapping[str, Any], path_field: str, codes_field: str, source: str
) -> list[AudioClip]:
    """One clip per path or per entry of codes, or per pair of both.

    Raises UserError, naming the row at `source`, for codes that are none of the model's."""
    paths = row[path_field]
    keys = row.get(KEY_COLUMNS[codes_field]) or []
    entries = keys or as_list(row[codes_field])
    if not entries:
        return list(map(AudioClip, paths))
    if paths and len(paths) != len(entries):
        raise problem(
            source=source,
            field=codes_field,
            value=len(entries),
            reason=f"entries for {len(paths)} clips in {path_field}",
            remedy="give one entry per clip",
        )
    read = _cached if keys else _inline
    clips = []
    for i, entry in enumerate(entries):
        clip = read(entry, source, f"{codes_field}[{i}]")
        if paths:
            # Both are kept: the path tells whether the codes can be those of the file.
            clip = replace(clip, path=paths[i])
        clips.append(clip)
    return clips


def _inline(codes: Any, source: str, field: str) -> AudioClip:
    remedy = f"give a list of F frames of {NUM_CODEBOOKS} codes each"

    def fault(value: object, reason: str) -> UserError:
        return problem(source=source, field=field, value=value, reason=reason, remedy=remedy)

    try:
        codes_FxK = torch.tensor(codes)
    except (ValueError, TypeError, RuntimeError):
        raise fault(codes, "is no rectangular list of integers") from None
    if codes_FxK.dim() != 2 or codes_FxK.shape[1] != NUM_CODEBOOKS or not len(codes_FxK):
        raise fault(list(codes_FxK.shape), f"is not [F][{NUM_CODEBOOKS}]")
    if codes_FxK.is_floating_point() or codes_FxK.dtype == torch.bool:
        raise fault(codes_FxK[0, 0].item(), "is no integer")
    # (F, K) -> (K, F), as the codec gives them.
    codes_KxF = codes_FxK.long().T.contiguous()
    require_codes(codes_KxF, source, field)
    return AudioClip(codes=codes_KxF)


# Each row of a dataset names the same folder: it is opened once per process.
@lru_cache
def _cache(folder: Path) -> CodeCache:
    return CodeCache(folder)


def _cached(reference: str, source: str, field: str) -> AudioClip:
    """The clip of FOLDER#KEY."""
    # Folders of canonical rows are absolute: there is nothing to be beside.
    folder, key = parse_reference(reference, beside=Path("/"), where=source, field=field)
    try:
        cache = _cache(folder)
        codes = torch.from_numpy(cache[key].astype("int64"))
    except UserError as error:
        raise UserError(f"{source}: {field}: {error}") from None
    require_codes(codes, source, field)
    return AudioClip(codes=codes, key=key, codec=cache.codec, encoded_ns=cache.written_ns)


def require_codes(codes: Tensor, source: str, field: str) -> None:
    """Raise UserError for codes that are none of the model's, whatever made them: it has 1024 and
    1025 too, which begin and end a stream, and one row of codes per codebook."""
    if codes.shape[0] != NUM_CODEBOOKS:
        raise _no_codes(
            source, field, len(codes), f"is not the number of codebooks, {NUM_CODEBOOKS}"
        )
    for code in (int(codes.min()), int(codes.max())):
        if not 0 <= code < NUM_CODES:
            raise _no_codes(source, field, code, f"is outside 0..{NUM_CODES - 1}")


def _no_codes(source: str, field: str, value: object, reason: str) -> UserError:
    remedy = "encode with the model's codec"
    return problem(source=source, field=field, value=value, reason=reason, remedy=remedy)
