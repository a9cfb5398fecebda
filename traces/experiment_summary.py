"""Rows of an experiment put together: means over seeds with intervals, and each policy against the baseline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

Row = Mapping[str, Any]
CONFIDENCE = 0.95
KEPT_SHARE = 0.99
ACTIVE = "active_j_per_output_token"


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean over seeds and half the width of its 95 % interval (Student's t); `half` is None for one seed."""

    mean: float
    half: float | None
    count: int

    def text(self, digits: int = 3, scale: float = 1.0) -> str:
        if self.half is None:
            return f"{self.mean * scale:.{digits}g}"
        return f"{self.mean * scale:.{digits}g} ± {self.half * scale:.2g}"


def figure(values: Sequence[float | None]) -> Figure | None:
    """None where a seed has no value: a mean over some seeds would look like one over all."""
    known = [value for value in values if value is not None]
    if not known or len(known) != len(values):
        return None
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return Figure(mean, None, len(known))
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(known) - 1)) * deviation / math.sqrt(len(known))
    return Figure(mean, half, len(known))


@dataclass(frozen=True)
class Point:
    """One policy at one trace, variant and zone, over all seeds."""

    policy: str
    trace: str
    variant: str
    zone: str | None
    rows: tuple[Row, ...]

    def figure(self, key: str) -> Figure | None:
        return figure([row.get(key) for row in self.rows])

    def mean(self, key: str) -> float | None:
        found = self.figure(key)
        return None if found is None else found.mean

    def lowest(self, key: str) -> float | None:
        values = [value for row in self.rows if (value := row.get(key)) is not None]
        return min(values) if len(values) == len(self.rows) else None

    @property
    def place(self) -> tuple[str, str, str | None]:
        return self.trace, self.variant, self.zone


class Summary:
    """All points of an experiment, in the order of the grid."""

    def __init__(self, rows: Sequence[Row], baseline: str) -> None:
        grouped: dict[tuple[str, str, str | None, str], list[Row]] = defaultdict(list)
        for row in rows:
            grouped[row["trace"], row["variant"], row["zone"], row["policy"]].append(row)
        self.baseline = baseline
        self.points = [Point(key[3], key[0], key[1], key[2], tuple(found)) for key, found in grouped.items()]
        self._by_place = {(point.place, point.policy): point for point in self.points}

    def at(self, place: tuple[str, str, str | None], policy: str) -> Point | None:
        return self._by_place.get((place, policy))

    @property
    def places(self) -> list[tuple[str, str, str | None]]:
        return list(dict.fromkeys(point.place for point in self.points))

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(point.policy for point in self.points))

    def saving(self, point: Point, key: str = "energy_j_per_output_token") -> Figure | None:
        """Share of the baseline's figure saved, seed by seed (the same requests), then averaged."""
        base = self.at(point.place, self.baseline)
        if base is None:
            return None
        theirs = {row["seed"]: row.get(key) for row in base.rows}
        shares = []
        for row in point.rows:
            mine, other = row.get(key), theirs.get(row["seed"])
            shares.append(1.0 - mine / other if mine is not None and other else None)
        return figure(shares)

    def keeps(self, point: Point) -> bool:
        """At least 99 % of the baseline's SLO attainment, in every seed."""
        base = self.at(point.place, self.baseline)
        if base is None:
            return False
        theirs = {row["seed"]: row.get("slo_attainment") for row in base.rows}
        for row in point.rows:
            mine, other = row.get("slo_attainment"), theirs.get(row["seed"])
            if mine is None or other is None or mine < KEPT_SHARE * other:
                return False
        return True

    def best_static(self, place: tuple[str, str, str | None]) -> Point | None:
        """The static clock with the least J/token among those that keep the SLO, chosen in hindsight at this very load:
        a baseline no operator has."""
        found = [
            point
            for point in self.points
            if point.place == place and point.policy.startswith("static") and self.keeps(point)
        ]
        return min(found, key=lambda point: point.mean("energy_j_per_output_token") or math.inf, default=None)

    def peak_load(self, trace: str, loads: Mapping[str, float], zone: str | None) -> tuple[str, float] | None:
        """The highest load at which the baseline keeps both limits for 99 % of the requests, in every seed."""
        kept = [
            (name, load)
            for name, load in loads.items()
            if (point := self.at((trace, name, zone), self.baseline)) is not None
            and (point.lowest("slo_attainment") or 0.0) >= KEPT_SHARE
        ]
        return max(kept, key=lambda pair: pair[1], default=None)
