"""Versions of what a run stands on, and optional parts with the line that installs them.

Without torch or MS-SWIFT: what it says is needed most where those do not load.
"""

from __future__ import annotations

import importlib.metadata
import platform

from packaging.requirements import Requirement

from plugins.files.installation import (
    PROJECT,
    TESTED_TRANSFORMERS,
    failed_import,
    version_of,
)
from plugins.training.preflight.report import Report, Status


def check_environment(report: Report) -> bool:
    """Every requirement of pyproject.toml with its version: failed if a required one is missing or
    out of range.

    Failed as well if one of those that nothing works without cannot be imported: then it returns
    False."""
    _check_versions(report)
    error = failed_import()
    if error is not None:
        report.add("imports", "failed", str(error))
    return error is None


def _check_versions(report: Report) -> None:
    try:
        requirements = list(map(Requirement, importlib.metadata.requires(PROJECT) or []))
    except importlib.metadata.PackageNotFoundError:
        text = f"{PROJECT} is not installed; pip install -e . in its folder"
        report.add("environment", "warning", text)
        return
    lines: dict[str, str] = {}
    wrong = []
    for requirement in requirements:
        extra = str(requirement.marker).partition("extra == ")[2].strip('"')
        if extra == "dev":
            continue
        name, version = requirement.name, version_of(requirement.name)
        if name == "transformers":
            requirement.specifier = TESTED_TRANSFORMERS
        # A nightly build of torch is as good as a release.
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        note = ""
        if not fits and extra:
            note = f'optional: pip install -e ".[{extra}]"'
        elif not fits:
            needed = requirement.specifier or "any"
            wrong.append(f"{name} {version or 'is missing'} (needs {needed})")
        # A package that is also part of an extra has one line.
        lines.setdefault(name, f"{name:<22}{version or 'missing':<16}{note}".rstrip())
    status: Status = "ok"
    text = f"Python {platform.python_version()}"
    if wrong:
        status, text = "failed", f"{text}; {', '.join(wrong)}: pip install -e ."
    report.add("environment", status, text, "\n".join(lines.values()))
