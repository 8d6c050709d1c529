"""The folder of a Hugging Face dataset -> the one table that is meant, which stays on the disk.

A folder is read by what lies in it: what ``save_to_disk`` wrote, or Parquet files whose paths tell
configuration and split. `datasets.load_dataset` and `load_from_disk` would follow what its
README.md and its state.json name: URLs, and any file of this machine. Knows no columns and no
network; imports `datasets` only when called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from plugins.audio.waveforms import resolve
from plugins.corpora.utterance import folders_of, keep_inside
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.disk import read_json

if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.data_files import DataFilesDict

# What `save_to_disk` writes for a Dataset and for a DatasetDict.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_SAVE_AGAIN = "save the dataset again"
TABLE = ".parquet"
# As `push_to_hub` writes them: [CONFIG|data]/SPLIT-00000-of-00002[-HASH].parquet
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?")
_UNNAMED_SHARDS = ("data", "part")
# Else a word of the path tells the split, as for `load_dataset`.
_SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# The name that `datasets` gives to a configuration without name.
_DEFAULT = "default"


def is_dataset(folder: Path, root: Path | None = None) -> bool:
    """Whether `folder` holds a dataset: what `save_to_disk` wrote, or a Parquet file.

    Raises UserError for a folder below it that leads out, if there is a root.
    """
    return _is_saved(folder) or bool(_tables(folder, root))


def load_table(folder: Path, config: str | None, split: str | None, root: Path | None) -> Dataset:
    """The one table of `folder` that is meant; of several splits `train` if none is named.

    root: refuse files that lead out of it. Raises UserError."""
    import datasets

    try:
        if _is_saved(folder):
            return _mapped(_saved_files(folder, split, root))
        splits = splits_of(_tables(folder, root), config, str(folder))
        split = split or _one_of(splits, None)
        files: dict[str, list[Path]] = {}
        for name in _names(split):
            tables = splits[_one_of(splits, name)]
            files[name] = [_checked(folder, table, folder, root) for table in tables]
        return datasets.Dataset.from_parquet(_data_files(files), split=split)
    except UserError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise unloadable(str(folder), error, "check its configuration and split") from None


def splits_of(tables: Iterable[str], config: str | None, source: str) -> dict[str, list[str]]:
    """The Parquet files of a configuration, by split, of all `tables` of the dataset `source`.

    config: its name, or the folder of its files; None: the only or the default one. Raises
    UserError."""
    parts: dict[str, tuple[str, str]] = {}
    for table in tables:
        parts[table] = _config_and_split(PurePosixPath(table))
    configs = sorted({name for name, _ in parts.values()})
    if not configs:
        remedy = (
            "name a folder of save_to_disk or of Parquet files; an AudioFolder (metadata.csv) is"
            " read by --dataset_type folder, tar files of a WebDataset too once they are unpacked"
            " (tar -xf), CSV and JSONL by custom and jsonl"
        )
        raise fault("dataset", source, f"holds no {TABLE} file", remedy)
    if config is None and len(configs) > 1 and _DEFAULT not in configs:
        raise fault("config", config, "is not named", did_you_mean("", configs))
    if config is None:
        config = _DEFAULT if _DEFAULT in configs else configs[0]
    splits: dict[str, list[str]] = {}
    for table, (name, split) in parts.items():
        # By its folder too: names of files that no tool wrote tell no configuration.
        if name == config or table.startswith(f"{config}/"):
            splits.setdefault(split, []).append(table)
    if not splits:
        raise fault("config", config, "not found", did_you_mean(config, configs))
    return splits


def unloadable(source: str, error: Exception, remedy: str) -> UserError:
    """What a library says of a dataset that it cannot load, in one line."""
    # The cause of a failed build says more; the message of the Hub's client has two lines.
    detail = str(error.__cause__ or error).partition("\n")[0]
    return fault("dataset", source, f"does not load ({detail})", remedy)


def fault(field: str, value: object, reason: str, remedy: str) -> UserError:
    """`problem` for what is wrong with the dataset as a whole."""
    return problem(source="huggingface", field=field, value=value, reason=reason, remedy=remedy)


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_SAVED, _SAVED_SPLITS))


def _saved_files(folder: Path, split: str | None, root: Path | None) -> list[Path]:
    """The Arrow files that `save_to_disk` wrote, in order."""
    top = folder
    if (top / _SAVED_SPLITS).is_file():
        splits = _beside(_checked(top, _SAVED_SPLITS, top, root), "splits")
        folder = top / _one_of(splits, split)
    elif split is not None:
        raise fault("split", split, "is none: the folder holds one table", "leave it out")
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

    tables = map(datasets.Dataset.from_file, map(str, files))
    return datasets.concatenate_datasets(list(tables))


def _tables(folder: Path, root: Path | None) -> list[str]:
    """The Parquet files below `folder`, relative to it."""
    tables = []
    for below, names in folders_of(folder, root):
        for name in names:
            if name.endswith(TABLE):
                tables.append((below / name).relative_to(folder).as_posix())
    return sorted(tables)


def _config_and_split(table: PurePosixPath) -> tuple[str, str]:
    """What the path of a Parquet file below its dataset tells."""
    shard = _SHARD.fullmatch(table.stem)
    if shard and shard[1] not in _UNNAMED_SHARDS:
        folder = table.parts[0] if len(table.parts) > 1 else "data"
        return _DEFAULT if folder == "data" else folder, shard[1]
    split = "train"
    for word in re.findall("[a-z]+", str(table.with_suffix("")).lower()):
        # The last word that names one: a file says more than its folder.
        split = _SPLIT_OF_WORD.get(word, split)
    return _DEFAULT, split


def _names(split: str) -> list[str]:
    """The splits in the language of `datasets`: ``train[:50%]+test`` -> train, test."""
    return [re.sub(r"\[.*\]", "", part).strip() for part in split.split("+")]


def _one_of(splits: Iterable[str], name: str | None) -> str:
    """`name`; without one the only split there is, or `train`."""
    known = list(splits)
    if name is None and len(known) == 1:
        return known[0]
    if name is None and "train" not in known:
        raise fault("split", name, "is not named", did_you_mean("", known))
    name = name or "train"
    if name not in known:
        raise fault("split", name, "not found", did_you_mean(name, known))
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
        # With their dates: `datasets` keeps what it has read, and a changed file is read again.
        dates = [(str(path.stat().st_mtime_ns),) for path in paths]
        lists[split] = DataFilesList(list(map(os.path.abspath, paths)), dates)
    return DataFilesDict(lists)
