"""Dependencies: is the lock current, is any version known to be vulnerable, and what is in the product (SBOM).

    python scripts/check_dependencies.py lock      # every pin of pyproject.toml is in requirements.lock, with hashes
    python scripts/check_dependencies.py audit     # pip-audit over the lock
    python scripts/check_dependencies.py sbom build/gridserve.cdx.json

Where no vulnerability database can be reached the audit says so and passes; `--strict` makes that a failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
REMEDY = "run `make lock`"


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
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        found = read_audit(json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: skipped, no vulnerability database can be reached ({last})", file=sys.stderr)
        return int(strict)
    for line in found.vulnerable:
        print(f"audit: {line}", file=sys.stderr)
    if not found.audited:
        print("audit: skipped, the vulnerability database knows none of the packages from here", file=sys.stderr)
    elif found.unaudited:
        print(f"audit: no answer for {', '.join(found.unaudited)}", file=sys.stderr)
    print(f"audit: {found.audited} packages audited, {len(found.vulnerable)} known vulnerabilities")
    return int(bool(found.vulnerable) or (strict and bool(found.unaudited)))


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
