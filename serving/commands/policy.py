"""`gridserve policy check|diff|test|schema|show`: policy files, with the validator the server uses."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands import CommandError

if TYPE_CHECKING:
    from serving.commands import Subparsers
    from serving.policy.checks import DeviceRange
    from serving.policy.load import LoadedPolicy
    from serving.policy.problems import Problem

EXAMPLES = """examples:
  gridserve policy check policies/*.yaml --device h100-sxm
  gridserve policy diff policies/observe-only.yaml policies/save-energy.yaml
  gridserve policy test tests/my-policy.test.yaml
  gridserve policy show policies/follow-the-grid.yaml --effective --at 2026-01-15T18:00:00+00:00 --g-per-kwh 320
  gridserve policy schema > policies/policy.schema.json

exit status: 0 all good, 1 a policy is refused, a test fails or policies differ, 2 wrong usage
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "policy",
        help="check, compare, test and show policy files",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="validate files; errors as file:line:col: path: message")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument("--format", choices=("text", "json", "github"), default="text", help="how problems are printed")
    check.add_argument("--strict", action="store_true", help="warnings fail too")
    check.set_defaults(run=run_check)
    compare = actions.add_parser("diff", help="settings that differ, defaults included; status 1 when some do")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    compare.add_argument("--json", action="store_true", help="a JSON list on stdout")
    compare.set_defaults(run=run_diff)
    test = actions.add_parser("test", help="run policy test files: situations and the settings expected in them")
    test.add_argument("files", nargs="+", type=Path, metavar="FILE")
    test.add_argument("--json", action="store_true", help="a JSON list on stdout")
    test.set_defaults(run=run_test)
    schema = actions.add_parser("schema", help="JSON Schema for editors")
    schema.set_defaults(run=run_schema)
    show = actions.add_parser("show", help="every setting as JSON, with the revision")
    show.add_argument("file", type=Path)
    show.add_argument("--effective", action="store_true", help="what is asked for in one situation, with the rules")
    show.add_argument("--at", metavar="TIME", help="ISO 8601 with offset; default now")
    show.add_argument("--zone", help="default the policy's")
    show.add_argument("--tenant")
    show.add_argument("--g-per-kwh", type=float, metavar="N", help="carbon intensity; default unknown")
    show.set_defaults(run=run_show)
    for action in (check, test, show):
        action.add_argument("--device", metavar="PROFILE", help="hold clocks and limits against a GPU profile")


def run_check(arguments: argparse.Namespace) -> int:
    from serving.policy.problems import PolicyError

    device = _device(arguments.device)
    problems: list[Problem] = []
    refused = False
    for path in arguments.files:
        try:
            loaded = _load(path, device)
        except PolicyError as error:
            problems += error.problems
            refused = True
            continue
        problems += loaded.warnings
        if arguments.format == "text":
            print(f"{path}: ok, revision {loaded.policy.short_revision}")
    _print_problems(problems, arguments.format)
    return int(refused or (arguments.strict and bool(problems)))


def run_diff(arguments: argparse.Namespace) -> int:
    from serving.policy.diff import diff

    changes = diff(_checked(arguments.old).policy, _checked(arguments.new).policy)
    if arguments.json:
        print(json.dumps([{"path": change.path, "old": change.old, "new": change.new} for change in changes], indent=2))
    else:
        for change in changes:
            print(change)
    return int(bool(changes))


def run_test(arguments: argparse.Namespace) -> int:
    from serving.policy.cases import run_cases
    from serving.policy.problems import PolicyError

    device = _device(arguments.device)
    outcomes = []
    for path in arguments.files:
        try:
            outcomes += run_cases(path, device)
        except (PolicyError, OSError) as error:
            raise CommandError(str(error)) from None
    failed = [outcome for outcome in outcomes if outcome.failures]
    if arguments.json:
        cases = [{"file": case.file, "name": case.name, "failures": case.failures} for case in outcomes]
        print(json.dumps(cases, indent=2))
        return int(bool(failed))
    for outcome in outcomes:
        print(f"{'FAIL' if outcome.failures else 'ok  '} {outcome.name}")
        for line in outcome.failures:
            print(f"     {line}")
    print(f"{len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return int(bool(failed))


def run_schema(arguments: argparse.Namespace) -> int:
    from serving.policy.schema import policy_schema

    print(json.dumps(policy_schema(), indent=2))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    loaded = _checked(arguments.file, _device(arguments.device))
    for problem in loaded.warnings:
        print(problem, file=sys.stderr)
    policy = loaded.policy
    shown: dict[str, Any] = {"revision": policy.revision, **policy.plain()}
    if arguments.effective:
        from serving.policy.cases import settings
        from serving.policy.effective import Situation, effective

        moment = _moment(arguments.at)
        situation = Situation(moment, arguments.zone, arguments.tenant, arguments.g_per_kwh)
        shown = {"revision": policy.revision, "at": moment.isoformat(), **settings(effective(policy, situation))}
    print(json.dumps(shown, indent=2, ensure_ascii=False))
    return 0


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--at {text!r} is not a time; write it as 2026-01-15T18:00:00+00:00") from None
    if moment.tzinfo is None:
        raise CommandError(f"--at {text} has no offset; add +00:00 for UTC")
    return moment


def _device(profile: str | None) -> DeviceRange | None:
    if profile is None:
        return None
    from power.profile import load_profile
    from serving.policy.checks import DeviceRange

    try:
        gpu = load_profile(profile)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return DeviceRange(gpu.name, gpu.clocks_mhz, gpu.limit_min_w, gpu.limit_max_w)


def _load(path: Path, device: DeviceRange | None) -> LoadedPolicy:
    from serving.policy.load import load_policy

    try:
        return load_policy(path, device)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from None


def _checked(path: Path, device: DeviceRange | None = None) -> LoadedPolicy:
    from serving.policy.problems import PolicyError

    try:
        return _load(path, device)
    except PolicyError as error:
        raise CommandError(f"the policy is refused:\n{error}") from None


def _print_problems(problems: list[Problem], layout: str) -> None:
    if layout == "json":
        fields = ("file", "line", "column", "path", "message", "severity")
        print(json.dumps([{name: getattr(problem, name) for name in fields} for problem in problems], indent=2))
    for problem in problems:
        if layout == "text":
            print(problem, file=sys.stderr)
        elif layout == "github":
            message = f"{problem.path}: {problem.message}" if problem.path else problem.message
            place = f"file={_escaped(problem.file, True)},line={problem.line},col={problem.column}"
            print(f"::{problem.severity} {place}::{_escaped(message)}")


def _escaped(text: str, of_property: bool = False) -> str:
    """GitHub's workflow commands give %, line ends and, in properties, `:` and `,` a meaning."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if of_property else text
