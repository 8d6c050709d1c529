"""A Hugging Face dataset with an audio column -> utterances.

In: a folder, or the id of a dataset on the Hub. Out: utterances whose recordings are files: what
the dataset holds as bytes is written below a given folder, under the hash of its content. Decodes
nothing, so torchcodec is not needed; imports `datasets` only when called. Which files are the
dataset: `dataset_tables.py`."""

from __future__ import annotations

import glob
import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugins.audio.waveforms import AudioError, probe
from plugins.corpora.dataset_tables import TABLE, fault, load_table, splits_of, unloadable
from plugins.corpora.tables import Columns
from plugins.corpora.utterance import Rejected, Utterance, collapse, locate, with_reference
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.disk import replace_when_done

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# How files of each kind begin.
_MAGIC = {
    b"RIFF": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff\xf1": ".aac",
    b"\xff\xf9": ".aac",
    b"\xff": ".mp3",
    b"FORM": ".aiff",
    b"caff": ".caf",
    b".snd": ".au",
}
_OTHER = ".bin"


@dataclass(frozen=True)
class _Source:
    """The dataset as it lies on the disk."""

    folder: Path
    root: Path | None
    audio_dir: Path


@dataclass(frozen=True)
class _File:
    """A recording, as `locate` finds it."""

    name: str  # "" where there is none
    folder: Path
    root: Path | None


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
    columns = columns.with_references(loaded.column_names)
    dataset = _as_files(loaded, source, columns)
    _warn_of_unread(loaded, source, columns)
    where = _Source(folder, root, audio_dir)
    for index, row in enumerate(dataset):
        yield _entry(row, f"{source}[{index}]", columns, dataset.features, where)


def _entry(
    row: dict[str, Any], place: str, columns: Columns, features: Any, source: _Source
) -> Utterance | Rejected:
    # A column without name says nothing.
    said = {"": ""}
    for name in columns.wanted():
        if name not in columns.audios():
            said[name] = _said(row[name], features[name])
    id_ = said[columns.id or ""]
    field = ""
    try:
        audio = _file(row[columns.audio], source)
        field = "reference_audio "
        voice = _file(row[columns.reference_audio] if columns.reference_audio else None, source)
    except AudioError as error:
        return Rejected(place, id_ or str(error.path), f"{field}{error.reason}", str(error.path))
    if not id_ and audio.folder == source.audio_dir:
        id_ = Path(audio.name).stem
    entry = locate(
        place,
        [audio.name],
        folder=audio.folder,
        root=audio.root,
        text=collapse(said[columns.text]),
        id_=id_,
        speaker=said[columns.speaker or ""] or None,
        language=said[columns.language or ""] or None,
    )
    text = collapse(said[columns.reference_text or ""])
    found = None
    if voice.name:
        found = locate(place, [voice.name], folder=voice.folder, root=voice.root, text=text)
    return with_reference(entry, found, text)


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
        if name not in columns.audios() and not isinstance(features[name], Value | ClassLabel):
            raise wrong(name, "holds no text", "name another column")
    # Unread columns may need packages of their own to be decoded.
    dataset = dataset.select_columns(list(dict.fromkeys(columns.wanted())))
    for name in columns.audios():
        if isinstance(features[name], Audio):
            dataset = dataset.cast_column(name, Audio(decode=False))
        elif not _holds_files(features[name]):
            raise wrong(name, "holds no audio files", "cast it to datasets.Audio")
    return dataset


def _warn_of_unread(dataset: Dataset, source: str, columns: Columns) -> None:
    """Say which recordings are left out: they may be voices to clone."""
    from datasets import Audio

    for name, feature in dataset.features.items():
        if isinstance(feature, Audio) and name not in columns.audios():
            remedy = f"a voice to clone is named with --reference_audio_column {name}"
            logger.warning("%s: the recordings of column %r are not read; %s", source, name, remedy)


def _holds_files(feature: Any) -> bool:
    """Whether its values are paths, or contents of files, or both."""
    from datasets import Value

    if isinstance(feature, Value):
        return feature.dtype.removeprefix("large_") in ("string", "binary")
    return isinstance(feature, dict) and set(feature) in ({"bytes"}, {"path"}, {"bytes", "path"})


def _file(audio: Any, source: _Source) -> _File:
    """The file that holds `audio`, as a row has it; written first if need be. Raises AudioError."""
    content, path = _content_and_path(audio)
    if content is None:
        return _File(path, source.folder, source.root)
    if content == b"":
        raise AudioError(path, "is empty (0 bytes)", "export it again")
    name = _store(content, source.audio_dir)
    if name.endswith(_OTHER):
        probe(source.audio_dir / name)
    # No root: what we wrote ourselves lies where we were told to write it.
    return _File(name, source.audio_dir, None)


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
    name = f"{digest[:2]}/{digest}{next(kinds, _OTHER)}"
    path = audio_dir / name
    # Compared whole: a run that was killed may have left half of it.
    if not path.is_file() or path.read_bytes() != content:
        with replace_when_done(path) as temporary:
            temporary.write_bytes(content)
    return name
