"""Installations that are broken on purpose, and the line that mends them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

PAIR = ("torch", "torchaudio")
# What a wheel for another CUDA than torch's does.
OSERROR = "libcudart.so.13: cannot open shared object file: No such file or directory"


def install_line(*packages: str) -> str:
    """The line that installs them, with the limits of our own `pyproject.toml`."""
    words = ["pip install"]
    for requirement in importlib.metadata.requires("higgs-audio-swift") or []:
        if requirement.startswith(packages):
            words.append(f"'{requirement}'")
    assert len(words) > 1, packages
    return " ".join(words)


def break_torchaudio(folder: Path) -> str:
    """A torchaudio in `folder`, for PYTHONPATH, that does not load; what is to be said of it."""
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text(f"raise OSError({OSERROR!r})\n")
    torch, torchaudio = map(importlib.metadata.version, PAIR)
    return (
        f"'torchaudio {torchaudio}' cannot be imported beside torch {torch} (OSError: {OSERROR})"
        f"; run: pip uninstall -y torch torchaudio && {install_line(*PAIR)}"
    )
