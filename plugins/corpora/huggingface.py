"""A Hugging Face dataset with an audio column -> utterances (L1).

In: a folder, or the id of a dataset on the Hub. Out: utterances whose recordings are files: what
the dataset holds as bytes is written below a given folder, under the hash of its content. Decodes
nothing, so torchcodec is not needed; imports `datasets` only when called.

A folder is read by what lies in it. `datasets.load_dataset` and `load_from_disk` would follow what
its README.md and its state.json name: URLs, and any file of this machine.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from plugins.audio.waveforms import resolve
from plugins.corpora.tables import Columns
from plugins.corpora.utterance import (
    Rejected,
    Utterance,
    collapse,
    folders_of,
    keep_inside,
    locate,
)
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.disk import read_json, replace_when_done

if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.data_files import DataFilesDict

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# What `save_to_disk` writes for a Dataset and for a DatasetDict.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_SAVE_AGAIN = "save the dataset again"
_TABLE = ".parquet"
# As `push_to_hub` writes them: [CONFIG|data]/SPLIT-00000-of-00002[-HASH].parquet
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?")
_UNNAMED_SHARDS = ("data", "part")
# Else a word of the path tells the split, as for `load_dataset`.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_DEFAULT = "default"  # the name that `datasets` gives to a configuration without name
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
    loaded = _load(folder, config, split, tables_root).with_format(None)
    dataset = _as_files(loaded, source, columns)
    for index, row in enumerate(dataset):
        place = f"{source}[{index}]"
        said = {
            name: _said(row[name], dataset.features[name])
            for name in columns.wanted()
            if name != columns.audio
        }
        id_ = said.get(columns.id or "", "")
        content, path = _content_and_path(row[columns.audio])
        if content == b"":
            yield Rejected(place, id_ or path, "is empty (0 bytes)", path)
            continue
        if content is not None:
            path = _store(content, audio_dir)
        yield locate(
            place,
            [path],
            folder=folder if content is None else audio_dir,
            root=root if content is None else None,
            text=collapse(said[columns.text]),
            id_=id_ or ("" if content is None else Path(path).stem),
            speaker=said.get(columns.speaker or "") or None,
            language=said.get(columns.language or "") or None,
        )


def is_dataset(folder: Path, root: Path | None = None) -> bool:
    """Whether `read_huggingface` is the reader of `folder`.

    Raises UserError for a folder below it that leads out, if there is a root.
    """
    return _is_saved(folder) or bool(_tables(folder, root))


def _folder(source: str, config: str | None) -> Path:
    """`source`, or what was downloaded of it."""
    # A mistyped path or a URL must not go to the network.
    if not Path(source).is_dir() and (Path(source).exists() or not _HUB_ID.fullmatch(source)):
        raise problem(
            source="huggingface",
            field="dataset",
            value=source,
            reason="is neither a folder nor a Hub id",
            remedy="name one of the two",
        )
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise problem(
            source="huggingface",
            field="package",
            value="datasets",
            reason="is not installed",
            remedy="pip install datasets",
        ) from None
    return Path(source) if Path(source).is_dir() else _downloaded(source, config)


def _downloaded(hub_id: str, config: str | None) -> Path:
    """The folder in the Hub's cache that holds all splits of `config`; without network as it is."""
    from httpx import HTTPError, TransportError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    wanted = [f"*{_TABLE}"]
    try:
        with suppress(TransportError, OfflineModeIsEnabled):
            names = HfApi().list_repo_files(hub_id, repo_type="dataset")
            tables = [name for name in names if name.endswith(_TABLE)]
            splits = _splits(tables, config, hub_id)
            wanted = [glob.escape(name) for split in splits.values() for name in split]
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=wanted))
    except (OSError, HTTPError) as error:
        raise _unloadable(hub_id, error, "check its id, and the network") from None


