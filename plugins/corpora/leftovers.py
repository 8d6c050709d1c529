"""What lies in a folder of recordings and is neither recording nor text: what may be done with it.

In: the names of files. Out: words for a message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# End of a name -> what else may be done with such a file.
_REMEDIES = {
    ".trans.txt": "give --dataset_type libritts to prepare_dataset.py",
    ".tar": "unpack it (tar -xf), as the shards of a WebDataset, and read the folder again",
    ".tar.gz": "unpack it (tar -xf) and read the folder again",
    ".tgz": "unpack it (tar -xf) and read the folder again",
    ".zip": "unpack it (unzip) and read the folder again",
    ".scp": "give --dataset_type kaldi to prepare_dataset.py",
    ".parquet": "give --dataset_type huggingface to prepare_dataset.py",
    ".arrow": "give --dataset_type huggingface to prepare_dataset.py",
    ".jsonl": "give --dataset_type jsonl --jsonl_file FILE to prepare_dataset.py",
    ".csv": "give --dataset_type custom --csv_file FILE to prepare_dataset.py",
    ".tsv": "give --dataset_type custom --csv_file FILE to prepare_dataset.py",
    ".list": "give --dataset_type gpt_sovits --list_file FILE to prepare_dataset.py",
}


def remedy_for(names: Sequence[str]) -> str:
    """What may be done with the first of the files `names` of which that is known; else ""."""
    for name in names:
        for ending, remedy in _REMEDIES.items():
            if name.lower().endswith(ending):
                return remedy
    return ""


def counted(names: Sequence[str]) -> str:
    """``.jpg 2, .pdf 1 (a/cover.jpg, ...)``"""
    kinds = Counter(Path(name).suffix.lower() or "without suffix" for name in names)
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{counts} ({names[0]}{', ...' if len(names) > 1 else ''})"
