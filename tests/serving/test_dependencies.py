"""The lock covers every pin with hashes, and the audit's report is read as it is meant."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_dependencies", ROOT / "scripts" / "check_dependencies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def project(*dependencies: str) -> dict[str, Any]:
    return {"project": {"dependencies": list(dependencies), "optional-dependencies": {"dev": []}}}


def test_the_lock_is_current(checks: ModuleType) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert checks.lock_problems(pyproject, checks.LOCK.read_text()) == []
    assert "://" not in checks.LOCK.read_text()


def test_what_a_lock_lacks_is_named(checks: ModuleType) -> None:
    text = "a==1.0 \\\n    --hash=sha256:00\nb==2.0 ; sys_platform == 'linux'\n"
    problems = checks.lock_problems(project("A[x]==1.1", "c==3"), text)
    assert [problem.split(":")[0].split()[0] for problem in problems] == ["A", "c", "b"]
    assert checks.lock_problems(project("a==1.0"), "a==1.0 --hash=sha256:00") == []
    with pytest.raises(ValueError, match="exact version"):
        checks.locked("a>=1.0")


def test_a_known_vulnerability_is_told_and_silence_is_not_taken_for_safety(checks: ModuleType) -> None:
    known = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2"}]}
    unknown, sound = {"name": "b", "skip_reason": "not found"}, {"name": "c", "version": "1", "vulns": []}
    found = checks.read_audit({"dependencies": [known, unknown, sound]})
    assert found.audited == 2
    assert found.unaudited == ("b",)
    assert found.vulnerable == ("a 1: CVE-1; fixed in 2", "a 1: CVE-2; fixed in none yet")


def report(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(dependencies)})


SOUND, UNKNOWN = {"name": "c", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}
BAD = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}


@pytest.mark.parametrize(
    ("stdouts", "strict", "said", "status"),
    [
        ([report(SOUND)], False, "asked about 1 packages: no vulnerability is known", 0),
        ([report(SOUND, BAD)], False, "asked about 2 packages: 1 known vulnerabilities", 1),
        ([report(SOUND, UNKNOWN)], False, "COULD NOT ASK about b", 0),
        ([report(SOUND, UNKNOWN)], True, "COULD NOT ASK about b", 1),
        (["", report(SOUND)], False, "no vulnerability is known", 0),
        (["", report(UNKNOWN)], False, "COULD NOT ASK whether", 0),
        (["", "{}"], True, "COULD NOT ASK whether", 1),
    ],
)
def test_none_known_and_nobody_to_ask_are_told_apart(
    checks: ModuleType, stdouts: list[str], strict: bool, said: str, status: int
) -> None:
    answers = [
        checks.read_answer(service, stdout, "Traceback\nConnectionError: no route")
        for service, stdout in zip(checks.SERVICES, stdouts)
    ]
    lines, found = checks.verdict(answers, strict)
    assert found == status
    assert said in "\n".join(lines)
    if "COULD NOT ASK whether" in said:
        assert "no vulnerability is known" not in "\n".join(lines)
        assert "pypi: ConnectionError: no route" in lines[0]
