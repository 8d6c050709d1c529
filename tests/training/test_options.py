"""What MS-SWIFT trains with trainers of its own, which know text only, is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from plugins.errors import UserError
from plugins.training.options import refuse_other_losses
from plugins.training.resume import RUN_FILE

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"rlhf_type": "grpo"}, "rlhf_type: 'grpo' compares texts, .*; use dpo"),
    ({"rlhf_type": "kto"}, "rlhf_type: 'kto' compares texts"),
    ({"task_type": "seq_cls"}, "task_type: 'seq_cls' trains on text only; leave it out"),
    ({"task_type": "embedding"}, "task_type: 'embedding' trains"),
    ({"task_type": "reranker"}, "task_type: 'reranker' trains"),
]


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_losses_of_text_are_refused(options: dict[str, Any], message: str) -> None:
    """`swift rlhf` on rows of speech ended in the advice to raise max_length."""
    args = SimpleNamespace(**{"task_type": "causal_lm", **options})
    with pytest.raises(UserError, match=f"^options: {message}"):
        refuse_other_losses(args, None)


def test_a_fine_tuning_is_not() -> None:
    refuse_other_losses(SimpleNamespace(task_type="causal_lm"), None)
    refuse_other_losses(SimpleNamespace(task_type="causal_lm", rlhf_type=None), None)


PREFERENCES: dict[str, Any] = {
    "task_type": "causal_lm", "rlhf_type": "dpo", "tuner_type": "lora", "loss_type": "sigmoid",
    "beta": 0.1, "label_smoothing": 0.0, "rpo_alpha": None, "packing": False,
    "padding_free": False, "loss_weights": None, "ld_alpha": None, "sync_ref_model": False,
    "ref_adapters": [], "adapters": [], "resume_only_model": False, "init_weights": "true",
    "resume_from_checkpoint": None,
    "lora_bias": "none", "ref_model": None, "model": "base",
}  # fmt: skip
NOT_OF_SPEECH: list[tuple[dict[str, Any], str]] = [
    ({"packing": True}, "packing: True does not keep the answers of a pair apart; leave it out"),
    ({"padding_free": True}, "padding_free: True does not keep"),
    ({"loss_type": "hinge"}, r"loss_type: 'hinge' is not available; give one of .*sigmoid_norm"),
    ({"loss_type": ["sigmoid", "sft"]}, "loss_type: 'sigmoid sft' is not available"),
    ({"loss_weights": [1.0]}, "loss_weights: .* is not available for speech"),
    ({"ld_alpha": 0.5}, "ld_alpha: 0.5 is not available"),
    ({"sync_ref_model": True}, "sync_ref_model: True is not"),
    ({"beta": 0.0}, "beta: 0.0 leaves nothing to learn"),
    ({"rpo_alpha": -1.0}, "rpo_alpha: -1.0 unlearns what is chosen"),
    ({"label_smoothing": 0.5}, "label_smoothing: 0.5 is no share"),
    ({"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing: 0.1 has no meaning for"),
    ({"ref_adapters": ["tuned"]}, "ref_adapters: 'tuned' is no reference here; merge it"),
    ({"adapters": ["tuned"]}, "adapters: 'tuned' is not part of the reference, .*; merge it"),
    ({"adapters": ["tuned"], "resume_only_model": True}, "adapters: 'tuned' is not part of"),
    ({"init_weights": "pissa"}, "init_weights: 'pissa' changes the model, which is the reference"),
    ({"lora_bias": "all"}, "lora_bias: 'all' trains the model itself"),
    (
        {"tuner_type": "full", "resume_only_model": True, "model": "c", "ref_model": "c"},
        "ref_model: 'c' would be the checkpoint that is resumed",
    ),
]


@pytest.mark.parametrize(("options", "message"), NOT_OF_SPEECH)
def test_other_preferences_are_refused(options: dict[str, Any], message: str) -> None:
    """They would silently be learnt otherwise, or from another reference than is meant."""
    with pytest.raises(UserError, match=f"^options: {message}"):
        refuse_other_losses(SimpleNamespace(**{**PREFERENCES, **options}), None)


@pytest.mark.parametrize("fingerprint", [{"beta": 0.1}, {"learning_rate": 1e-4}, None])
def test_only_weights_of_preferences_are_gone_on_from(
    fingerprint: dict[str, Any] | None, tmp_path: Path
) -> None:
    """Those of a fine-tuning are no part of the reference, however they are named."""
    if fingerprint is not None:
        (tmp_path / RUN_FILE).write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
    resumed = {"resume_from_checkpoint": str(tmp_path), "resume_only_model": True}
    args = SimpleNamespace(**{**PREFERENCES, **resumed, "adapters": [str(tmp_path)]})
    if fingerprint == {"beta": 0.1}:
        refuse_other_losses(args, None)
        return
    with pytest.raises(UserError, match=r"resume_from_checkpoint: .* is not part of the reference"):
        refuse_other_losses(args, None)


def test_preferences_are_not() -> None:
    losses: list[dict[str, Any]] = [{"loss_type": "ipo"}, {"loss_type": ["sigmoid_norm"]}]
    for options in (*losses, {"rpo_alpha": 0.1, "label_smoothing": 0.1}):
        refuse_other_losses(SimpleNamespace(**{**PREFERENCES, **options}), None)


IN_SWIFT = """
import sys
from swift.utils import import_external_file
import_external_file(sys.argv[1])
from plugins.errors import problem
sys.excepthook(ValueError, ValueError("other"), None)
raise problem(source="rows", field="text", value=1, reason="is wrong", remedy="mend it")
"""


@pytest.mark.slow
def test_under_plain_swift_too_a_mistake_is_one_line() -> None:
    """It stood below 580 lines and a traceback; what is no mistake of the user keeps its own."""
    command = [sys.executable, "-c", IN_SWIFT, str(ROOT / "plugins" / "register.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: other\nerror: rows: text: 1 is wrong; mend it\n")
    assert "Traceback" not in done.stderr
