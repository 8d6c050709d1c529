"""Checkpoint folders without a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.training.saves import Owner, reserve, seal

RUN = Owner(run="a" * 32, trained="what is trained")


def checkpoint(
    folder: Path, *, sealed: bool = True, resumable: bool = True, by: Owner | None = RUN
) -> Path:
    """by: the run that saves it; None: another program."""
    if by is not None:
        reserve(folder, by, pytest.fail)
    (folder / "audio_tokenizer").mkdir(parents=True)
    (folder / "model-1.safetensors").write_bytes(bytes(100))
    (folder / "trainer_state.json").write_text('{"global_step": 2}')
    (folder / "audio_tokenizer" / "config.json").write_text("{}")
    if sealed:
        seal(folder, resumable=resumable)
    return folder
