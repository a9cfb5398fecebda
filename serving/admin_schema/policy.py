"""Policies: what is in force, edits, and what another one would have done."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from serving.admin_schema.problem import PolicyProblem
from serving.admin_schema.state import PolicyMode


class EffectiveSettings(Struct):
    """What the policy asks for now; `rules`: for each setting a rule decided, its name."""

    governor: str
    clock_min_mhz: int | None
    clock_max_mhz: int | None
    power_limit_w: float | None
    row_budget_w: float | None
    admit_low_priority: bool
    band: str
    directive: str
    quality_floor: float | None
    tolerance: float | None
    rules: dict[str, str]


class PolicyState(Struct):
    """The policy in force. `file_in_force` False: the file is refused and the last good policy stays; see `alarm`.
    `override`: what was changed of the file at start (`gridserve up` replays a bundled intensity)."""

    revision: str
    name: str
    mode: PolicyMode
    asked_mode: PolicyMode
    held_back: str | None
    text: str
    path: str
    managed: bool
    activated_unix_s: float
    actor: str
    warnings: list[PolicyProblem]
    file_in_force: bool
    alarm: str | None
    effective: EffectiveSettings
    override: str | None


class PolicyRevision(Struct, omit_defaults=True):
    """`text` only when one revision is asked for."""

    revision: str
    body_revision: str
    mode: str
    activated_unix_s: float
    actor: str
    reason: str
    text: str | None = None


class PolicyRevisions(Struct):
    """Activations, newest first."""

    revisions: list[PolicyRevision]


class PolicyText(Struct, forbid_unknown_fields=True):
    text: str


class PolicyValidation(Struct):
    """`revision`: the one the text would get; null when it is refused."""

    ok: bool
    revision: str | None
    problems: list[PolicyProblem]


class PolicyDiffBody(Struct, forbid_unknown_fields=True):
    """The policy in force against `text`, or against an earlier `revision`."""

    text: str | None = None
    revision: str | None = None


class PolicyChange(Struct):
    """`old`, `new`: JSON values; "(absent)" for a setting only one policy has."""

    path: str
    old: Any
    new: Any


class PolicyDiff(Struct):
    from_revision: str
    to_revision: str
    changes: list[PolicyChange]


class PolicyEdit(Struct, forbid_unknown_fields=True):
    """`expected_revision`: the one the edit was made on; another in force answers 409."""

    text: str
    expected_revision: str
    reason: str


class PolicyRollback(Struct, forbid_unknown_fields=True):
    revision: str
    expected_revision: str
    reason: str


class PolicyReload(Struct):
    ok: bool
    changed: bool
    revision: str
    error: str | None


class WhatIfBody(Struct, forbid_unknown_fields=True):
    """Run the recorded requests of the last `window_s` through the simulator under `text` and under the policy in
    force. `gpu`: a power profile, by default the one that serves."""

    text: str
    window_s: float = 3600.0
    gpu: str | None = None


class WhatIfOutcome(Struct):
    """Simulated, always."""

    revision: str
    requests: int
    energy_j: float | None
    grams: float | None
    mean_power_w: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    actuations: int | None


class WhatIfAnswer(Struct):
    method: str
    window_s: float
    in_force: WhatIfOutcome
    proposed: WhatIfOutcome
    notes: list[str]
