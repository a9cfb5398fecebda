"""One record for each action intended, applied or failed: what was known, asked, read back, and why."""

from __future__ import annotations

import msgspec

from power.governors import Observation


class AuditRecord(msgspec.Struct, frozen=True):
    """`outcome` is the actuator's, or `shadow` where nothing was to be applied. `time_s` is monotonic, `unix_s` is
    wall time for people."""

    time_s: float
    unix_s: float
    uuid: str
    governor: str
    mode: str
    action: str
    asked: float | None
    read_back: float | None
    outcome: str
    latency_s: float
    reason: str
    policy_revision: str
    inputs: dict[str, float | int | str | None]


def inputs_of(observation: Observation) -> dict[str, float | int | str | None]:
    """The part of an observation worth keeping."""
    engine, reading, grid, slo = observation.engine, observation.reading, observation.grid, observation.slo
    found: dict[str, float | int | str | None] = {
        "current_mhz": observation.current.sm_clock_mhz,
        "current_limit_w": observation.current.power_limit_w,
        "ceiling_mhz": observation.clock_ceiling_mhz,
        "correction": round(observation.memory.step_correction, 4),
    }
    if reading is not None:
        found |= {"power_w": reading.power_w, "sm_clock_mhz": reading.sm_clock_mhz}
    if engine is not None:
        found |= {
            "running": engine.running,
            "waiting_tokens": engine.waiting_tokens,
            "oldest_wait_s": engine.oldest_wait_s,
            "ttft_p99_s": engine.ttft_p99_s,
            "tpot_p99_s": engine.tpot_p99_s,
            "step_s": engine.step_s,
            "phase": engine.phase.value,
        }
    if slo is not None:
        found |= {"slo_ttft_s": slo.ttft_s, "slo_tpot_s": slo.tpot_s}
    if grid is not None:
        found |= {"grid_g_per_kwh": grid.intensity_g_per_kwh}
    return found
