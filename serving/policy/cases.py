"""Policy tests: a file of situations and of what the policy is expected to ask for in each.

apiVersion: gridserve/v1
kind: PolicyTest
policy: follow-the-grid.yaml
cases:
  - name: evening peak
    given: {time: "2026-01-15T18:00:00+00:00", g_per_kwh: 320}
    expect: {band: dirty, clock_max_mhz: 1200, rules.clock_mhz: evening-peak}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from serving.policy.base import Intensity, Name, Section, Text
from serving.policy.carbon_section import Zone
from serving.policy.checks import DeviceRange
from serving.policy.document import MAX_BYTES, Document, read_document
from serving.policy.effective import BandState, Effective, Situation, effective
from serving.policy.load import load_policy, validate
from serving.policy.model import Policy
from serving.policy.problems import PolicyError, suggestion


class Before(Section):
    """The band in force before, since when."""

    band: Name
    since: AwareDatetime


class Given(Section):
    time: AwareDatetime
    zone: Zone | None = None
    tenant: Name | None = None
    g_per_kwh: Intensity | None = None
    before: Before | None = None


class Case(Section):
    name: Text
    given: Given
    expect: dict[str, str | int | float | bool | None] = Field(min_length=1)
    """Names of effective settings, see `gridserve policy show --effective`; `rules.SETTING` is the rule that set it."""


class PolicyTest(Section):
    apiVersion: Literal["gridserve/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["PolicyTest"]
    policy: Text
    """Path of the policy, relative to this file."""
    cases: tuple[Case, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case; `failures` are lines `file:line:col: path: expected ..., got ...`."""

    file: str
    name: str
    failures: tuple[str, ...] = ()


def run_cases(path: Path, device: DeviceRange | None = None) -> list[Outcome]:
    """Run a test file. Raises `PolicyError` for a faulty test file or policy, `OSError` where one cannot be read."""
    with path.open("rb") as file:
        document = read_document(file.read(MAX_BYTES + 1), str(path))
    test = validate(document, PolicyTest)
    policy = load_policy(path.parent / test.policy, device).policy
    return [_run(policy, case, index, document) for index, case in enumerate(test.cases)]


def _run(policy: Policy, case: Case, index: int, document: Document) -> Outcome:
    given = case.given
    before = BandState(given.before.band, given.before.since) if given.before is not None else None
    result = effective(policy, Situation(given.time, given.zone, given.tenant, given.g_per_kwh, before))
    found = settings(result)
    failures = []
    for name, wanted in case.expect.items():
        path = ("cases", index, "expect", name)
        if name not in found and not name.startswith("rules."):
            message = f"there is no such setting{suggestion(name, sorted(found))}"
            raise PolicyError([document.problem(path, message, key=True)])
        got = found.get(name)
        if got != wanted:
            failures.append(str(document.problem(path, f"expected {_word(wanted)}, got {_word(got)}")))
    return Outcome(document.file, case.name, tuple(failures))


def settings(result: Effective) -> dict[str, Any]:
    """Effective settings by the names that tests and `show --effective` use."""
    plain = asdict(result)
    rules = plain.pop("rules")
    return {**plain, **{f"rules.{name}": rule for name, rule in rules.items()}}


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
