"""A policy file as the simulator understands it. What it has no counterpart for is named, never dropped in silence."""

from __future__ import annotations

from dataclasses import dataclass

from serving.policy.directives_section import Directives
from serving.policy.model import Policy
from serving.policy.power_section import Power
from traces.simulate_policy import (
    CarbonFollowSettings,
    DirectiveSettings,
    RowSettings,
    SimulationPolicy,
    SloSettings,
    ThrottleSettings,
)


@dataclass(frozen=True, slots=True)
class Translated:
    policy: SimulationPolicy
    slo: SloSettings
    pue: float


def translated(policy: Policy, *, power: Power | None = None, directives: bool = True) -> Translated:
    """`power`: in place of the policy's own section, such as with its rules applied. `directives`: translate them too.

    Raises `ValueError` for directives the simulator does not carry out.
    """
    spec = policy.spec
    made = _simulated(policy, power or spec.power, _directives(spec.directives) if directives else None)
    slo = SloSettings(spec.slo.ttft_p99_ms, spec.slo.tpot_p99_ms) if spec.slo is not None else SloSettings()
    return Translated(made, slo, spec.carbon.pue if spec.carbon is not None else 1.0)


def _simulated(policy: Policy, power: Power, directives: DirectiveSettings | None) -> SimulationPolicy:
    follow, throttle = power.carbon_follow, power.prefill_throttle
    return SimulationPolicy(
        name=policy.metadata.name,
        governor=power.governor,
        clock_mhz=power.static.clock_mhz if power.static is not None and power.governor == "static" else None,
        min_mhz=power.clock_mhz.min,
        max_mhz=power.clock_mhz.max,
        power_limit_w=power.power_limit_w.max,
        governor_options=_options(power),
        stability=power.stability.model_dump(),
        carbon_follow=CarbonFollowSettings(**follow.model_dump()) if follow is not None else None,
        directives=directives,
        row=_row(power),
        throttle=ThrottleSettings(**throttle.model_dump()) if throttle is not None else None,
    )


def _row(power: Power) -> RowSettings | None:
    budget = power.row_budget
    if budget is None:
        return None
    return RowSettings(
        budget_w=budget.watts,
        t1=budget.t1,
        t2=None if budget.t2 == "auto" else float(budget.t2),
        hysteresis=budget.hysteresis,
        reaction_s=budget.reaction_s,
        relax_dwell_s=budget.relax_dwell_s,
        min_history_s=budget.min_history_s,
        rule=budget.rule,
        meter_s=budget.meter_s,
    )


def _options(power: Power) -> dict[str, float]:
    if power.governor == "slo_slack":
        slack = power.slo_slack
        return {"margin": slack.margin, "guard": slack.guard, "guard_s": slack.guard_s, "learning": slack.learning}
    if power.governor != "phase_aware":
        return {}
    aware = power.phase_aware
    given = {
        "switch_latency_s": aware.switch_latency_s,
        "worth": aware.worth,
        "prefill_mhz": aware.prefill_mhz,
        "decode_mhz": aware.decode_mhz,
    }
    return {name: value for name, value in given.items() if value is not None}


def _directives(section: Directives | None) -> DirectiveSettings | None:
    if section is None or section.chosen_optimizer == "off":
        return None
    match section.chosen_optimizer:
        case "fixed":
            shares = {part.level: part.share for part in section.mix}
            return DirectiveSettings("static", mix=tuple(shares.get(level.id, 0.0) for level in section.levels))
        case "sprout":
            return DirectiveSettings("sprout", tolerance=section.tolerance)
        case "classed":
            tolerance = min(section.tolerance, 1.0 - min(section.quality_floor, 1.0))
            return DirectiveSettings("classed", tolerance=tolerance, confidence=section.confidence)
        case "quality_budget":
            target = section.budget.quality_target if section.budget is not None else section.quality_floor
            return DirectiveSettings("budgeted", target=target, confidence=section.confidence)
    raise ValueError("directives: carbon_budget cannot be simulated yet; use quality_budget, classed or sprout")
