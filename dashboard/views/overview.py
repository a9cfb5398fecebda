"""The overview: six tiles, the attribution gap, and what the panels below them draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dashboard.schema_carbon import CarbonState
from dashboard.schema_records import AuditRow
from dashboard.schema_state import State
from dashboard.snapshot import Snapshot
from dashboard.views.charts import Band, Line, Mark, Panel
from dashboard.views.formats import UNKNOWN, count, number, plain, seconds, share
from dashboard.views.origin import DataState, Origin, missing, of_intensity, of_method, of_power, weakest
from dashboard.views.palette import Palette

MAX_DEVICES_DRAWN = 4
PANELS = 4
MAX_MARKS = 40


@dataclass(frozen=True)
class Tile:
    """`value` is a dash where unknown. `against`: what it is compared with."""

    label: str
    value: str
    against: str
    origin: Origin
    help: str
    bad: bool = False


def tiles(snapshot: Snapshot) -> list[Tile]:
    """Six, always; before the first answer all six are missing."""
    state = snapshot.state
    if state is None:
        reason = snapshot.error or "no answer yet"
        labels = ("Energy per token", "Power", "CO2e per 1k tok", "TTFT p95", "Waiting", "Policy")
        return [Tile(label, UNKNOWN, "", missing("admin API", reason), "") for label in labels]
    return [_energy(state), _power(state), _carbon(state), _ttft(state), _waiting(state), _policy(state)]


def _energy(state: State) -> Tile:
    origin = of_power(state)
    value = state.latency.joules_per_token
    if value is None and origin.state is not DataState.MISSING:
        origin = missing(origin.source, f"no token in the last {state.latency.window_s:.0f} s")
    text = "Device energy over output tokens of requests finished in the last minute, idle share included."
    return Tile("Energy per token", number(value, "J"), f"over {state.latency.window_s:.0f} s", origin, text)


def total_power_w(state: State) -> float | None:
    """None as soon as one device is silent: a part is not the whole."""
    if state.power is None or not state.power.devices:
        return None
    watts = [device.power_w for device in state.power.devices]
    return None if any(value is None for value in watts) else sum(value for value in watts if value is not None)


def cap_w(state: State) -> float | None:
    if state.power is None or not state.power.devices:
        return None
    limits = [device.power_limit_w for device in state.power.devices]
    return None if any(value is None for value in limits) else sum(value for value in limits if value is not None)


def _power(state: State) -> Tile:
    drawn, cap = total_power_w(state), cap_w(state)
    against = f"of {number(cap, 'W')} cap" if cap is not None else "no cap known"
    if drawn is not None and cap:
        against += f" ({share(drawn / cap)})"
    over = drawn is not None and cap is not None and drawn > 1.02 * cap
    return Tile(
        "Power", number(drawn, "W"), against, of_power(state), "All devices together, against their limits.", over
    )


def _carbon(state: State) -> Tile:
    value = state.latency.grams_per_1k_tokens
    intensity = of_intensity(state.intensity)
    power = of_power(state)
    origin = weakest(power, intensity)
    if intensity.state is not DataState.MISSING and power.state is not DataState.MISSING:
        origin = Origin(origin.state, f"{power.source} × {intensity.source}", intensity.age_s, origin.reason)
    if value is None and origin.state is not DataState.MISSING:
        origin = missing(origin.source, f"no token in the last {state.latency.window_s:.0f} s")
    grid = state.intensity.g_per_kwh if state.intensity else None
    against = f"grid {number(grid, 'g/kWh')}" if grid is not None else "grid unknown"
    text = "Operational grams CO2e (energy × PUE × intensity) and the embodied share where the policy gives one."
    return Tile("CO2e per 1k tok", number(value, "g"), against, origin, text)


def _ttft(state: State) -> Tile:
    """p95 at a glance; the SLO of a policy is one of p99, so p99 stands beside it and decides whether it is held."""
    latency = state.latency
    tail, slo = latency.ttft_p99_s, latency.slo_ttft_s
    limit = "no SLO set" if slo is None else "SLO " + seconds(slo).replace(".00 ", " ")
    against = f"p99 {seconds(tail)}, {limit}"
    text = (
        "Time to the first token, 95th percentile of requests finished in the last minute. The policy's SLO is for the "
        "99th: the tile warns when that one is beyond it."
    )
    bad = tail is not None and slo is not None and tail > slo
    return Tile("TTFT p95", seconds(latency.ttft_p95_s), against, of_latency(state), text, bad)


def _waiting(state: State) -> Tile:
    engine = state.engine
    origin = Origin(DataState.LIVE, "engine", 0.0)
    if engine.waiting is None:
        origin = missing("engine", engine.reason or "the engine reports nothing")
    running = "running unknown" if engine.running is None else f"{engine.running} of {engine.max_num_seqs} running"
    return Tile("Waiting", count(engine.waiting), running, origin, "Requests queued and not yet in a batch.")


def _policy(state: State) -> Tile:
    policy = state.policy
    if policy is None:
        return Tile("Policy", "none", "nothing is controlled", missing("server", "started without --policy"), "")
    name = policy.name if policy.mode == policy.asked_mode else f"{policy.name}, asked for {policy.asked_mode}"
    origin = Origin(DataState.LIVE, f"revision {policy.revision[:8]}", 0.0, policy.held_back)
    return Tile(
        "Policy", policy.mode, name, origin, "The policy in force and what it may do: observe, shadow, enforce."
    )


@dataclass(frozen=True)
class Gap:
    """Joules the counter moved and nobody is charged for."""

    share: float | None
    text: str
    origin: Origin


def attribution_gap(state: State) -> Gap:
    if state.power is None:
        return Gap(None, "Attribution gap unknown", of_power(state))
    totals = state.power.totals
    origin = of_method(totals.method, sources_of(state), 0.0)
    if totals.counter_j <= 0:
        return Gap(None, "Attribution gap unknown", missing(origin.source, "the counter has not moved"))
    part = totals.unattributed_j / totals.counter_j
    idle = totals.idle_j / totals.counter_j
    text = f"Attribution gap {share(part, 2)} of the joules since start; {share(idle, 1)} were idle, charged to nobody"
    return Gap(part, text, origin)


def sources_of(state: State) -> str:
    devices = state.power.devices if state.power else []
    return ", ".join(sorted({device.source for device in devices}))


def why(state: State, carbon: CarbonState | None) -> str:
    """Which policy acts and why, in one Markdown line."""
    parts = []
    if state.policy is not None:
        does = {"enforce": "acts", "shadow": "decides without acting", "observe": "only measures"}
        parts.append(f"**{plain(state.policy.name)}** {does.get(state.policy.mode, state.policy.mode)}")
    if state.power is not None:
        reasons = sorted({device.governor_reason for device in state.power.devices if device.governor_reason})
        parts.append(f"governor {plain(state.power.governor)}" + (f": {plain('; '.join(reasons))}" if reasons else ""))
    if carbon is not None and carbon.plan is not None and carbon.plan.saving is not None:
        verb = "directives save" if carbon.enforce else "directives would save"
        parts.append(
            f"{verb} {share(carbon.plan.saving, 1)} of grams against every answer at L0 (expected by the plan)"
        )
    return " · ".join(parts)


def marks(rows: Sequence[AuditRow], since_ms: float) -> list[Mark]:
    """Actuations and operators' acts inside the window; the newest `MAX_MARKS`."""
    kinds = {"actuation", "restore", "hold", "release", "policy"}
    found = [row for row in rows if row.kind in kinds and row.at_unix_s * 1000 >= since_ms]
    words = {"hold": "hold", "release": "release", "policy": "policy"}
    return [Mark(row.at_unix_s * 1000, words.get(row.kind, "")) for row in found[:MAX_MARKS]]


