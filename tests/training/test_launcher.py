"""What a launcher hands to the training that it becomes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import higgs_audio_swift_autoload as hook
from plugins import train
from plugins.training import launcher, signals

GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
OF_OTHERS: list[dict[str, str]] = [
    {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"},
    {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"},
    {"PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:64"},
    {"PYTORCH_ALLOC_CONF": ""},
]


class Stop(Exception):
    pass


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings():
        monkeypatch.delenv(name)


@pytest.mark.parametrize("theirs", [{}, *OF_OTHERS])
def test_memory_grows_unless_the_user_has_chosen(
    theirs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`swift sft`, `higgs-audio sft` and the script become the training here."""
    monkeypatch.setattr(os, "environ", {**os.environ, **theirs})
    handed_on: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execv", lambda *command: handed_on.append(settings()))
    launcher.launch(["python", "sft.py"])
    assert handed_on == [theirs or GROWING]


def test_a_trainer_of_somebodys_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "end_cleanly", lambda: None)
    ours = ["--model_type", "higgs-audio-v2-3b"]
    for name, words, expected in (
        ("infer", ours, {}),
        ("sft", ["--model_type", "llama"], {}),
        ("sft", ours, GROWING),
    ):
        hook._end_cleanly(Path("site-packages", "swift", "cli", f"{name}.py"), words)
        assert settings() == expected


def test_a_file_has_the_first_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MS-SWIFT takes `ENV:` of a YAML file only for what is not set yet. What is set for a run from
    Python goes with it."""
    during: list[dict[str, str]] = []

    def stop(words: Any) -> Any:
        during.append(settings())
        raise Stop

    monkeypatch.setattr(train.words, "settled", stop)
    config = tmp_path / "run.yaml"
    config.write_text("ENV:\n  PYTORCH_CUDA_ALLOC_CONF: max_split_size_mb:64\n", encoding="utf-8")
    for arguments in ([], [str(config)]):
        with pytest.raises(Stop):
            train.main(arguments)
    assert during == [GROWING, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}]
    assert "PYTORCH_ALLOC_CONF" not in os.environ
