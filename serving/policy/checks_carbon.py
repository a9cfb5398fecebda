"""Cross-checks of `spec.carbon`: zones the feeds can serve, figures that may be compared, bands that do not overlap."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path as FilePath

from serving.policy.carbon_section import Carbon, ConstantFeed, CsvFeed, Feed, UkGridFeed, WattTimeFeed
from serving.policy.findings import Finding, error, warning
from serving.policy.problems import Path, suggestion
from serving.policy.rules import UNKNOWN_BAND
from serving.policy.zones import known_zones, other_name, serves

_CARBON: Path = ("spec", "carbon")


def check_carbon(carbon: Carbon | None) -> list[Finding]:
    if carbon is None:
        return []
    return [*_zones(carbon), *_methodology(carbon), *_bands(carbon), *_files(carbon)]


def _zones(carbon: Carbon) -> Iterator[Finding]:
    for index, feed in enumerate(carbon.feeds):
        zone = feed.zone or carbon.zone
        if serves(feed.type, zone):
            continue
        path: Path = (*_CARBON, "feeds", index, "zone") if feed.zone else (*_CARBON, "zone")
        yield error(path, f"feed {feed.type} has no zone {zone!r}{_meant(feed.type, zone)}")
    known = known_zones()
    assert known is not None
    free = all(known_zones(feed.type) is None for feed in carbon.feeds)
    if free and carbon.zone not in known and not any(isinstance(feed, WattTimeFeed) for feed in carbon.feeds):
        yield warning((*_CARBON, "zone"), f"unknown zone {carbon.zone!r}{_meant(None, carbon.zone)}")


def _meant(feed_type: str | None, zone: str) -> str:
    known = known_zones(feed_type) or frozenset()
    other = other_name(zone)
    if other in known:
        return f"; did you mean {other!r}?"
    return suggestion(zone, sorted(known))


def natural_basis(feed: Feed) -> str | None:
    """The basis a feed gives without a choice; `None` where the operator declares it."""
    if isinstance(feed, WattTimeFeed):
        return "marginal" if feed.signal == "co2_moer" else "average"
    return None if feed.type in ("csv", "constant", "carbon_aware_sdk") else "average"


def natural_boundary(feed: Feed) -> str | None:
    """The boundary a feed gives without a choice."""
    return "direct" if isinstance(feed, UkGridFeed | WattTimeFeed) else None


def methodology(carbon: Carbon) -> tuple[str, str]:
    """Basis and boundary of all figures: as declared, else what the first feed without a choice gives."""
    bases = [basis for feed in carbon.feeds if (basis := natural_basis(feed)) is not None]
    boundaries = [boundary for feed in carbon.feeds if (boundary := natural_boundary(feed)) is not None]
    basis = carbon.basis or (bases[0] if bases else "average")
    return basis, carbon.boundary or (boundaries[0] if boundaries else "lifecycle")


def _methodology(carbon: Carbon) -> Iterator[Finding]:
    basis, boundary = methodology(carbon)
    for index, feed in enumerate(carbon.feeds):
        for wanted, given, what in (
            (basis, natural_basis(feed), "basis"),
            (boundary, natural_boundary(feed), "boundary"),
        ):
            if given is not None and given != wanted:
                message = f"feed {feed.type} counts {given} intensity, the others {wanted}; the two cannot be mixed"
                yield error((*_CARBON, "feeds", index), f"{message} (carbon.{what})")


def _bands(carbon: Carbon) -> Iterator[Finding]:
    names: set[str] = set()
    for index, band in enumerate(carbon.bands):
        path: Path = (*_CARBON, "bands", index)
        if band.name == UNKNOWN_BAND:
            yield error((*path, "name"), f"{UNKNOWN_BAND} is the name of an intensity that is absent; choose another")
        if band.name in names:
            yield error((*path, "name"), f"band {band.name!r} exists already")
        names.add(band.name)
    ordered = sorted(enumerate(carbon.bands), key=lambda item: item[1].from_g_per_kwh)
    for (_, lower), (index, upper) in itertools.pairwise(ordered):
        path = (*_CARBON, "bands", index)
        if lower.to_g_per_kwh is None or lower.to_g_per_kwh > upper.from_g_per_kwh:
            end = "without end" if lower.to_g_per_kwh is None else f"up to {lower.to_g_per_kwh:g}"
            yield error(path, f"band {upper.name!r} from {upper.from_g_per_kwh:g} overlaps {lower.name!r} {end} g/kWh")
        elif lower.to_g_per_kwh < upper.from_g_per_kwh:
            gap = f"{lower.to_g_per_kwh:g} to {upper.from_g_per_kwh:g} g/kWh"
            yield warning(path, f"no band covers {gap}; there the band is {UNKNOWN_BAND!r}")
    widths = [band.to_g_per_kwh - band.from_g_per_kwh for band in carbon.bands if band.to_g_per_kwh is not None]
    if widths and carbon.band_hysteresis_g_per_kwh >= min(widths):
        message = f"hysteresis {carbon.band_hysteresis_g_per_kwh:g} g/kWh is as wide as the narrowest band"
        yield warning((*_CARBON, "bands"), f"{message}; that band would hardly ever be entered or left")


def _files(carbon: Carbon) -> Iterator[Finding]:
    for index, feed in enumerate(carbon.feeds):
        if isinstance(feed, CsvFeed) and not FilePath(feed.path).is_file():
            path: Path = (*_CARBON, "feeds", index, "path")
            yield warning(path, f"{feed.path} is not a file here; it must be one where the server runs")
    positions = [index for index, feed in enumerate(carbon.feeds) if isinstance(feed, ConstantFeed)]
    if positions and positions[0] < len(carbon.feeds) - 1:
        where: Path = (*_CARBON, "feeds", positions[0] + 1)
        yield warning(where, "is never asked: the constant feed before it always answers")
