"""A Hugging Face dataset with an audio column -> utterances.

In: a folder, or the id of a dataset on the Hub. Out: utterances whose recordings are files: what
the dataset holds as bytes is written below a given folder, under the hash of its content. Decodes
nothing, so torchcodec is not needed; imports `datasets` only when called. Which files are the
dataset: `dataset_tables.py`."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugins.corpora.dataset_tables import TABLE, fault, load_table, splits_of, unloadable
from plugins.corpora.tables import Columns
from plugins.corpora.utterance import Rejected, Utterance, collapse, locate
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.disk import replace_when_done

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# How files of each kind begin.
_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff": ".mp3"}


def read_huggingface(
    source: str,
    columns: Columns,
    *,
    audio_dir: Path,
    config: str | None = None,
    split: str | None = None,
    root: Path | None = None,
) -> Iterator[Utterance | Rejected]:
    """The rows of `source`: a folder of ``save_to_disk`` or of Parquet files, or a Hub id.

    audio_dir: where recordings go that the dataset holds as bytes. Paths in it are absolute or
    relative to `source`. config, split: which part; of several splits, `train` is meant if nothing
    is said. Nothing but the Hub is connected to, and that for a Hub id only."""
    folder = _folder(source, config)
    # The Hub's cache is all links; they are the work of its client, not of the dataset.
    tables_root = root if Path(source).is_dir() else None
    loaded = load_table(folder, config, split, tables_root).with_format(None)
    dataset = _as_files(loaded, source, columns)
    for index, row in enumerate(dataset):
        place = f"{source}[{index}]"
        # A column without name says nothing.
        said = {"": ""}
        for name in columns.wanted():
            if name != columns.audio:
                said[name] = _said(row[name], dataset.features[name])
        text = collapse(said[columns.text])
        id_ = said[columns.id or ""]
        speaker = said[columns.speaker or ""] or None
        language = said[columns.language or ""] or None
        content, path = _content_and_path(row[columns.audio])
        if content is None:
            yield locate(
                place,
                [path],
                folder=folder,
                root=root,
                text=text,
                id_=id_,
                speaker=speaker,
                language=language,
            )
        elif content == b"":
            yield Rejected(place, id_ or path, "is empty (0 bytes)", path)
        else:
            # No root: what we wrote ourselves lies where we were told to write it.
            path = _store(content, audio_dir)
            yield locate(
                place,
                [path],
                folder=audio_dir,
                text=text,
                id_=id_ or Path(path).stem,
                speaker=speaker,
                language=language,
            )


def _folder(source: str, config: str | None) -> Path:
    """`source`, or what was downloaded of it."""
    # A mistyped path or a URL must not go to the network.
    if not Path(source).is_dir() and (Path(source).exists() or not _HUB_ID.fullmatch(source)):
        reason, remedy = "is neither a folder nor a Hub id", "name one of the two"
        raise fault("dataset", source, reason, remedy)
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise fault("package", "datasets", "is not installed", "pip install datasets") from None
    return Path(source) if Path(source).is_dir() else _downloaded(source, config)


def _downloaded(hub_id: str, config: str | None) -> Path:
    """The folder in the Hub's cache that holds all splits of `config`; without network as it is."""
    from httpx import HTTPError, TransportError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    # Where the Hub cannot be asked for their names: all that its cache holds.
    wanted = [f"*{TABLE}"]
    try:
        with suppress(TransportError, OfflineModeIsEnabled):
            names = HfApi().list_repo_files(hub_id, repo_type="dataset")
            tables = [name for name in names if name.endswith(TABLE)]
            wanted = []
            for shards in splits_of(tables, config, hub_id).values():
                wanted += map(glob.escape, shards)
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=wanted))
    except (OSError, HTTPError) as error:
        raise unloadable(hub_id, error, "check its id, and the network") from None


def _as_files(dataset: Dataset, source: str, columns: Columns) -> Dataset:
    """The wanted columns of `dataset`, its audio as bytes or paths."""
    from datasets import Audio, ClassLabel, Value

    def wrong(column: str, reason: str, remedy: str) -> UserError:
        return problem(source=source, field="column", value=column, reason=reason, remedy=remedy)

    features = dataset.features
    for name in columns.wanted():
        if name not in features:
            raise wrong(name, "not found", did_you_mean(name, features))
        if name != columns.audio and not isinstance(features[name], Value | ClassLabel):
            raise wrong(name, "holds no text", "name another column")
    audio = features[columns.audio]
    # Unread columns may need packages of their own to be decoded.
    dataset = dataset.select_columns(list(dict.fromkeys(columns.wanted())))
    if isinstance(audio, Audio):
        return dataset.cast_column(columns.audio, Audio(decode=False))
    if isinstance(audio, Value) and audio.dtype.removeprefix("large_") in ("string", "binary"):
        return dataset
    if isinstance(audio, dict) and set(audio) in ({"bytes"}, {"path"}, {"bytes", "path"}):
        return dataset
    raise wrong(columns.audio, "holds no audio files", "cast it to datasets.Audio")


def _content_and_path(audio: Any) -> tuple[bytes | None, str]:
    """The bytes of a recording, None if it is a file, and its path; "" where there is none."""
    if isinstance(audio, bytes):
        return audio, ""
    if isinstance(audio, dict):
        return audio.get("bytes"), audio.get("path") or ""
    return None, audio or ""


def _said(value: Any, feature: Any) -> str:
    """`value` as text; a class label by its name, -1 being none."""
    if isinstance(value, int) and hasattr(feature, "names"):
        return str(feature.names[value]) if value >= 0 else ""
    return "" if value is None else str(value)


def _store(content: bytes, audio_dir: Path) -> str:
    """Write `content` below `audio_dir` unless it is there; its name, which depends on the content
    alone."""
    kinds = (suffix for start, suffix in _MAGIC.items() if content.startswith(start))
    digest = hashlib.sha256(content).hexdigest()
    # Folders of 256 each: a folder of a million files is slow on many disks.
    name = f"{digest[:2]}/{digest}{next(kinds, '.bin')}"
    path = audio_dir / name
    # Compared whole: a run that was killed may have left half of it.
    if not path.is_file() or path.read_bytes() != content:
        with replace_when_done(path) as temporary:
            temporary.write_bytes(content)
    return name
