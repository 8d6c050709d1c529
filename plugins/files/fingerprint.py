"""The folder of a model -> what tells it from others, under any name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from plugins.files import disk

# Weights, and what says how to use them; beside them a training leaves its state, and an evaluation
# its report.
_CONTENT = re.compile(
    r".*\.(safetensors|bin|pth|pt|model)|.*config\.json"
    r"|(tokenizer|vocab|higgs_audio_settings).*\.json"
)
_STATE = re.compile(r"(training_args|optimizer|scheduler|rng_state).*")


def fingerprint(folder: Path) -> str:
    """16 hex digits over the weights and configs in `folder`: the same for the same model under any
    name."""
    lines = ""
    for path in sorted(folder.iterdir()):
        is_content = _CONTENT.fullmatch(path.name) and not _STATE.fullmatch(path.name)
        if is_content and path.is_file():
            lines += f"{path.name} {disk.file_hash(path)}\n"
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
