"""What the admin API answers from, in one place."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from serving.admin_auth import AdminAccess
from serving.control_plane import ControlPlane
from serving.control_sampler import Sampler
from serving.energy_totals import EnergyTotals
from serving.holds import Holds
from serving.jobs import Jobs
from serving.latency_window import LatencyWindow
from serving.ledger_access import Ledger
from serving.prompt_keeper import PromptKeeper
from serving.quality_evaluator import QualityEvaluator
from serving.service import InferenceService
from serving.tenants_budgets import BudgetBook
from serving.tenants_keys import KeyRing

if TYPE_CHECKING:
    from serving.tracing_export import Exports


@dataclass(frozen=True, slots=True)
class AdminContext:
    """`override`: what was changed of the policy file at start, in words. `exports`: of traces, where there are any."""

    access: AdminAccess
    control: ControlPlane
    service: InferenceService
    sampler: Sampler
    holds: Holds
    latency: LatencyWindow
    totals: EnergyTotals
    budgets: BudgetBook
    jobs: Jobs
    evaluator: QualityEvaluator
    keeper: PromptKeeper | None = None
    keys: KeyRing | None = None
    exports: Exports | None = None
    override: str | None = None
    version: str = field(default_factory=lambda: metadata.version("gridserve"))
    started_unix_s: float = field(default_factory=time.time)

    @property
    def ledger(self) -> Ledger | None:
        return self.control.ledger