def _load(folder: Path, config: str | None, split: str | None, root: Path | None) -> Dataset:
    """The one table of `folder` that is meant."""
    import datasets

    try:
        if _is_saved(folder):
            return _mapped(_saved_files(folder, split, root))
        splits = _splits(_tables(folder, root), config, str(folder))
        split = split or _one_of(splits, None)
        files: dict[str, list[Path]] = {}
        for name in _names(split):
            tables = splits[_one_of(splits, name)]
            files[name] = [_checked(folder, table, folder, root) for table in tables]
        return datasets.Dataset.from_parquet(_data_files(files), split=split)
    except UserError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise _unloadable(str(folder), error, "check its configuration and split") from None


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_SAVED, _SAVED_SPLITS))


def _saved_files(folder: Path, split: str | None, root: Path | None) -> list[Path]:
    """The Arrow files that `save_to_disk` wrote, in order."""
    top = folder
    if (top / _SAVED_SPLITS).is_file():
        splits = _beside(_checked(top, _SAVED_SPLITS, top, root), "splits")
        folder = top / _one_of(splits, split)
    elif split is not None:
        reason = "is none: the folder holds one table"
        raise problem(
            source="huggingface", field="split", value=split, reason=reason, remedy="leave it out"
        )
    names = _beside(_checked(folder, _SAVED, top, root), "_data_files")
    return [_checked(folder, name, top, root) for name in names]


def _beside(file: Path, key: str) -> list[str]:
    """The names that `file` lists under `key`: of what lies beside it, all else is refused."""
    entries = read_json(file, _SAVE_AGAIN).get(key)
    if not isinstance(entries, list) or not entries:
        raise problem(
            source=str(file), field=key, value=entries, reason="lists nothing", remedy=_SAVE_AGAIN
        )
    names = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise problem(
                source=str(file),
                field=key,
                value=name,
                reason="does not lie beside this file",
                remedy=_SAVE_AGAIN,
            )
        names.append(name)
    return names


def _mapped(files: Iterable[Path]) -> Dataset:
    """Arrow files as one table, which stays on the disk."""
    import datasets

    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])


def _tables(folder: Path, root: Path | None) -> list[str]:
    """The Parquet files below `folder`, relative to it."""
    found = [
        (below / name).relative_to(folder).as_posix()
        for below, names in folders_of(folder, root)
        for name in names
        if name.endswith(_TABLE)
    ]
    return sorted(found)


def _splits(tables: Iterable[str], config: str | None, source: str) -> dict[str, list[str]]:
    """The Parquet files of a configuration, by split. `config` may be the folder of its files
    too."""
    parts = {table: _config_and_split(PurePosixPath(table)) for table in tables}
    configs = sorted({name for name, _ in parts.values()})
    if not configs:
        remedy = "name a folder of save_to_disk or of Parquet files, or a reader of CSV or JSONL"
        raise problem(
            source="huggingface",
            field="dataset",
            value=source,
            reason=f"holds no {_TABLE} file",
            remedy=remedy,
        )
    if config is None and len(configs) > 1 and _DEFAULT not in configs:
        raise problem(
            source="huggingface",
            field="config",
            value=config,
            reason="is not named",
            remedy=did_you_mean("", configs),
        )
    if config is None:
        config = _DEFAULT if _DEFAULT in configs else configs[0]
    splits: dict[str, list[str]] = {}
    for table, (name, split) in parts.items():
        if name == config or table.startswith(f"{config}/"):
            splits.setdefault(split, []).append(table)
    if not splits:
        raise problem(
            source="huggingface",
            field="config",
            value=config,
            reason="not found",
            remedy=did_you_mean(config, configs),
        )
    return splits


