"""Dependencies: is the lock current, is any version known to be vulnerable, and what is in the product (SBOM).

    python scripts/check_dependencies.py lock      # every pin of pyproject.toml is in requirements.lock, with hashes
    python scripts/check_dependencies.py audit     # pip-audit over the lock, asking PyPI and then OSV
    python scripts/check_dependencies.py sbom build/gridserve.cdx.json

The audit ends with one of three: vulnerabilities are known (status 1), none is known, or nobody could be asked, which
says nothing of the dependencies and passes; `--strict` makes that a failure too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
REMEDY = "run `make lock`"
SERVICES = ("pypi", "osv")
ANSWER_S = 15
MAX_REASON_CHARS = 120


@dataclass(frozen=True)
class Audit:
    """`vulnerable`: one line each. `unaudited`: names without an answer."""

    audited: int
    unaudited: tuple[str, ...]
    vulnerable: tuple[str, ...]


def locked(text: str) -> dict[str, tuple[str, int]]:
    """Name to (version, number of hashes) of a lock file."""
    found: dict[str, tuple[str, int]] = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        requirement = Requirement(entry.split(" --hash")[0].strip())
        versions = [one.version for one in requirement.specifier if one.operator == "=="]
        if len(versions) != 1:
            raise ValueError(f"{requirement.name} has no exact version in the lock; {REMEDY}")
        found[canonicalize_name(requirement.name)] = (versions[0], entry.count("--hash=sha256:"))
    return found


def lock_problems(pyproject: dict[str, Any], text: str) -> list[str]:
    """What the lock lacks of the pins of `dependencies` and of the extra `dev`."""
    project = pyproject["project"]
    wanted = [Requirement(one) for one in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    found = locked(text)
    problems = []
    for requirement in wanted:
        version, _ = found.get(canonicalize_name(requirement.name), (None, 0))
        if version is None:
            problems.append(f"{requirement.name} is not in {LOCK.name}; {REMEDY}")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name}: pyproject.toml wants {requirement.specifier}, the lock has {version}")
    return problems + [
        f"{name} has no hash in {LOCK.name}; {REMEDY}" for name, (_, hashes) in found.items() if not hashes
    ]


def read_audit(report: dict[str, Any]) -> Audit:
    """From pip-audit's JSON."""
    unaudited, vulnerable, audited = [], [], 0
    for one in report["dependencies"]:
        if "skip_reason" in one:
            unaudited.append(one["name"])
            continue
        audited += 1
        for known in one["vulns"]:
            fixed = ", ".join(known.get("fix_versions") or ()) or "none yet"
            vulnerable.append(f"{one['name']} {one['version']}: {known['id']}; fixed in {fixed}")
    return Audit(audited, tuple(unaudited), tuple(vulnerable))


@dataclass(frozen=True)
class Answer:
    """Of one vulnerability database. `audit` is None where it could not be asked, and `reason` says why."""

    service: str
    audit: Audit | None
    reason: str = ""


def read_answer(service: str, stdout: str, stderr: str) -> Answer:
    """What pip-audit brought home. A database that knows none of the packages is a mirror without advisories."""
    try:
        found = read_audit(json.loads(stdout))
    except (ValueError, KeyError, TypeError):
        last = (stderr.strip().splitlines() or ["no answer"])[-1]
        return Answer(service, None, last[:MAX_REASON_CHARS])
    if not found.audited:
        return Answer(service, None, f"it knows none of the {len(found.unaudited)} packages")
    return Answer(service, found)


def verdict(answers: Sequence[Answer], strict: bool) -> tuple[list[str], int]:
    """What to say, and the exit status."""
    audit = next((one.audit for one in answers if one.audit is not None), None)
    if audit is None:
        reasons = "; ".join(f"{one.service}: {one.reason}" for one in answers)
        return [
            f"audit: COULD NOT ASK whether vulnerabilities are known ({reasons})",
            "audit: this says nothing of the dependencies; run it again where pypi.org or osv.dev can be reached",
        ], int(strict)
    lines = [f"audit: {line}" for line in audit.vulnerable]
    if audit.unaudited:
        lines.append(f"audit: COULD NOT ASK about {', '.join(audit.unaudited)}")
    known = f"{len(audit.vulnerable)} known vulnerabilities" if audit.vulnerable else "no vulnerability is known"
    lines.append(f"audit: asked about {audit.audited} packages: {known}")
    return lines, int(bool(audit.vulnerable) or (strict and bool(audit.unaudited)))


def run_lock() -> int:
    problems = lock_problems(tomllib.loads((ROOT / "pyproject.toml").read_text()), LOCK.read_text())
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(
            f"{LOCK.name}: {len(locked(LOCK.read_text()))} packages with hashes, every pin of pyproject.toml among them"
        )
    return int(bool(problems))


def run_audit(strict: bool) -> int:
    answers = []
    for service in SERVICES:
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip",
                   "--vulnerability-service", service, "--timeout", str(ANSWER_S),
                   "--progress-spinner", "off", "--format", "json"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answers.append(read_answer(service, done.stdout, done.stderr))
        if answers[-1].audit is not None:
            break
    lines, status = verdict(answers, strict)
    for line in lines:
        print(line, file=sys.stderr)
    return status


def run_sbom(out: Path) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    command += ["--output-reproducible", "--spec-version", "1.6", "--output-file", str(out), sys.executable]
    subprocess.run(command, check=True)
    bom = json.loads(out.read_text())
    print(f"{out}: CycloneDX {bom['specVersion']}, {len(bom['components'])} components")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("lock")
    verbs.add_parser("audit").add_argument("--strict", action="store_true")
    verbs.add_parser("sbom").add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "lock":
        return run_lock()
    return run_audit(arguments.strict) if arguments.verb == "audit" else run_sbom(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
