"""Which versions the doctor and the preflight take for sound."""

from __future__ import annotations

import pytest

from plugins.training.preflight import environment
from plugins.training.preflight.report import Report


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("5.18.0", "failed"),
        ("5.19.0", "ok"),
        ("5.22.2", "ok"),
        ("5.24.0", "ok"),
        ("5.25.0", "failed"),
    ],
)
def test_the_supported_transformers_count_not_what_pip_would_install(
    version: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyproject.toml has to ask for what MS-SWIFT's metadata allows, which is less."""
    installed = environment.version_of

    def version_of(package: str) -> str | None:
        return version if package == "transformers" else installed(package)

    monkeypatch.setattr(environment, "version_of", version_of)
    report = Report(lambda text: None)
    environment._check_versions(report)
    (finding,) = report.findings
    assert finding.status == status
    assert ("transformers 5." in finding.text) == (status == "failed")
