"""Where a figure comes from, how old it is, and in which of five states it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dashboard.schema_state import DeviceState, Intensity, State
from dashboard.snapshot import Snapshot
from dashboard.views.formats import duration

STALE_AFTER_S = 5.0


class DataState(StrEnum):
    LIVE = "live"
    STALE = "stale"
    ESTIMATED = "estimated"
    SIMULATED = "simulated"
    MISSING = "missing"


@dataclass(frozen=True)
class Origin:
    """`reason`: why the figure is stale or missing."""

    state: DataState
    source: str
    age_s: float | None = None
    reason: str | None = None

    @property
    def line(self) -> str:
        """State, source and age as one plain text, for charts."""
        return f"{self.state.value} · {self.text}"

    @property
    def text(self) -> str:
        parts = [self.source]
        if self.state is not DataState.MISSING and self.age_s is not None:
            parts.append("now" if self.age_s < 2 else f"{duration(self.age_s)} old")
        if self.reason:
            parts.append(self.reason)
        return " · ".join(part for part in parts if part)


def weakest(*origins: Origin) -> Origin:
    """What a figure made of several is: no better than the worst of them."""
    order = (DataState.LIVE, DataState.ESTIMATED, DataState.SIMULATED, DataState.STALE, DataState.MISSING)
    return max(origins, key=lambda each: order.index(each.state))


def missing(source: str, reason: str) -> Origin:
    return Origin(DataState.MISSING, source, None, reason)


def of_method(method: str | None, source: str, age_s: float | None) -> Origin:
    """`measured` counts as live."""
    states = {"estimated": DataState.ESTIMATED, "simulated": DataState.SIMULATED}
    return Origin(states.get(method or "", DataState.LIVE), source, age_s)


def aged(origin: Origin, snapshot: Snapshot) -> Origin:
    """`origin` as of now: where the API stopped answering, everything it said grows stale."""
    if snapshot.error is None or origin.state is DataState.MISSING:
        return origin
    age_s = (origin.age_s or 0.0) + (snapshot.age_s or 0.0)
    return Origin(DataState.STALE, origin.source, age_s, "the admin API does not answer")


def of_power(state: State) -> Origin:
    """Of the power of all devices together: as good as the worst of them."""
    if state.power is None:
        return missing("no power device", "the server measures no power; start it with --device")
    devices = state.power.devices
    if not devices:
        return missing("no power device", "; ".join(state.power.notes) or "none was found")
    stale = [device for device in devices if not device.fresh]
    if stale and len(stale) == len(devices):
        return missing(stale[0].source, stale[0].error or "the last reading is too old")
    if stale:
        return Origin(DataState.STALE, stale[0].source, None, stale[0].error or f"{len(stale)} devices are silent")
    return of_method(state.power.totals.method, sources(devices), 0.0)


def sources(devices: list[DeviceState]) -> str:
    return ", ".join(sorted({device.source for device in devices}))


def of_intensity(intensity: Intensity | None) -> Origin:
    """`zone_mean` is a yearly figure in place of a live one: estimated, as is what the source itself estimates. A
    replayed series is of another time, so simulated."""
    if intensity is None:
        return missing("no feed", "the policy names no carbon zone")
    source = source_name(intensity.source)
    if intensity.g_per_kwh is None or intensity.tier == "unknown":
        return missing(source, intensity.reason or "no trusted value")
    if intensity.tier == "stale":
        return Origin(DataState.STALE, source, intensity.age_s, intensity.reason)
    if intensity.tier == "zone_mean":
        return Origin(DataState.ESTIMATED, source, None, intensity.reason or "mean of the zone")
    if intensity.kind == "replayed":
        return Origin(DataState.SIMULATED, f"replay of {source}", None)
    state = DataState.LIVE if intensity.kind in (None, "measured") else DataState.ESTIMATED
    return Origin(state, source, intensity.age_s)


def source_name(source: str | None) -> str:
    """`file:intensity_synthetic_wind.csv` as `synthetic wind`: a tile is narrow."""
    name = source or "no source"
    if name.startswith("file:"):
        name = name.removeprefix("file:").rsplit("/", 1)[-1].removesuffix(".csv")
        name = name.removeprefix("intensity_").replace("_", " ")
    return name
