"""Figures and times as an operator reads them; what is unknown is a dash, never a zero."""

from __future__ import annotations

import re
from datetime import UTC, datetime

UNKNOWN = "–"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:@&])")


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """`digits` significant digits, thousands with a comma: `1,234 W`."""
    if value is None or value != value:
        return UNKNOWN
    magnitude = abs(value)
    if magnitude >= 10 ** (digits - 1) or magnitude == 0:
        text = f"{value:,.0f}"
    else:
        decimals = digits
        while decimals > 0 and round(magnitude, decimals) >= 10 ** (digits - decimals):
            decimals -= 1
        text = f"{value:.{digits}g}" if magnitude < 0.1 else f"{value:.{decimals}f}"
    return f"{text} {unit}".rstrip()


def count(value: float | None) -> str:
    return UNKNOWN if value is None or value != value else f"{value:,.0f}"


def share(value: float | None, decimals: int = 0) -> str:
    return UNKNOWN if value is None else f"{100 * value:.{decimals}f} %"


def seconds(value: float | None) -> str:
    """A latency: milliseconds below one second."""
    if value is None or value != value:
        return UNKNOWN
    return number(value * 1000, "ms") if abs(value) < 1 else number(value, "s")


def duration(value: float | None) -> str:
    """`40 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    if value is None:
        return UNKNOWN
    whole = round(abs(value))
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(at_unix_s: float | None, now_unix_s: float) -> str:
    return "never" if at_unix_s is None else f"{duration(max(0.0, now_unix_s - at_unix_s))} ago"


def clock(at_unix_s: float | None) -> str:
    """Date and time, UTC."""
    if at_unix_s is None:
        return UNKNOWN
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def hour_minute(at_unix_s: float | None) -> str:
    return UNKNOWN if at_unix_s is None else datetime.fromtimestamp(at_unix_s, UTC).strftime("%H:%M UTC")


def joules(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    for factor, unit in ((3.6e6, "kWh"), (1e3, "kJ")):
        if abs(value) >= factor:
            return number(value / factor, unit)
    return number(value, "J")


def grams(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if abs(value) >= 1000:
        return number(value / 1000, "kg")
    return number(value, "g") if abs(value) >= 0.1 or value == 0 else number(value * 1000, "mg")


def plain(text: str) -> str:
    """Text of others made safe to stand in Markdown: no image, link, heading or directive survives."""
    return _MARKDOWN.sub(r"\\\1", text.replace("\n", " "))
