"""`docs/upstream.md` has a row per reproduction, and the workarounds that reproductions name
exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

SUBJECTS = ("transformers_training", "transformers_processor", "transformers_generation", "swift")
SOURCES = [
    Path(__file__).with_name(f"test_{subject}.py").read_text(encoding="utf-8")
    for subject in SUBJECTS
]
DOCUMENT = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
# Module, function or class, and the name of the test.
DEFECT = re.compile(r"workaround: plugins/([\w/]+)\.py:(\w+)\"[,)\s]*def (test_\w+)")
DEFECTS = [defect for source in SOURCES for defect in DEFECT.findall(source)]


def test_every_reproduction_names_its_workaround() -> None:
    assert len(DEFECTS) == sum(source.count("xfail(") for source in SOURCES)


@pytest.mark.parametrize(("module", "name", "test"), DEFECTS)
def test_documented_with_a_workaround_that_exists(module: str, name: str, test: str) -> None:
    code = (ROOT / "plugins" / f"{module}.py").read_text(encoding="utf-8")
    assert re.search(rf"^ *(class|def) {name}\b", code, re.M)
    (row,) = (line for line in DOCUMENT.splitlines() if f"`{test}`" in line)
    assert f"`plugins/{module}.py:{name}`" in row
