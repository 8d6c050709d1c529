"""What is replaced in MS-SWIFT: once, with its reason, and for our models only."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from plugins.errors import UserError
from plugins.ms_swift import patches
from plugins.ms_swift.patches import PATCHES, Patch
from plugins.register import register_higgs_audio_all


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register_higgs_audio_all()


def replaced() -> list[Any]:
    return [getattr(patch.owner, patch.name) for patch in PATCHES]


def test_each_is_applied_once() -> None:
    before = replaced()
    assert all(function._is_patch for function in before)
    register_higgs_audio_all()
    assert replaced() == before
    for function in before:
        assert not hasattr(function.__wrapped__, "_is_patch")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_the_test_that_tells_when_it_may_go_exists(patch: Patch) -> None:
    upstream = (ROOT / "tests" / "upstream" / "test_swift.py").read_text(encoding="utf-8")
    assert patch.may_go_with is None or f"def {patch.may_go_with}(" in upstream


def test_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning says all that is lost."""
    warnings: list[str] = []
    originals = [function.__wrapped__ for function in replaced()]
    # As in a process in which nothing has been installed yet.
    for patch, original in zip(PATCHES, originals, strict=True):
        monkeypatch.setattr(patch.owner, patch.name, original)
    monkeypatch.setattr(patches.swift, "__version__", "4.7.0")
    monkeypatch.setattr(patches.logger, "warning_once", warnings.append)
    patches.install(before_tuning=lambda args, model: None)
    assert replaced() == originals
    (warning,) = warnings
    assert warning.startswith("untested ms-swift 4.7.0 (need 4.6.*): rows are not checked before")


def test_pipelines_of_other_models_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one of ours in the same process, whose loader would refuse their datasets."""
    from swift.pipelines.base import SwiftPipeline

    from plugins.ms_swift.dataset_loader import HiggsDatasetLoader

    monkeypatch.setattr(HiggsDatasetLoader, "template", object())

    class Other(SwiftPipeline):
        def __init__(self) -> None:
            self.template, self.args = object(), object()

        def run(self) -> str:
            return "ran"

    assert Other().main() == "ran"
    assert HiggsDatasetLoader.template is None


def test_the_code_of_a_reference_model_is_not_run(tmp_path: Path, marker: Path) -> None:
    """MS-SWIFT asks a reference's config for its task before it asks for its model type."""
    from swift.pipelines.train.rlhf import SwiftRLHF

    (tmp_path / "hostile.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(marker)!r}, 'w').close()\n"
        "class Config(PretrainedConfig):\n    model_type = 'hostile'\n",
        encoding="utf-8",
    )
    config = {"model_type": "hostile", "auto_map": {"AutoConfig": "hostile.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # The proof of concept: where nothing guards, it runs.
    SwiftRLHF._get_model_task_type(str(tmp_path))
    assert marker.exists()
    marker.unlink()
    args = SimpleNamespace(ref_model=str(tmp_path), use_hf=None, hub_token=None)
    run: Any = SimpleNamespace(args=args)
    with pytest.raises(UserError, match="model_type"):
        SwiftRLHF._prepare_single_model(run, "ref", "ref", "higgs-audio-v2-3b", None)
    assert not marker.exists()
