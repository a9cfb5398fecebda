"""Whether the service is well, in one word and one line, and what every page says above its content."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dashboard.schema_state import Hold, State
from dashboard.snapshot import Snapshot
from dashboard.views.formats import duration, hour_minute, plain, seconds


class Level(StrEnum):
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True)
class Verdict:
    level: Level
    word: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Banner:
    level: Level
    title: str
    text: str


def verdict(snapshot: Snapshot) -> Verdict:
    """The worst of: API, engine, SLO, power, alarms."""
    state = snapshot.state
    if snapshot.error is not None:
        word = "Access refused" if snapshot.denied else "No contact"
        return Verdict(Level.BAD, word, (snapshot.error,))
    if state is None:
        return Verdict(Level.WARNING, "Waiting for the first answer", ())
    if not state.engine.ready:
        return Verdict(Level.BAD, "Not serving", (state.engine.reason or "the engine takes no requests",))
    reasons = [*slo_breaches(state), *(f"{alarm.source}: {alarm.text}" for alarm in state.alarms)]
    if state.power is not None:
        reasons += [
            f"{device.name}: {device.error or 'no reading'}" for device in state.power.devices if not device.fresh
        ]
    if reasons:
        return Verdict(Level.WARNING, "Serving, with warnings", tuple(dict.fromkeys(reasons)))
    return Verdict(Level.GOOD, "Healthy", ())


def slo_breaches(state: State) -> list[str]:
    latency = state.latency
    pairs = (("TTFT", latency.ttft_p99_s, latency.slo_ttft_s), ("TPOT", latency.tpot_p99_s, latency.slo_tpot_s))
    return [
        f"{name} p99 {seconds(value)} is above its SLO of {seconds(slo)}"
        for name, value, slo in pairs
        if value is not None and slo is not None and value > slo
    ]


def banners(snapshot: Snapshot) -> list[Banner]:
    """What stands on every page: no contact, a hold, the API's alarms, simulated figures are the header's."""
    found: list[Banner] = []
    if snapshot.error is not None:
        known = f" Figures below are {duration(snapshot.age_s)} old." if snapshot.state is not None else ""
        title = "The admin API refuses this token." if snapshot.denied else "No contact with the admin API."
        found.append(Banner(Level.BAD, title, snapshot.error + known))
    state = snapshot.state
    if state is not None and state.hold is not None and state.hold.released_unix_s is None:
        found.append(hold_banner(state.hold, state.now_unix_s + (snapshot.age_s or 0.0)))
    if state is not None and state.policy is not None and state.policy.alarm:
        found.append(Banner(Level.WARNING, "Policy.", state.policy.alarm))
    return found


def hold_banner(hold: Hold, now_unix_s: float) -> Banner:
    what = {
        "freeze": "Clocks are frozen where they are",
        "pin": f"Clocks are pinned to {hold.clock_mhz} MHz",
        "defaults": "Driver defaults on all devices",
    }.get(hold.mode, hold.mode)
    if hold.expires_unix_s is None:
        until = "until released"
    else:
        left = max(0.0, hold.expires_unix_s - now_unix_s)
        until = f"until {hour_minute(hold.expires_unix_s)} ({duration(left)} left)"
    by = f" by {hold.placed_by}" if hold.placed_by else ""
    return Banner(Level.WARNING, f"Hold: {what} {until}.", f"Placed{by}: {hold.reason}")


def markdown(banner: Banner) -> str:
    return f"**{plain(banner.title)}** {plain(banner.text)}"
