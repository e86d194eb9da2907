"""What a check found."""

import enum
from collections.abc import Sequence

import msgspec


class Verdict(enum.StrEnum):
    """Whether something is as it should be."""

    OK = "ok"
    MISSING = "missing"  # looked at, and it is not so
    UNKNOWN = "unknown"  # cannot be looked at on this host


class Finding(msgspec.Struct, frozen=True):
    """One thing that was checked."""

    subject: str
    verdict: Verdict
    found: str
    mend: str = ""


def judge(subject: str, good: bool, found: str, mend: str) -> Finding:
    """A finding of something that could be looked at; the mend is kept only where it is needed."""
    return Finding(subject, Verdict.OK, found) if good else Finding(subject, Verdict.MISSING, found, mend)


def all_ok(findings: Sequence[Finding]) -> bool:
    """Nothing missing, nothing unknown."""
    return all(finding.verdict is Verdict.OK for finding in findings)
