"""What a launcher hands to the training that it becomes."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.sft import BIN, flags, run

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


PLUGIN = """
import json, os, torch
names = [name for name in os.environ if name.endswith("ALLOC_CONF")]
seen = {name: os.environ[name] for name in names}
print("seen:", json.dumps([seen, torch.cuda.is_initialized()]), flush=True)
raise SystemExit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["swift", "trainer"])
def test_it_is_set_before_a_gpu_is_asked_for(start: str, tmp_path: Path) -> None:
    plugin = tmp_path / "seen.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    words = flags(tmp_path, tmp_path, tmp_path / "out", external_plugins=plugin)
    trainer = find_spec("swift.cli.sft")
    assert trainer is not None
    command = [str(BIN / start), "sft"]
    if start == "trainer":
        command = [sys.executable, str(trainer.origin)]
    done = run(*command, *words)
    assert "seen:" in done.stdout, done.stderr[-2000:]
    (seen,) = [line for line in done.stdout.splitlines() if line.startswith("seen:")]
    assert json.loads(seen.partition(":")[2]) == [GROWING, False]