def _config_and_split(table: PurePosixPath) -> tuple[str, str]:
    """What the path of a Parquet file below its dataset tells."""
    shard = _SHARD.fullmatch(table.stem)
    if shard and shard[1] not in _UNNAMED_SHARDS:
        folder = table.parts[0] if len(table.parts) > 1 else "data"
        return _DEFAULT if folder == "data" else folder, shard[1]
    words = re.findall("[a-z]+", str(table.with_suffix("")).lower())
    told = [split for word in words for split, names in _SPLITS.items() if word in names]
    return _DEFAULT, told[-1] if told else "train"


def _names(split: str) -> list[str]:
    """The splits in the language of `datasets`: ``train[:50%]+test`` -> train, test."""
    return [re.sub(r"\[.*\]", "", part).strip() for part in split.split("+")]


def _one_of(splits: Iterable[str], name: str | None) -> str:
    """`name`; without one the only split there is, or `train`."""
    known = list(splits)
    if name is None and len(known) == 1:
        return known[0]
    if name is None and "train" not in known:
        raise problem(
            source="huggingface",
            field="split",
            value=name,
            reason="is not named",
            remedy=did_you_mean("", known),
        )
    name = name or "train"
    if name not in known:
        raise problem(
            source="huggingface",
            field="split",
            value=name,
            reason="not found",
            remedy=did_you_mean(name, known),
        )
    return name


def _checked(folder: Path, name: str, top: Path, root: Path | None) -> Path:
    """The regular file `name` in `folder`, a part of the dataset in `top`."""
    keep_inside(folder / name, top, root)
    return resolve(name, folders=[folder])


def _data_files(splits: Mapping[str, Sequence[Path]]) -> DataFilesDict:
    """What `datasets` itself makes of names: plain strings are patterns for it, and may be URLs."""
    from datasets.data_files import DataFilesDict, DataFilesList

    lists = {}
    for split, paths in splits.items():
        files = [os.path.abspath(path) for path in paths]
        dates = [(str(path.stat().st_mtime_ns),) for path in paths]  # a changed file is read again
        lists[split] = DataFilesList(files, dates)
    return DataFilesDict(lists)


def _unloadable(source: str, error: Exception, remedy: str) -> UserError:
    # The cause of a failed build says more.
    detail = str(error.__cause__ or error).partition("\n")[0]
    return problem(
        source="huggingface",
        field="dataset",
        value=source,
        reason=f"does not load ({detail})",
        remedy=remedy,
    )


def _as_files(dataset: Dataset, source: str, columns: Columns) -> Dataset:
    """The wanted columns of `dataset`, its audio as bytes or paths."""
    from datasets import Audio, ClassLabel, Value

    features = dataset.features
    for name in columns.wanted():
        if name not in features:
            raise problem(
                source=source,
                field="column",
                value=name,
                reason="not found",
                remedy=did_you_mean(name, features),
            )
        if name != columns.audio and not isinstance(features[name], Value | ClassLabel):
            raise problem(
                source=source,
                field="column",
                value=name,
                reason="holds no text",
                remedy="name another column",
            )
    audio = features[columns.audio]
    dataset = dataset.select_columns(list(dict.fromkeys(columns.wanted())))
    if isinstance(audio, Audio):
        return dataset.cast_column(columns.audio, Audio(decode=False))
    if isinstance(audio, Value) and audio.dtype.removeprefix("large_") in ("string", "binary"):
        return dataset
    if isinstance(audio, dict) and set(audio) in ({"bytes"}, {"path"}, {"bytes", "path"}):
        return dataset
    raise problem(
        source=source,
        field="column",
        value=columns.audio,
        reason="holds no audio files",
        remedy="cast it to datasets.Audio",
    )


def _content_and_path(audio: Any) -> tuple[bytes | None, str]:
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
    suffix = next((suffix for start, suffix in _MAGIC.items() if content.startswith(start)), ".bin")
    digest = hashlib.sha256(content).hexdigest()
    name = f"{digest[:2]}/{digest}{suffix}"
    path = audio_dir / name
    if not path.is_file() or path.read_bytes() != content:
        with replace_when_done(path) as temporary:
            temporary.write_bytes(content)
    return name
