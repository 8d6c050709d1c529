"""`docs/upstream.md` has a row per reproduction, and the workarounds that reproductions name
exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

HERE = Path(__file__).parent
SOURCES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (HERE / "test_transformers.py", HERE / "test_swift.py")
}
DEFECT = re.compile(r"workaround: plugins/([\w/]+)\.py:(\w+)\"[,)\s]*def (test_\w+)")
DEFECTS = [(name, *found) for name, source in SOURCES.items() for found in DEFECT.findall(source)]


def test_every_reproduction_names_its_workaround() -> None:
    assert len(DEFECTS) == sum(source.count("xfail(") for source in SOURCES.values())


@pytest.mark.parametrize(("file", "module", "name", "test"), DEFECTS)
def test_documented_with_a_workaround_that_exists(
    file: str, module: str, name: str, test: str
) -> None:
    assert re.search(
        rf"^ *(class|def) {name}\b",
        (ROOT / "plugins" / f"{module}.py").read_text(encoding="utf-8"),
        re.M,
    )
    (row,) = [
        line
        for line in (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8").splitlines()
        if test in line
    ]
    assert f"plugins/{module}.py" in row
