"""Versions of what a run stands on, and optional parts with the line that installs them. L3."""

from __future__ import annotations

import importlib.metadata
import platform

from packaging.requirements import Requirement

from plugins.preflight.report import Report

_PROJECT = "higgs-audio-swift"


def check_environment(report: Report) -> None:
    """Every requirement of pyproject.toml with its version: failed if a required one is missing or out of range."""
    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires(_PROJECT) or []]
    except importlib.metadata.PackageNotFoundError:
        report.add("environment", "warning", f"{_PROJECT} is not installed; pip install -e . in its folder")
        return
    lines: dict[str, str] = {}
    wrong = []
    for requirement in requirements:
        extra = str(requirement.marker).partition("extra == ")[2].strip('"')
        version = _version(requirement.name)
        if extra == "dev":
            continue
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if not fits and not extra:
            wrong.append(f"{requirement.name} {version or 'is missing'} (needs {requirement.specifier or 'any'})")
        note = "" if fits or not extra else f"optional: pip install -e .[{extra}]"
        lines.setdefault(requirement.name, f"{requirement.name:<20}{version or 'missing':<16}{note}".rstrip())
    text = f"Python {platform.python_version()}" + (f"; {', '.join(wrong)}: pip install -e ." if wrong else "")
    report.add("environment", "failed" if wrong else "ok", text, "\n".join(lines.values()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
