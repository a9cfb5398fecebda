"""`spec.carbon`: where the grid's intensity comes from and how grams are counted.

Secrets never stand in a policy: a feed names the environment variable that holds its key.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, model_validator

from serving.policy.base import EnvironmentName, Intensity, Name, NonNegative, Positive, Section, Share, Text
from serving.policy.time_zones import check_time_zone

Zone = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Basis = Literal["average", "marginal"]
Boundary = Literal["direct", "lifecycle"]
Mix = Literal["consumption", "production"]


class FeedSection(Section):
    zone: Zone | None = None
    """The provider's own name for the zone, where it differs from `carbon.zone`."""


class UkGridFeed(FeedSection):
    """NESO's Carbon Intensity API: Great Britain, half-hourly, direct, no key."""

    type: Literal["uk_grid"]


class ElectricityMapsFeed(FeedSection):
    type: Literal["electricity_maps"]
    token_env: EnvironmentName = "ELECTRICITY_MAPS_TOKEN"  # noqa: S105 - a name, not a secret


class WattTimeFeed(FeedSection):
    type: Literal["watttime"]
    user_env: EnvironmentName = "WATTTIME_USER"
    password_env: EnvironmentName = "WATTTIME_PASSWORD"  # noqa: S105 - a name, not a secret
    signal: Literal["co2_moer", "co2_aoer"] = "co2_moer"


class EntsoeFeed(FeedSection):
    type: Literal["entsoe"]
    token_env: EnvironmentName = "ENTSOE_TOKEN"  # noqa: S105 - a name, not a secret


class EiaFeed(FeedSection):
    type: Literal["eia"]
    key_env: EnvironmentName = "EIA_API_KEY"


class CarbonAwareSdkFeed(FeedSection):
    """A self-hosted Carbon Aware SDK; what its numbers count is what `carbon.basis` and `carbon.boundary` say."""

    type: Literal["carbon_aware_sdk"]
    mix: Mix = "consumption"
    url: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9._:\[\]-]+(/[^\s?#]*)?$", max_length=500)]


class CsvFeed(FeedSection):
    """A recorded series (CSV or Parquet)."""

    type: Literal["csv"]
    path: Text
    """Relative to the working directory of the server."""
    mix: Mix = "consumption"
    time_column: Text | None = None
    value_column: Text | None = None
    """Both for a file of another layout; gridserve's own and Electricity Maps' are told by their header."""
    unit: Text = "g/kWh"
    time_zone: Annotated[str, AfterValidator(check_time_zone)] | None = None
    """Of times without offset; without it such times are refused."""
    step_s: int | None = Field(default=None, gt=0)
    replay_from: AwareDatetime | None = None
    """Replay: this moment of the recording becomes the moment the server starts."""

    @model_validator(mode="after")
    def columns_together(self) -> Self:
        if (self.time_column is None) != (self.value_column is None):
            raise ValueError("give both time_column and value_column, or neither")
        return self


class ConstantFeed(FeedSection):
    """A number the operator declares; every result says that it is assumed."""

    type: Literal["constant"]
    g_per_kwh: Intensity
    mix: Mix = "consumption"
    source: Text
    """Where the number comes from."""


Feed = Annotated[
    UkGridFeed
    | ElectricityMapsFeed
    | WattTimeFeed
    | EntsoeFeed
    | EiaFeed
    | CarbonAwareSdkFeed
    | CsvFeed
    | ConstantFeed,
    Field(discriminator="type"),
]


class Embodied(Section):
    kg: NonNegative
    """kgCO2e of one GPU with its share of the server, cradle to gate."""
    lifetime_years: Positive = 4.0
    source: Text | None = None


class IntensityRange(Section):
    """The range within which the grid counts as clean or dirty: fixed by both figures, else a trailing window's."""

    low_g_per_kwh: Intensity | None = None
    high_g_per_kwh: Intensity | None = None
    window_h: int = Field(default=720, ge=1, le=8784)
    low_quantile: Share = 0.0
    high_quantile: Share = 1.0

    @model_validator(mode="after")
    def ends_in_order(self) -> Self:
        if (self.low_g_per_kwh is None) != (self.high_g_per_kwh is None):
            raise ValueError("give both low_g_per_kwh and high_g_per_kwh, or neither for a trailing window")
        if self.low_g_per_kwh is not None and self.high_g_per_kwh is not None:
            if self.low_g_per_kwh >= self.high_g_per_kwh:
                raise ValueError("low_g_per_kwh must be below high_g_per_kwh")
        elif self.low_quantile >= self.high_quantile:
            raise ValueError("low_quantile must be below high_quantile")
        return self


class IntensityBand(Section):
    """Grid intensities in `[from, to)` g/kWh under one name, for rules to refer to."""

    name: Name
    from_g_per_kwh: Intensity = 0.0
    to_g_per_kwh: Intensity | None = None

    @model_validator(mode="after")
    def not_empty(self) -> Self:
        if self.to_g_per_kwh is not None and self.to_g_per_kwh <= self.from_g_per_kwh:
            raise ValueError(f"band {self.name!r} is empty: to_g_per_kwh must be above from_g_per_kwh")
        return self

    def holds(self, g_per_kwh: float, widened_by: float = 0.0) -> bool:
        low, high = self.from_g_per_kwh - widened_by, self.to_g_per_kwh
        return low <= g_per_kwh and (high is None or g_per_kwh < high + widened_by)


class Carbon(Section):
    zone: Zone
    feeds: tuple[Feed, ...] = Field(min_length=1, max_length=16)
    """Most wanted first; all of one basis and one boundary."""
    basis: Basis | None = None
    boundary: Boundary | None = None
    """What the figures count; null takes what the first feed that leaves no choice gives."""
    stale_after_s: NonNegative = 3600.0
    zone_mean_g_per_kwh: Intensity | None = None
    """Last resort when no feed answers; null leaves grams unknown then."""
    pue: float = Field(default=1.0, ge=1.0, le=5.0)
    """Power usage effectiveness: facility energy over IT energy."""
    embodied: Embodied | None = None
    range: IntensityRange = IntensityRange()
    bands: tuple[IntensityBand, ...] = Field(default=(), max_length=32)
    band_hysteresis_g_per_kwh: NonNegative = 10.0
    """How far the intensity must leave a band before another takes over."""
    band_min_dwell_s: NonNegative = 900.0
