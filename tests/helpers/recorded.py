"""Real speech with known words: Asterisk's prompts (CC-BY-SA-3.0) in Debian's packages.

They are never committed; `.ci/run` installs them. Elsewhere tests are skipped and say what is
missing."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
FRENCH = Path("/usr/share/asterisk/sounds/fr_CA_f_June")  # asterisk-core-sounds-fr-g722
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
RATE_HZ = 16_000  # of G.722


def require_sounds() -> None:
    """Skip the test where they are not installed."""
    for package, path in (
        ("asterisk-core-sounds-en", TEXTS),
        ("asterisk-core-sounds-en-g722", SOUNDS / "vm-goodbye.g722"),
    ):
        if not path.is_file():
            pytest.skip(f"needs Debian's {package}: apt-get install {package}")


def transcripts() -> list[tuple[str, str]]:
    """Name and text of each prompt; other lines are comments, and what stands in brackets is a
    sound."""
    found = []
    for line in gzip.decompress(TEXTS.read_bytes()).decode("utf-8", "replace").splitlines():
        if match := re.fullmatch(r"([\w/-]+): (.+)", line.strip()):
            found.append((match[1], match[2]))
    return sorted(found)


def decoded(path: Path) -> np.ndarray:
    """(N,) float32. libsndfile has no G.722; PyAV has."""
    import av

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 2**15
