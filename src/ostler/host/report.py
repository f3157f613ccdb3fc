"""What a look at the host found: one line a subject, with a cure where one is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Status(Enum):
    """How a subject stands; the texts are what is printed."""

    PASS = "PASS"
    WARN = "WARN"
    """Guests run, but slower, or without something that some of them want."""
    FAIL = "FAIL"
    """What hardware virtualization needs is not there; guests run on the software CPU alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `subject` stands as `status` says, because of `said`; `cure` is what to do."""

    subject: str
    status: Status
    said: str
    cure: str | None = None

    def __str__(self) -> str:
        line = f"{self.status.value}  {self.subject}: {self.said}"
        return f"{line}; {self.cure}" if self.cure else line


def passed(subject: str, said: str) -> Finding:
    """A finding that needs no cure."""
    return Finding(subject, Status.PASS, said)


def warned(subject: str, said: str, cure: str) -> Finding:
    """Something that guests can do without."""
    return Finding(subject, Status.WARN, said, cure)


def failed(subject: str, said: str, cure: str) -> Finding:
    """Something that hardware virtualization cannot do without."""
    return Finding(subject, Status.FAIL, said, cure)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, subject: str) -> Finding:
        """The finding about `subject`; `KeyError` where there is none."""
        for finding in self.findings:
            if finding.subject == subject:
                return finding
        raise KeyError(subject)

    @property
    def status(self) -> Status:
        """The worst that was found."""
        for status in (Status.FAIL, Status.WARN):
            if any(finding.status is status for finding in self.findings):
                return status
        return Status.PASS

    @property
    def exit_code(self) -> int:
        """For a process: 1 when anything failed, else 0."""
        return int(self.status is Status.FAIL)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        findings = [asdict(finding) | {"status": finding.status.value} for finding in self]
        return {"status": self.status.value, "findings": findings}

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))
