"""What is put into the ledger: frozen values, one class a table. Unknown is `None`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000


def micros(moment: datetime) -> int:
    """UTC microseconds since 1970. Raises `ValueError` for a time without zone."""
    if moment.tzinfo is None:
        raise ValueError(f"time {moment.isoformat()} has no zone; use datetime.now(UTC)")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_of(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One request. Names follow the `energy` object of the API; `tenant` is the name of the API key.

    `prompt_text` and `answer_text` are kept only for tenants that agreed, whatever stands here.
    """

    request_id: str
    arrived_us: int
    model: str
    finished_us: int | None = None
    tenant: str | None = None
    endpoint: str | None = None
    task_class: str | None = None
    directive: str | None = None
    directive_reason: str | None = None
    policy_revision: str | None = None
    policy_mode: str | None = None
    priority: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    choices: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    energy_j: float | None = None
    prefill_j: float | None = None
    decode_j: float | None = None
    idle_j: float | None = None
    energy_method: str | None = None
    energy_source: str | None = None
    energy_scope: str | None = None
    attribution_method: str | None = None
    energy_uncertainty_percent: float | None = None
    operational_g: float | None = None
    embodied_g: float | None = None
    pue: float | None = None
    intensity_g_per_kwh: float | None = None
    intensity_source: str | None = None
    intensity_kind: str | None = None
    intensity_tier: str | None = None
    intensity_basis: str | None = None
    intensity_boundary: str | None = None
    intensity_age_s: float | None = None
    zone: str | None = None
    finish_reason: str | None = None
    status: int | None = None
    experiment_id: str | None = None
    prompt_text: str | None = None
    answer_text: str | None = None

    @property
    def grams(self) -> float | None:
        """Operational and embodied grams; `None` when the operational part is unknown."""
        return None if self.operational_g is None else self.operational_g + (self.embodied_g or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One decision or actuation. `asked`, `read_back` and `inputs` are JSON values.

    `kind`: decision, actuation, restore, hold, release, policy, access, alarm. `policy_body`: the policy's body
    revision, by which the promotion gate counts its time in shadow.
    """

    at_us: int
    kind: str
    actor: str
    decision_id: str | None = None
    policy_revision: str | None = None
    policy_body: str | None = None
    policy_mode: str | None = None
    rule: str | None = None
    device: str | None = None
    asked: Any = None
    read_back: Any = None
    result: str | None = None
    latency_s: float | None = None
    inputs: Any = None
    slo_violated: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionRow:
    revision: str
    body_revision: str
    mode: str
    text: str
    activated_us: int
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRow:
    """An operator's hold. Put it again with `released_us` and `released_by` to end it."""

    hold_id: str
    mode: str
    placed_us: int
    placed_by: str
    reason: str
    device: str | None = None
    clock_mhz: int | None = None
    expires_us: int | None = None
    released_us: int | None = None
    released_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRow:
    """One carbon intensity as it was fetched; a revised value is a row of its own."""

    zone: str
    start_us: int
    end_us: int
    source: str
    kind: str
    fetched_us: int
    g_per_kwh: float
    basis: str
    boundary: str
    issued_us: int | None = None
    low_g_per_kwh: float | None = None
    high_g_per_kwh: float | None = None
    mix: str | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRow:
    """An experiment; put it again as it goes on. `config` and `result` are JSON text."""

    experiment_id: str
    name: str
    started_us: int
    status: str
    config: str
    ended_us: int | None = None
    result: str | None = None


Record = RequestRow | AuditEntry | RevisionRow | HoldRow | FeedRow | ExperimentRow


def columns_of(kind: type[Record]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def getter_of(kind: type[Record]) -> Callable[[Any], tuple[Any, ...]]:
    """A row's values in the order of `columns_of`."""
    return attrgetter(*columns_of(kind))
