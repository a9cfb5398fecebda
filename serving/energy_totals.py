"""Joules and grams charged to requests since the start, by what they were for. The counters behind the metrics."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field

from serving.openai_responses import EnergyUsage
from serving.request_log import Finished

NOBODY = ""
OTHERS = "(others)"
MAX_TENANTS = 100
JOULE_BUCKETS = tuple(float(2**power) for power in range(15))


@dataclass(slots=True)
class EnergyTotals:
    """`joules` by (phase, directive, tenant), `grams` by (zone, directive, tenant), `requests` by (directive, reason).

    Phases: prefill, decode, idle. Tenants beyond the hundredth are counted as `(others)`, so that the series stay
    bounded. `unknown_requests`: without a figure of joules.
    """

    joules: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))
    grams: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))
    directives: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    histogram: list[int] = field(default_factory=lambda: [0] * (len(JOULE_BUCKETS) + 1))
    histogram_sum_j: float = 0.0
    unknown_requests: int = 0
    _tenants: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def grams_total(self) -> float:
        return sum(self.grams.values())

    def settled(self, finished: Finished, usage: EnergyUsage | None) -> None:
        """Count a request whose energy is known as well as it will be."""
        decision = finished.decision
        directive = decision.level_id if decision is not None else "none"
        tenant = self._tenant(finished.tenant)
        with self._lock:
            if decision is not None:
                self.directives[directive, str(decision.reason)] += 1
            if usage is None or usage.energy_joules is None:
                self.unknown_requests += 1
                return
            for phase, value in (
                ("prefill", usage.prefill_joules),
                ("decode", usage.decode_joules),
                ("idle", usage.idle_joules),
            ):
                if value is not None:
                    self.joules[phase, directive, tenant] += value
            if usage.operational_grams is not None:
                grams = usage.operational_grams + (usage.embodied_grams or 0.0)
                self.grams[usage.zone or "unknown", directive, tenant] += grams
            self._observe(usage.energy_joules)

    def _observe(self, joules: float) -> None:
        place = next((n for n, bound in enumerate(JOULE_BUCKETS) if joules <= bound), len(JOULE_BUCKETS))
        self.histogram[place] += 1
        self.histogram_sum_j += joules

    def _tenant(self, name: str | None) -> str:
        if name is None:
            return NOBODY
        if name not in self._tenants and len(self._tenants) >= MAX_TENANTS:
            return OTHERS
        self._tenants.add(name)
        return name
