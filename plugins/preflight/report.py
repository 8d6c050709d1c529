"""Findings of checks, one line each, and what they amount to. L3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from plugins.errors import UserError

Status = Literal["ok", "info", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    check: str  # what was looked at
    status: Status
    text: str  # one line
    evidence: str = ""  # a table or excerpt below it


@dataclass
class Report:
    """Collects findings in order."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, check: str, status: Status, text: str, evidence: str = "") -> None:
        self.findings.append(Finding(check, status, text, evidence))

    @contextmanager
    def catching(self, check: str) -> Iterator[None]:
        """A UserError inside becomes a failed finding, so that the other checks still run."""
        try:
            yield
        except UserError as error:
            self.add(check, "failed", str(error))

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.status == "failed"]

    def render(self) -> str:
        """One line per finding, its evidence indented below."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:<8}{finding.check}: {finding.text}")
            lines += [f"        {line}".rstrip() for line in finding.evidence.splitlines()]
        return "\n".join(lines)
