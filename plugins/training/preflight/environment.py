"""Versions of what a run stands on, and optional parts with the line that installs them. L3.

Without torch or MS-SWIFT: what it says is needed most where those do not load.
"""

from __future__ import annotations

import importlib.metadata
import platform

from packaging.requirements import Requirement

from plugins.files.installation import PROJECT, failed_import, version_of
from plugins.training.preflight.report import Report


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
        requirements = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    except importlib.metadata.PackageNotFoundError:
        report.add(
            "environment", "warning", f"{PROJECT} is not installed; pip install -e . in its folder"
        )
        return
    lines: dict[str, str] = {}
    wrong = []
    for requirement in requirements:
        extra = str(requirement.marker).partition("extra == ")[2].strip('"')
        version = version_of(requirement.name)
        if extra == "dev":
            continue
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if not fits and not extra:
            wrong.append(
                f"{requirement.name} {version or 'is missing'} (needs {requirement.specifier or 'any'})"
            )
        note = "" if fits or not extra else f'optional: pip install -e ".[{extra}]"'
        lines.setdefault(
            requirement.name, f"{requirement.name:<22}{version or 'missing':<16}{note}".rstrip()
        )
    text = f"Python {platform.python_version()}" + (
        f"; {', '.join(wrong)}: pip install -e ." if wrong else ""
    )
    report.add("environment", "failed" if wrong else "ok", text, "\n".join(lines.values()))
