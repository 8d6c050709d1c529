"""Findings of checks, one line each, and what they amount to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    def render(self) -> str:
        """One line, the evidence indented below."""
        text = f"{self.status:<8}{self.check}: {self.text}"
        for line in self.evidence.split("\n") if self.evidence else ():
            text += "\n" + f"        {line}".rstrip()
        return text


@dataclass
class Report:
    """Collects findings in order, and says each as it comes."""

    say: Callable[[str], None]
    findings: list[Finding] = field(default_factory=list)

    def add(self, check: str, status: Status, text: str, evidence: str = "") -> None:
        self.findings.append(Finding(check, status, text, evidence))
        self.say(self.findings[-1].render())

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
