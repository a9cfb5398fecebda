"""The policy editor: modes, problems by line, schema help, differences, and what a window would have cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from dashboard.schema_policy import (
    EffectiveSettings,
    PolicyChange,
    PolicyProblem,
    PolicyRevision,
    WhatIfAnswer,
    WhatIfOutcome,
)
from dashboard.views.formats import UNKNOWN, clock, count, grams, joules, number, seconds

MODES = ("observe", "shadow", "enforce")
MODE_MEANS = {
    "observe": "measures and reports; decides nothing",
    "shadow": "decides and records; changes nothing",
    "enforce": "decides and acts",
}
_MODE = re.compile(r"^(?P<indent>[ \t]+mode:[ \t]*)(?P<quote>['\"]?)(observe|shadow|enforce)(?P=quote)", re.MULTILINE)


def with_mode(text: str, mode: str) -> str:
    """`text` with the policy's mode set. Raises `ValueError` where it has no `mode:` line to change."""
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no mode; use observe, shadow or enforce")
    changed, found = _MODE.subn(lambda match: match["indent"] + mode, text, count=1)
    if not found:
        raise ValueError("the text has no `mode:` line under spec; add `mode: observe`, `shadow` or `enforce`")
    return changed


def mode_of(text: str) -> str | None:
    found = _MODE.search(text)
    return found[3] if found else None


def next_mode(mode: str | None) -> str | None:
    """The step after `mode` on the way observe, shadow, enforce."""
    if mode not in MODES or mode == MODES[-1]:
        return None
    return MODES[MODES.index(mode) + 1]


def problem_lines(problems: Sequence[PolicyProblem], text: str) -> list[str]:
    """`line 7, column 5: spec.power.governor: ...` and the line itself, errors first."""
    lines = text.splitlines()
    ordered = sorted(problems, key=lambda p: (p.severity != "error", p.line, p.column))
    made = []
    for problem in ordered:
        where = f"line {problem.line}, column {problem.column}: "
        path = f"{problem.path}: " if problem.path else ""
        mark = "" if problem.severity == "error" else "warning: "
        shown = lines[problem.line - 1].strip() if 0 < problem.line <= len(lines) else ""
        made.append(f"{where}{mark}{path}{problem.message}" + (f"\n    {shown}" if shown else ""))
    return made


def clock_bounds(asked: EffectiveSettings) -> str:
    """`clock at least 600 MHz`; the device's own range where the policy sets none."""
    low, high = asked.clock_min_mhz, asked.clock_max_mhz
    if low is not None and high is not None:
        return f"clock {number(low)} to {number(high, 'MHz')}"
    if low is not None:
        return f"clock at least {number(low, 'MHz')}"
    return f"clock at most {number(high, 'MHz')}" if high is not None else "clock as the device allows"


def change_rows(changes: Sequence[PolicyChange]) -> list[dict[str, str]]:
    return [{"Setting": c.path, "In force": _shown(c.old), "Proposed": _shown(c.new)} for c in changes]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def revision_rows(revisions: Sequence[PolicyRevision]) -> list[dict[str, str]]:
    return [
        {
            "Revision": r.revision[:12],
            "Mode": r.mode,
            "Activated (UTC)": clock(r.activated_unix_s),
            "By": r.actor,
            "Reason": r.reason,
        }
        for r in revisions
    ]


def what_if_rows(answer: WhatIfAnswer) -> list[dict[str, str]]:
    """One row a figure: in force, proposed, and the change against what is in force."""

    def row(name: str, shown: Any, get: Any) -> dict[str, str]:
        before, after = get(answer.in_force), get(answer.proposed)
        change = UNKNOWN if not before or after is None else f"{100 * (after / before - 1):+.1f} %"
        return {"Figure (simulated)": name, "In force": shown(before), "Proposed": shown(after), "Change": change}

    return [
        row("Requests", count, lambda o: o.requests),
        row("Energy", joules, lambda o: o.energy_j),
        row("CO2e", grams, lambda o: o.grams),
        row("Mean power", lambda v: number(v, "W"), lambda o: o.mean_power_w),
        row("TTFT p50", seconds, lambda o: o.ttft_p50_s),
        row("TTFT p99", seconds, lambda o: o.ttft_p99_s),
        row("TPOT p99", seconds, lambda o: o.tpot_p99_s),
        row("Actuations", count, lambda o: o.actuations),
    ]


def saved(in_force: WhatIfOutcome, proposed: WhatIfOutcome) -> str:
    """In words, with its counterfactual."""
    if not in_force.energy_j or proposed.energy_j is None:
        return "Energy of the two cannot be compared: one of them is unknown."
    change = 1 - proposed.energy_j / in_force.energy_j
    verb = "less" if change >= 0 else "more"
    return (
        f"{abs(change):.1%} {verb} energy than the policy in force on the same {in_force.requests} recorded requests "
        "(simulated, counterfactual: the policy in force)."
    )


def schema_rows(schema: dict[str, Any], wanted: str = "") -> list[dict[str, str]]:
    """Every setting with its type and meaning; `wanted` filters by any word in it."""
    rows = [
        {"Setting": path, "Type": _type(node), "Meaning": str(node.get("description", "")).replace("\n", " ")}
        for path, node in _walk(schema, schema, "", 0)
    ]
    needle = wanted.strip().lower()
    return [row for row in rows if not needle or needle in " ".join(row.values()).lower()]


def _walk(root: dict[str, Any], node: dict[str, Any], path: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if depth > 6:
        return
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        target = _follow(root, child)
        yield here, {**target, **{k: v for k, v in child.items() if k in ("description", "default")}}
        for option in [target, *_options(root, target)]:
            yield from _walk(root, option, here, depth + 1)
            items = _follow(root, option.get("items", {})) if isinstance(option.get("items"), dict) else {}
            for item in [items, *_options(root, items)]:
                yield from _walk(root, item, here + "[]", depth + 1)


def _options(root: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    return [_follow(root, option) for option in node.get("anyOf", node.get("oneOf", []))]


def _follow(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    if reference is None and len(node.get("allOf", [])) == 1:
        reference = node["allOf"][0].get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return node
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(part, {})
    return dict(found)


def _type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    kinds = [node.get("type")] if "type" in node else [o.get("type", "object") for o in node.get("anyOf", [])]
    return " | ".join(dict.fromkeys(str(kind) for kind in kinds if kind)) or "object"
