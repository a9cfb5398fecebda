"""An operator's holds, and the background jobs."""

from __future__ import annotations

from msgspec import Struct

from serving.admin_schema.state import Hold, HoldModeText


class HoldBody(Struct, forbid_unknown_fields=True):
    """`duration_s` is needed but for `defaults`; `clock_mhz` for `pin`."""

    mode: HoldModeText
    reason: str
    duration_s: float | None = None
    clock_mhz: int | None = None


class ActuationResult(Struct):
    device: str
    action: str
    outcome: str
    reason: str
    asked: float | None
    read_back: float | None
    latency_s: float


class HoldAnswer(Struct):
    """`hold` is null after a release."""

    hold: Hold | None
    actuations: list[ActuationResult]


class HoldList(Struct):
    """`active` is what the actuator says; `recorded` what the ledger holds as not released."""

    active: Hold | None
    recorded: list[Hold]


class JobState(Struct):
    """`last_success_unix_s` null: never yet."""

    name: str
    every_s: float
    timeout_s: float
    next_run_unix_s: float | None
    last_success_unix_s: float | None
    last_error: str | None
    runs: int
    failures: int


class JobList(Struct):
    jobs: list[JobState]
