"""One thing a cross-check found, by the path of the setting it is about."""

from __future__ import annotations

from dataclasses import dataclass

from serving.policy.problems import Path, Severity


@dataclass(frozen=True, slots=True)
class Finding:
    path: Path
    message: str
    severity: Severity


def error(path: Path, message: str) -> Finding:
    return Finding(path, message, Severity.ERROR)


def warning(path: Path, message: str) -> Finding:
    return Finding(path, message, Severity.WARNING)
