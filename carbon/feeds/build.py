"""Feeds from plain settings, as a policy file or a command line gives them; keys come from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from carbon.feeds import eia, electricity_maps, entsoe, uk_grid, watttime
from carbon.feeds.carbon_aware_sdk import CarbonAwareSdkFeed
from carbon.feeds.constant import ConstantFeed
from carbon.feeds.feed import Feed
from carbon.feeds.http import FeedHttp
from carbon.feeds.recorded import FileFormat, RecordedFeed, electricity_maps_format, gridserve_format, read_series
from carbon.intensity import Basis, Boundary, Methodology, Mix, as_utc
from carbon.series import IntensitySeries

Settings = Mapping[str, Any]
Clock = Callable[[], datetime]

FIELDS = {
    "electricity_maps": {"token_env", "boundary", "zone"},
    "watttime": {"user_env", "password_env", "signal", "zone"},
    "uk_grid": {"zone"},
    "entsoe": {"token_env", "boundary", "zone"},
    "eia": {"token_env", "boundary", "zone"},
    "carbon_aware_sdk": {"url", "basis", "boundary", "mix", "zone"},
    "csv": {
        "path", "basis", "boundary", "mix", "replay_from", "time_column", "value_column", "unit", "time_zone", "step_s",
        "zone",
    },
    "constant": {"g_per_kwh", "basis", "boundary", "mix", "source", "zone"},
}  # fmt: skip


def build_feed(
    settings: Settings,
    *,
    zone: str,
    folder: Path = Path(),
    environment: Mapping[str, str] = os.environ,
    now: Clock = lambda: datetime.now(UTC),
    transport: httpx.AsyncBaseTransport | None = None,
) -> Feed:
    """One feed. `settings["type"]` is one of `FIELDS`. Raises `ValueError` naming the field that is wrong."""
    kind = settings.get("type")
    if kind not in FIELDS:
        raise ValueError(f"feed type {kind!r} is not known; choose from {', '.join(sorted(FIELDS))}")
    surplus = set(settings) - FIELDS[kind] - {"type"}
    if surplus:
        raise ValueError(f"feed {kind} has no field {sorted(surplus)[0]!r}; it has {', '.join(sorted(FIELDS[kind]))}")
    if kind == "constant":
        source = str(settings.get("source", "declared by the operator"))
        return ConstantFeed(float(_need(settings, "g_per_kwh")), methodology(settings), source, now)
    if kind == "csv":
        return _recorded(settings, zone, folder, now)
    if kind == "carbon_aware_sdk":
        url = str(_need(settings, "url"))
        http = FeedHttp(url, allowed_hosts=frozenset({httpx.URL(url).host}), transport=transport)
        return CarbonAwareSdkFeed(http, methodology(settings), now)
    host = {
        "electricity_maps": electricity_maps.HOST,
        "watttime": watttime.HOST,
        "uk_grid": uk_grid.HOST,
        "entsoe": entsoe.HOST,
        "eia": eia.HOST,
    }[kind]
    http = FeedHttp(f"https://{host}", allowed_hosts=frozenset({host}), transport=transport)
    if kind == "uk_grid":
        return uk_grid.UkGridFeed(http, now)
    if kind == "watttime":
        user = _secret(settings, "user_env", "WATTTIME_USER", environment)
        password = _secret(settings, "password_env", "WATTTIME_PASSWORD", environment)
        return watttime.WattTimeFeed(http, user, password, str(settings.get("signal", "co2_moer")), now)
    boundary = Boundary(settings.get("boundary", "lifecycle"))
    if kind == "electricity_maps":
        token = _secret(settings, "token_env", "ELECTRICITY_MAPS_TOKEN", environment)
        return electricity_maps.ElectricityMapsFeed(http, token, boundary, now)
    if kind == "entsoe":
        return entsoe.EntsoeFeed(http, _secret(settings, "token_env", "ENTSOE_TOKEN", environment), boundary, now)
    return eia.EiaFeed(http, _secret(settings, "token_env", "EIA_API_KEY", environment), boundary, now)


def methodology(settings: Settings) -> Methodology:
    """What a declared or recorded number counts; average lifecycle of consumption where nothing is said."""
    try:
        return Methodology(
            Basis(settings.get("basis", "average")),
            Boundary(settings.get("boundary", "lifecycle")),
            Mix(settings.get("mix", "consumption")),
        )
    except ValueError as error:
        raise ValueError(f"{error}; basis is average or marginal, boundary is direct or lifecycle") from None


def file_format(settings: Settings, path: Path, zone: str | None) -> FileFormat:
    """The format of a recording: as declared, or told from its header."""
    if "value_column" in settings:
        return FileFormat(
            time_column=str(_need(settings, "time_column")),
            value_column=str(settings["value_column"]),
            unit=str(settings.get("unit", "g/kWh")),
            methodology=methodology(settings),
            time_zone=settings.get("time_zone"),
            zone=zone,
            step_s=settings.get("step_s"),
        )
    if path.suffix != ".parquet":
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        if header.startswith("Datetime (UTC)"):
            return electricity_maps_format(Boundary(settings.get("boundary", "lifecycle")))
    return gridserve_format(methodology(settings), zone)


def read_recording(settings: Settings, zone: str | None, folder: Path, now: Clock) -> IntensitySeries:
    path = folder / str(_need(settings, "path"))
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of a CSV or Parquet file")
    return read_series(path, file_format(settings, path, zone), now())


def _recorded(settings: Settings, zone: str, folder: Path, now: Clock) -> RecordedFeed:
    series = read_recording(settings, settings.get("zone", zone), folder, now)
    start = settings.get("replay_from")
    if start is None:
        return RecordedFeed(series, now=now)
    moment = start if isinstance(start, datetime) else datetime.fromisoformat(str(start))
    return RecordedFeed.replay_from(series, as_utc(moment), now)


def _need(settings: Settings, name: str) -> Any:
    if name not in settings:
        raise ValueError(f"feed {settings.get('type')} needs the field {name!r}")
    return settings[name]


def _secret(settings: Settings, field: str, default: str, environment: Mapping[str, str]) -> str:
    variable = str(settings.get(field, default))
    value = environment.get(variable)
    if not value:
        raise ValueError(f"feed {settings['type']} needs its key in the environment variable {variable}")
    return value
