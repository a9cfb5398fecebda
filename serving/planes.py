"""From a policy to the planes that carry it out: the one place that knows both sides' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.model_config import ModelConfig
from power.audit import AuditRecord
from power.client import ActuatorPort, PowerdClient
from power.controller import Mode
from power.device import PowerDevice
from power.governors import (
    Bounds,
    CarbonFollow,
    DefaultGovernor,
    Governor,
    GridSignal,
    PhaseAwareGovernor,
    PrefillThrottle,
    RowBudget,
    RowTrim,
    Slo,
    SloSlackGovernor,
    Stability,
    StaticGovernor,
)
from power.model_shape import ModelShape
from power.open import open_devices
from power.plane import PowerPlane
from power.profile import load_engine, load_profile, profile_names
from power.row import RowControl
from power.simulated import SimulatedDevice
from power.throttle import EngineThrottle
from power.twin import Twin
from serving.policy.effective import Effective
from serving.policy.model import Policy
from serving.policy.power_section import ClockBand, Power, PowerLimit


def shape_of(config: ModelConfig, name: str, weight_bytes: float) -> ModelShape:
    """A served model as the twin sees it. `weight_bytes`: of one weight as stored."""
    return ModelShape(
        name,
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        weight_bytes=weight_bytes,
    )


def build_power(
    device: str,
    shape: ModelShape,
    policy: Policy | None,
    *,
    grid: Callable[[], GridSignal | None] = lambda: None,
    max_running: int,
    max_step_tokens: int,
    powerd_socket: Path | None = None,
    on_audit: Callable[[AuditRecord], None] | None = None,
    on_alarm: Callable[[str], None] | None = None,
    mode: Mode | None = None,
    gpus: int = 1,
) -> PowerPlane | None:
    """The power plane on the named device, under the policy; None where nothing can be measured (`auto` only).

    `device`: see `power.open.open_devices`; `gpus` of them serve together. `mode`: instead of the policy's own, where
    it may do less than it asks for. Raises `ValueError` or `power.device.DeviceError`.
    """
    devices = open_devices(device, shape, count=gpus)
    if not devices:
        return None
    spec = policy.spec if policy is not None else None
    power = spec.power if spec is not None else Power()
    follow = steered_governor(power, twin_of(devices[0], shape))
    actuator: ActuatorPort | None = PowerdClient(powerd_socket) if powerd_socket is not None else None
    plane = PowerPlane(
        devices,
        shape=shape,
        governor=follow,
        mode=mode or (Mode(spec.mode) if spec is not None else Mode.OBSERVE),
        actuator=actuator,
        slo=slo_of(policy),
        grid=grid,
        row=row_of(power, follow),
        throttle=EngineThrottle(throttle_of(power)),
        # The engine is slowed by its own executor, so its steps already take as long as the simulated clock says.
        pace=False,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        policy_revision=policy.short_revision if policy is not None else "",
        on_audit=on_audit,
        on_alarm=on_alarm,
    )
    plane.controller.set_pools(power.row_budget.low_priority_gpus if power.row_budget is not None else ())
    return plane


def twin_of(device: PowerDevice, shape: ModelShape) -> Twin:
    """What predicts steps and power of a device: its own twin, or that of its product."""
    return device.twin if isinstance(device, SimulatedDevice) else _twin_for(device.info.name, shape)


def slo_of(policy: Policy | None) -> Slo | None:
    slo = policy.spec.slo if policy is not None else None
    return Slo(slo.ttft_p99_ms / 1e3, slo.tpot_p99_ms / 1e3) if slo is not None else None


def row_of(power: Power, governor: Governor) -> RowControl | None:
    """The row budget's control; `governor` shrinks the budget on a dirty grid where it follows the grid."""
    row = power.row_budget
    if row is None:
        return None
    rule = RowTrim if row.rule == "proportional" else RowBudget
    return RowControl(
        row.watts,
        rule(t1=row.t1, hysteresis=row.hysteresis, reaction_s=row.reaction_s, relax_dwell_s=row.relax_dwell_s),
        t2=None if row.t2 == "auto" else row.t2,
        carbon=governor if isinstance(governor, CarbonFollow) else None,
        min_history_s=row.min_history_s,
        meter_s=row.meter_s,
    )


def throttle_of(power: Power) -> PrefillThrottle | None:
    """What may lower the engine's token budget; the clock band's lower end is the clocks' floor."""
    section = power.prefill_throttle
    return PrefillThrottle(**section.model_dump(), floor_mhz=power.clock_mhz.min) if section is not None else None


def steered_governor(power: Power, twin: Twin) -> Governor:
    """The policy's governor, narrowed by the grid where the policy says so."""
    return _carbon_follow(power, governor_of(power, twin))


def power_in_force(power: Power, now: Effective) -> Power:
    """The power section with what the policy's rules say at a moment."""
    row = power.row_budget
    if row is not None and now.row_budget_w is not None:
        row = row.model_copy(update={"watts": now.row_budget_w})
    return power.model_copy(
        update={
            "governor": now.governor,
            "clock_mhz": ClockBand(min=now.clock_min_mhz, max=now.clock_max_mhz),
            "power_limit_w": PowerLimit(max=now.power_limit_w),
            "row_budget": row,
        }
    )


def governor_of(power: Power, twin: Twin) -> Governor:
    bounds = Bounds(power.clock_mhz.min, power.clock_mhz.max, power.power_limit_w.max)
    stability = Stability(**power.stability.model_dump())
    match power.governor:
        case "static":
            if power.static is None:
                raise ValueError("governor static needs spec.power.static.clock_mhz")
            return StaticGovernor(power.static.clock_mhz, bounds)
        case "slo_slack":
            slack = power.slo_slack
            given = slack.model_dump(exclude={"trusted_min", "trusted_max"})
            return SloSlackGovernor(twin, bounds, stability, trusted=(slack.trusted_min, slack.trusted_max), **given)
        case "phase_aware":
            phases = power.phase_aware
            return PhaseAwareGovernor(
                twin,
                prefill_mhz=phases.prefill_mhz,
                decode_mhz=phases.decode_mhz,
                switch_latency_s=phases.switch_latency_s,
                worth=phases.worth,
                bounds=bounds,
                stability=stability,
            )
        case _:
            return DefaultGovernor(bounds)


def _carbon_follow(power: Power, inner: Governor) -> Governor:
    follow = power.carbon_follow
    return inner if follow is None else CarbonFollow(inner, follow.floor_fraction, follow.budget_floor, follow.steps)


def _twin_for(product: str, shape: ModelShape) -> Twin:
    """The twin of a real card by its product name, the H100's where there is none; governors correct it online."""
    known = [load_profile(name) for name in profile_names()]
    profile = next((profile for profile in known if profile.product == product), load_profile("h100-sxm"))
    return Twin(profile, load_engine("vllm-0.11"), shape)
