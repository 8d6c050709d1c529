"""The tiny codec in the original's format that the original itself wrote (tests/golden/codec)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import GOLDEN
from torch import Tensor

ORIGINAL_CODEC = GOLDEN / "codec"
SPLIT = "encoder.block.3.block.1.block.1"  # a convolution in DAC's encoder
Weights = dict[str, Tensor]


def original_weights() -> Weights:
    return torch.load(ORIGINAL_CODEC / "model.pth", weights_only=True)


def write_codec(
    folder: Path, edit: Callable[[Weights], Any] = lambda weights: None, **config: Any
) -> Path:
    """Make `folder` a copy of the original codec, its weights after `edit`, with the fields
    `config`."""
    folder.mkdir()
    weights = original_weights()
    edit(weights)
    torch.save(weights, folder / "model.pth")
    fields = json.loads((ORIGINAL_CODEC / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(fields))
    return folder
