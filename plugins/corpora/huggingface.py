"""A Hugging Face dataset with an audio column -> utterances (L1).

In: a folder, or the id of a dataset on the Hub. Out: utterances whose recordings are files: what the dataset holds as
bytes is written below a given folder, under the hash of its content. Decodes nothing, so torchcodec is not needed;
imports `datasets` only when called.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugins.audio import replace_when_done
from plugins.corpora.tables import Columns
from plugins.corpora.utterance import Rejected, Utterance, collapse, locate
from plugins.errors import did_you_mean, problem

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` writes for a Dataset, a DatasetDict
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
    """The rows of `source`: a folder (``save_to_disk``, or files that ``load_dataset`` reads), else a Hub id.

    audio_dir: where recordings go that the dataset holds as bytes. Paths in it are absolute or relative to `source`.
    config, split: which part; of several splits, `train` is meant if nothing is said.
    """
    dataset = _as_files(_load(source, config, split).with_format(None), source, columns)
    for index, row in enumerate(dataset):
        place = f"{source}[{index}]"
        said = {name: _said(row[name], dataset.features[name]) for name in columns.wanted() if name != columns.audio}
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
            folder=Path(source) if content is None else audio_dir,
            root=root if content is None else None,
            text=collapse(said[columns.text]),
            id_=id_ or ("" if content is None else Path(path).stem),
            speaker=said.get(columns.speaker or "") or None,
            language=said.get(columns.language or "") or None,
        )


def _load(source: str, config: str | None, split: str | None) -> Dataset:
    """The one table that is meant."""
    here = Path(source)
    # A mistyped path or a URL must not go to the network.
    if not here.is_dir() and (here.exists() or not _HUB_ID.fullmatch(source)):
        raise problem("huggingface", "dataset", source, "is neither a folder nor a Hub id", "name one of the two")
    try:
        import datasets
    except ImportError:
        raise problem("huggingface", "package", "datasets", "is not installed", "pip install datasets") from None
    saved = any((here / name).is_file() for name in _SAVED)
    try:
        loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, config, split=split)
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
        # The cause of a failed build says more, such as that torchcodec is missing.
        detail = str(error.__cause__ or error).partition("\n")[0]
        reason, remedy = f"does not load ({detail})", "check its id, configuration and split"
        raise problem("huggingface", "dataset", source, reason, remedy) from None
    if isinstance(loaded, datasets.Dataset):
        if saved and split is not None:
            raise problem("huggingface", "split", split, "is none: the folder holds one table", "leave it out")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split is None and "train" not in loaded:
        raise problem("huggingface", "split", split, "is not named", did_you_mean("", map(str, loaded)))
    if (split or "train") not in loaded:
        raise problem("huggingface", "split", split, "not found", did_you_mean(split or "", map(str, loaded)))
    return loaded[split or "train"]


def _as_files(dataset: Dataset, source: str, columns: Columns) -> Dataset:
    """The wanted columns of `dataset`, its audio as bytes or paths."""
    from datasets import Audio, ClassLabel, Value

    features = dataset.features
    for name in columns.wanted():
        if name not in features:
            raise problem(source, "column", name, "not found", did_you_mean(name, features))
        if name != columns.audio and not isinstance(features[name], Value | ClassLabel):
            raise problem(source, "column", name, "holds no text", "name another column")
    audio = features[columns.audio]
    dataset = dataset.select_columns(list(dict.fromkeys(columns.wanted())))
    if isinstance(audio, Audio):
        return dataset.cast_column(columns.audio, Audio(decode=False))
    if isinstance(audio, Value) and audio.dtype.removeprefix("large_") in ("string", "binary"):
        return dataset
    if isinstance(audio, dict) and set(audio) in ({"bytes"}, {"path"}, {"bytes", "path"}):
        return dataset
    raise problem(source, "column", columns.audio, "holds no audio files", "cast it to datasets.Audio")


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
    """Write `content` below `audio_dir` unless it is there; its name, which depends on the content alone."""
    suffix = next((suffix for start, suffix in _MAGIC.items() if content.startswith(start)), ".bin")
    digest = hashlib.sha256(content).hexdigest()
    name = f"{digest[:2]}/{digest}{suffix}"
    path = audio_dir / name
    if not path.is_file() or path.stat().st_size != len(content):
        with replace_when_done(path) as temporary:
            temporary.write_bytes(content)
    return name
