"""Governors: pure functions of an observation that choose clocks, limits and admission."""

from power.governors.base import (
    DRIVER_DEFAULT,
    Decision,
    EngineView,
    Governor,
    GridSignal,
    Memory,
    Observation,
    Phase,
    Setpoint,
    Slo,
)
from power.governors.carbon_follow import CarbonFollow
from power.governors.phase_aware import PhaseAwareGovernor
from power.governors.prefill_throttle import PrefillThrottle, ThrottleDecision, ThrottleMemory
from power.governors.row_budget import Pool, RowBudget, RowDecision, RowMemory, RowObservation, RowState
from power.governors.row_trim import RowTrim
from power.governors.simple import DefaultGovernor, StaticGovernor
from power.governors.slo_slack import SloSlackGovernor
from power.governors.stability import Bounds, Stability

__all__ = [
    "DRIVER_DEFAULT",
    "Bounds",
    "CarbonFollow",
    "Decision",
    "DefaultGovernor",
    "EngineView",
    "Governor",
    "GridSignal",
    "Memory",
    "Observation",
    "Phase",
    "PhaseAwareGovernor",
    "Pool",
    "PrefillThrottle",
    "RowBudget",
    "RowDecision",
    "RowMemory",
    "RowObservation",
    "RowState",
    "RowTrim",
    "Setpoint",
    "Slo",
    "SloSlackGovernor",
    "Stability",
    "StaticGovernor",
    "ThrottleDecision",
    "ThrottleMemory",
]
