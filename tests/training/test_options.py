"""What MS-SWIFT trains with trainers of its own, which know text only, is refused."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from plugins.errors import UserError
from plugins.training.options import refuse_other_losses

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"rlhf_type": "dpo"}, "rlhf_type: 'dpo' compares texts, .*; use `higgs-audio sft` or"),
    ({"rlhf_type": "grpo"}, "rlhf_type: 'grpo' compares texts"),
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


IN_SWIFT = """
import sys
from swift.utils import import_external_file
import_external_file(sys.argv[1])
from plugins.errors import problem
sys.excepthook(ValueError, ValueError("other"), None)
raise problem(source="rows", field="text", value=1, reason="is wrong", remedy="mend it")
"""


def test_under_plain_swift_too_a_mistake_is_one_line() -> None:
    """It stood below 580 lines and a traceback; what is no mistake of the user keeps its own."""
    command = [sys.executable, "-c", IN_SWIFT, str(ROOT / "plugins" / "register.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: other\nerror: rows: text: 1 is wrong; mend it\n")
    assert "Traceback" not in done.stderr