def panels(
    frame: pd.DataFrame,
    state: State,
    carbon: CarbonState | None,
    happened: Sequence[Mark],
    colours: Palette,
) -> list[Panel]:
    """Power and cap; clock and what was asked; intensity, forecast and band; latency and SLO."""
    return [
        _power_panel(frame, state, colours),
        _clock_panel(frame, state, happened, colours),
        _intensity_panel(frame, state, carbon, colours),
        _latency_panel(frame, state, colours),
    ]


def with_total_limit(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `limit_total_w`: the sum over devices where all are known."""
    columns = [name for name in frame.columns if name.startswith("power_limit_w{")]
    return frame.assign(limit_total_w=frame[columns].sum(axis=1, skipna=False)) if columns else frame


def per_device(frame: pd.DataFrame, metric: str) -> list[str]:
    return [name for name in frame.columns if name.startswith(metric + "{")]


def gpu_of(column: str) -> str:
    return column.split('"')[1] if '"' in column else ""


def _power_panel(frame: pd.DataFrame, state: State, colours: Palette) -> Panel:
    lines = [Line("drawn", colours.blue, "power_w", fill=True)]
    if "limit_total_w" in frame.columns:
        lines.append(Line("cap", colours.red, "limit_total_w", step=True, dashed=True))
    origin = of_power(state)
    note = None if "power_w" in frame.columns else origin.text
    return Panel("Power", "W", lines if note is None else (), note=note, origin=origin)


def _clock_panel(frame: pd.DataFrame, state: State, happened: Sequence[Mark], colours: Palette) -> Panel:
    clocks = per_device(frame, "sm_clock_mhz")[:MAX_DEVICES_DRAWN]
    asked = per_device(frame, "asked_clock_mhz")[:1]
    several = len(clocks) > 1
    lines = [
        Line(f"SM clock {gpu_of(name)}" if several else "SM clock", colour, name)
        for name, colour in zip(clocks, (colours.blue, colours.sky, colours.green, colours.grey))
    ]
    lines += [Line("locked to", colours.orange, name, step=True, dashed=True, width=2.2) for name in asked]
    note = None
    if not clocks:
        note = "no clock: " + (of_power(state).reason or "the device reports none")
    return Panel("SM clock", "MHz", lines, marks=happened, note=note, from_zero=False, origin=of_power(state))


def _intensity_panel(frame: pd.DataFrame, state: State, carbon: CarbonState | None, colours: Palette) -> Panel:
    lines = [Line("intensity", colours.green, "intensity_g_per_kwh", step=True, width=2)]
    band, note = None, None
    forecast = carbon.forecast if carbon else None
    if forecast is not None and forecast.points:
        last = forecast.points[-1]
        points = [(p.start_unix_s * 1000, p.g_per_kwh) for p in forecast.points]
        lines.append(
            Line(
                "forecast",
                colours.orange,
                points=[*points, (last.end_unix_s * 1000, last.g_per_kwh)],
                step=True,
                dashed=True,
            )
        )
        lines += plan_line(carbon, colours)
        band = forecast_band(carbon, colours)
    if "intensity_g_per_kwh" not in frame.columns and forecast is None:
        note, lines = "no intensity: the policy names no carbon zone, or no feed answered", []
    return Panel("Carbon intensity", "g/kWh", lines, band=band, note=note, origin=of_intensity(state.intensity))


def plan_line(carbon: CarbonState | None, colours: Palette) -> list[Line]:
    """The forecast less what directives are planned to save of it: the gap between both lines is the saving."""
    ahead = carbon.plan.ahead if carbon is not None and carbon.plan is not None else []
    if not ahead:
        return []
    points = [(hour.start_unix_s * 1000, hour.g_per_kwh * (1.0 - hour.saving)) for hour in ahead]
    end = (points[-1][0] + 3_600_000, points[-1][1])
    return [Line("plan", colours.blue, points=[*points, end], step=True)]


def forecast_band(carbon: CarbonState | None, colours: Palette) -> Band | None:
    """p10 to p90 where every point has both."""
    points = carbon.forecast.points if carbon and carbon.forecast else []
    low, high = [], []
    for point in points:
        if point.low_g_per_kwh is None or point.high_g_per_kwh is None:
            return None
        low.append((point.start_unix_s * 1000, point.low_g_per_kwh))
        high.append((point.start_unix_s * 1000, point.high_g_per_kwh))
    if not low:
        return None
    end = points[-1].end_unix_s * 1000
    return Band("p10–p90", colours.orange, [*low, (end, low[-1][1])], [*high, (end, high[-1][1])])


def _latency_panel(frame: pd.DataFrame, state: State, colours: Palette) -> Panel:
    percentiles = (("p95", colours.purple, "ttft_p95_s"), ("p99", colours.grey, "ttft_p99_s"))
    lines = [Line(name, colour, column) for name, colour, column in percentiles if is_known(frame, column)]
    slo = state.latency.slo_ttft_s
    note = None if lines else "no request finished in this window"
    limit = None if slo is None else ("SLO of p99", slo)
    return Panel("TTFT", "s", lines, limit=limit, note=note, origin=of_latency(state))


def is_known(frame: pd.DataFrame, column: str) -> bool:
    return column in frame.columns and not np.isnan(frame[column].to_numpy()).all()


def of_latency(state: State) -> Origin:
    """Of the percentiles of requests that finished in the last window."""
    latency = state.latency
    if latency.requests == 0:
        return missing("engine", f"no request in the last {latency.window_s:.0f} s")
    plural = "" if latency.requests == 1 else "s"
    return Origin(DataState.LIVE, f"{latency.requests} request{plural}", 0.0)
