"""GPUs and power: one row a device, what may be done with it, and where the joules went."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dashboard.schema_state import DeviceState, PowerState, State
from dashboard.views.charts import Line, Panel
from dashboard.views.formats import UNKNOWN, joules, number, share
from dashboard.views.origin import Origin, missing, of_method, of_power, sources
from dashboard.views.overview import Tile, cap_w, total_power_w
from dashboard.views.palette import Palette

CONTROL = frozenset({"lock_clocks", "power_limit", "set_power_limit", "clocks", "limit"})


def rows(power: PowerState) -> list[dict[str, Any]]:
    return [_row(device) for device in power.devices]


def _row(device: DeviceState) -> dict[str, Any]:
    state = "missing" if not device.fresh else {"measured": "live"}.get(device.method, device.method)
    return {
        "Device": device.name,
        "State": state,
        "Power": number(device.power_w, "W"),
        "Limit": number(device.power_limit_w, "W"),
        "SM clock": number(device.sm_clock_mhz, "MHz", 3),
        "Locked to": number(device.asked_clock_mhz, "MHz", 3),
        "Temp.": number(device.temperature_c, "°C", 2),
        "Use": share(device.utilisation),
        "Slowed by": UNKNOWN if device.clock_reasons is None else ", ".join(device.clock_reasons) or "nothing",
        "Source": f"{device.source} ({device.scope})",
        "Identity": device.uuid,
        "Governor": device.governor_reason,
    }


def may_act(device: DeviceState) -> bool:
    return any("lock" in capability or "clock" in capability for capability in device.capabilities)


def permission_notes(power: PowerState) -> list[str]:
    """What is wrong or cannot be done, and why: `observe-only: clock lock not permitted`."""
    found = []
    for device in power.devices:
        if device.error:
            found.append(f"{device.uuid}: {device.error}")
        if not may_act(device):
            found += [f"{device.uuid}: {note}" for note in device.notes]
            found.append(f"{device.uuid}: observe-only, this process may not set clocks or limits")
    return list(dict.fromkeys(found))


def remarks(power: PowerState) -> list[str]:
    """What the devices say about themselves, such as what a simulation was fitted on; each once."""
    of_devices = [note for device in power.devices if may_act(device) for note in device.notes]
    return list(dict.fromkeys([*power.notes, *of_devices]))


def tiles(state: State) -> list[Tile]:
    power = state.power
    if power is None:
        return []
    origin = of_power(state)
    drawn, cap = total_power_w(state), cap_w(state)
    of_totals = of_method(power.totals.method, sources(power.devices), 0.0)
    done = power.actuations
    failed = sum(count for name, count in done.items() if name not in ("applied", "unchanged"))
    return [
        Tile("Power", number(drawn, "W"), f"cap {number(cap, 'W')}", origin, "All devices together."),
        Tile(
            "Idle power", number(power.idle_w, "W"), power.idle_source or "not known", origin, "All devices, no work."
        ),
        Tile(
            "Energy", joules(power.totals.counter_j), "since the server started", of_totals, "What the counters moved."
        ),
        Tile(
            "Attribution gap",
            UNKNOWN if power.totals.counter_j <= 0 else share(power.totals.unattributed_j / power.totals.counter_j, 2),
            "of joules since start",
            of_totals if power.totals.counter_j > 0 else missing(of_totals.source, "the counter has not moved"),
            "Joules of the counters that neither a request nor idling explains.",
        ),
        Tile(
            "Actuations",
            str(sum(done.values())),
            ", ".join(f"{count} {name}" for name, count in sorted(done.items()) if count) or "none yet",
            origin,
            "Orders to devices since start, by outcome.",
            bad=failed > 0,
        ),
        Tile(
            "Lost samples",
            str(power.lost_samples),
            f"{power.controller_stalls} controller stalls",
            origin,
            "Readings that came too late or not at all.",
            bad=power.lost_samples > 0 or power.controller_stalls > 0,
        ),
    ]


def energy_parts(power: PowerState) -> list[tuple[str, float]]:
    """The five parts of the counter, joules; they add up to it."""
    totals = power.totals
    return [
        ("prefill", totals.prefill_j),
        ("decode", totals.decode_j),
        ("idle share of requests", totals.request_idle_j),
        ("idle, nobody's", totals.idle_j),
        ("unattributed", totals.unattributed_j),
    ]


def energy_spec(power: PowerState, colours: Palette) -> dict[str, Any]:
    """One bar, split."""
    parts = energy_parts(power)
    total = sum(value for _, value in parts)
    series = [
        {
            "type": "bar",
            "stack": "energy",
            "name": f"{name} {share(value / total, 1) if total else UNKNOWN}",
            "data": [round(value, 1)],
            "itemStyle": {"color": colour},
            "barWidth": 26,
        }
        for (name, value), colour in zip(parts, (colours.sky, colours.blue, colours.green, colours.grey, colours.red))
    ]
    return {
        "animation": False,
        "grid": {"left": 8, "right": 8, "top": 34, "height": 30},
        "legend": {"top": 0, "left": 0, "textStyle": {"color": colours.text}, "icon": "rect"},
        "tooltip": {"trigger": "item", "valueFormatter": "%,.0f J"},
        "xAxis": {"type": "value", "show": False, "max": total or 1},
        "yAxis": {"type": "category", "data": [""], "show": False},
        "series": series,
    }


def panels(frame: pd.DataFrame, gpu: str, origin: Origin, colours: Palette) -> list[Panel]:
    def line(label: str, metric: str, colour: str, **more: Any) -> list[Line]:
        name = f'{metric}{{gpu="{gpu}"}}'
        return [Line(label, colour, name, **more)] if name in frame.columns else []

    def panel(title: str, unit: str, lines: list[Line], from_zero: bool = True) -> Panel:
        note = None if lines else "the device does not report it"
        return Panel(title, unit, lines, from_zero=from_zero, note=note, origin=origin)

    return [
        panel(
            "Power",
            "W",
            line("drawn", "power_w", colours.blue, fill=True)
            + line("limit", "power_limit_w", colours.red, step=True, dashed=True),
        ),
        panel(
            "SM clock",
            "MHz",
            line("clock", "sm_clock_mhz", colours.blue)
            + line("locked to", "asked_clock_mhz", colours.orange, step=True, dashed=True, width=2.2),
            from_zero=False,
        ),
        panel("Temperature", "°C", line("temperature", "temperature_c", colours.red), from_zero=False),
    ]


def gpus(frame: pd.DataFrame) -> list[str]:
    """Labels of devices that have series."""
    return sorted({name.split('"')[1] for name in frame.columns if name.startswith("power_w{gpu=")})
