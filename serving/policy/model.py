"""The policy file as frozen values, its canonical form, and the revision that names it."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from serving.policy.base import Name, NonNegative, Positive, Section, Text
from serving.policy.carbon_section import Carbon
from serving.policy.directives_section import Directives, Tenant
from serving.policy.power_section import Power
from serving.policy.rules import Rule

API_VERSION = "gridserve/v1"
SHORT_REVISION = 12

Mode = Literal["observe", "shadow", "enforce"]
MODES: tuple[Mode, ...] = ("observe", "shadow", "enforce")


class Metadata(Section):
    name: Name
    description: Text | None = None
    owner: Text | None = None


class Slo(Section):
    """Latency targets at the 99th percentile."""

    ttft_p99_ms: Positive
    tpot_p99_ms: Positive


class Promotion(Section):
    """What must be seen in shadow before `mode: enforce` takes effect. Without this section there is no gate."""

    min_shadow_h: NonNegative = 24.0
    max_slo_violations: int = Field(default=0, ge=0)


class LedgerSection(Section):
    store_prompt_text: bool = False
    """Keep prompts and answers of all tenants in the ledger. Off: only tenants that agreed."""


class Spec(Section):
    mode: Mode = "observe"
    """observe: measure only. shadow: decide and record, touch nothing. enforce: act."""
    promotion: Promotion | None = None
    slo: Slo | None = None
    power: Power = Power()
    carbon: Carbon | None = None
    directives: Directives | None = None
    tenants: tuple[Tenant, ...] = Field(default=(), max_length=1000)
    rules: tuple[Rule, ...] = Field(default=(), max_length=200)
    ledger: LedgerSection = LedgerSection()


class Policy(Section):
    """A whole policy. Equal meaning gives an equal `revision`: comments, order of keys and defaults spelt out do not
    matter, but a release that changes a default changes the revision of what relies on it."""

    apiVersion: Literal["gridserve/v1"]  # noqa: N815 - the key's name in the file
    kind: Literal["Policy"]
    metadata: Metadata
    spec: Spec

    @cached_property
    def revision(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    @property
    def short_revision(self) -> str:
        return self.revision[:SHORT_REVISION]

    @cached_property
    def body_revision(self) -> str:
        """Revision of all but the mode and the gate: a policy keeps it on its way from observe to enforce."""
        plain = self.plain()
        del plain["spec"]["mode"], plain["spec"]["promotion"]
        return hashlib.sha256(canonical_json(plain).encode()).hexdigest()

    def keeps_text(self, tenant: str | None) -> bool:
        """Whether prompts and answers of a tenant may be kept in the ledger."""
        agreed = any(known.name == tenant and known.store_prompt_text for known in self.spec.tenants)
        return self.spec.ledger.store_prompt_text or agreed

    def plain(self) -> dict[str, Any]:
        """Every setting, defaults included, as JSON values."""
        return self.model_dump(mode="json")

    def canonical_json(self) -> str:
        return canonical_json(self.plain())


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
