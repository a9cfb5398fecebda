"""Which settings of a rule can never take effect, because earlier rules have them first.

Conditions are products of four independent choices (minute of the week, band, zone, tenant), so coverage is decided
exactly on the cells that the values named anywhere divide the product into. Times in different time zones are never
taken to cover each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from serving.policy.rules import UNKNOWN_BAND, WEEK_MINUTES, Rule

MAX_CELLS = 200_000
_OTHER = ""


class TooManyCellsError(Exception):
    """The rules name too many combinations to decide in reasonable time."""


def dead_settings(rules: Sequence[Rule], bands: Sequence[str]) -> dict[int, list[str]]:
    """Index of a rule -> its settings that never take effect. Raises `TooManyCellsError`."""
    dead: dict[int, list[str]] = {}
    for index, rule in enumerate(rules):
        for setting in settings_of(rule):
            earlier = [other for other in rules[:index] if setting in settings_of(other) and _outlasts(other, rule)]
            if earlier and _covered(rule, earlier, bands):
                dead.setdefault(index, []).append(setting)
    return dead


def settings_of(rule: Rule) -> list[str]:
    return [name for name in type(rule.set).model_fields if getattr(rule.set, name) is not None]


def _outlasts(earlier: Rule, rule: Rule) -> bool:
    if earlier.expires_at is None:
        return True
    return rule.expires_at is not None and earlier.expires_at >= rule.expires_at


def _covered(rule: Rule, earlier: Sequence[Rule], bands: Sequence[str]) -> bool:
    choices = (
        _values(rule.when.bands, [*bands, UNKNOWN_BAND]),
        _values(rule.when.zones, [_OTHER, *{zone for other in earlier for zone in other.when.zones or ()}]),
        _values(rule.when.tenants, [_OTHER, *{name for other in earlier for name in other.when.tenants or ()}]),
        _segments(rule, earlier),
    )
    cells = 1
    for choice in choices:
        cells *= len(choice)
    if cells * len(earlier) > MAX_CELLS:
        raise TooManyCellsError
    return all(any(_holds(other, rule, *cell) for other in earlier) for cell in itertools.product(*choices))


def _values(given: Sequence[str] | None, otherwise: Sequence[str]) -> Sequence[str]:
    return otherwise if given is None else given


def _segments(rule: Rule, earlier: Sequence[Rule]) -> list[int]:
    """One minute of each stretch of the rule's time in which no condition changes; -1 for a rule at any time."""
    if not rule.when.timed:
        zones = {other.when.time_zone for other in earlier if other.when.timed}
        if len(zones) != 1:
            return [-1]
        spans: Sequence[tuple[int, int]] = [(0, WEEK_MINUTES)]
        peers = [other for other in earlier if other.when.timed]
    else:
        spans = rule.when.minutes_of_week()
        peers = [other for other in earlier if other.when.time_zone == rule.when.time_zone]
    edges = {edge for other in peers for span in other.when.minutes_of_week() for edge in span}
    return sorted({start for start, _ in spans} | {edge for edge in edges if any(a <= edge < b for a, b in spans)})


def _holds(other: Rule, rule: Rule, band: str, zone: str, tenant: str, minute: int) -> bool:
    when = other.when
    if when.bands is not None and band not in when.bands:
        return False
    if when.zones is not None and zone not in when.zones:
        return False
    if when.tenants is not None and tenant not in when.tenants:
        return False
    if not when.timed:
        return True
    if minute < 0 or (rule.when.timed and rule.when.time_zone != when.time_zone):
        return False
    return any(start <= minute < end for start, end in when.minutes_of_week())
