"""Holds: what an operator froze, pinned or gave back to the driver, why and until when."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.schema_policy import ActuationResult
from dashboard.schema_state import DeviceState, Hold
from dashboard.views.formats import UNKNOWN, clock, number, seconds

DURATIONS = {"15 min": 900.0, "1 h": 3600.0, "4 h": 14400.0, "12 h": 43200.0, "24 h": 86400.0}
MODES = {
    "freeze": "Freeze clocks where they are",
    "pin": "Pin one clock",
    "defaults": "Driver defaults",
}


def rows(holds: Sequence[Hold]) -> list[dict[str, str]]:
    return [
        {
            "Hold": hold.hold_id or UNKNOWN,
            "What": MODES.get(hold.mode, hold.mode) + (f": {hold.clock_mhz} MHz" if hold.clock_mhz else ""),
            "Reason": hold.reason,
            "By": hold.placed_by or UNKNOWN,
            "Placed (UTC)": clock(hold.placed_unix_s),
            "Until (UTC)": "until released" if hold.expires_unix_s is None else clock(hold.expires_unix_s),
        }
        for hold in holds
    ]


def result_rows(results: Sequence[ActuationResult]) -> list[dict[str, str]]:
    return [
        {
            "Device": result.device,
            "Action": result.action,
            "Outcome": result.outcome,
            "Asked": number(result.asked, digits=4),
            "Read back": number(result.read_back, digits=4),
            "Took": seconds(result.latency_s),
            "Why": result.reason,
        }
        for result in results
    ]


def clock_range(devices: Sequence[DeviceState]) -> tuple[int, int] | None:
    """What every device can be pinned to; None where one does not say."""
    lows = [device.clocks_min_mhz for device in devices]
    highs = [device.clocks_max_mhz for device in devices]
    if not devices or None in lows or None in highs:
        return None
    low, high = max(v for v in lows if v is not None), min(v for v in highs if v is not None)
    return (low, high) if low <= high else None
