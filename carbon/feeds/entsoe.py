"""ENTSO-E transparency platform: actual generation per type (A75), from which the intensity is computed.

Domestic generation only, hence a production intensity. Pumped storage and consumption series are left out. Curve type
A03 omits points that repeat, so a value is held to the period's end; in A01 a missing point is a gap.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

from carbon.feeds.emission_factors import intensity_of_mix
from carbon.feeds.feed import FeedError, NotOfferedError
from carbon.feeds.http import FeedHttp
from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology, Mix, as_utc
from carbon.series import IntensitySeries

HOST = "web-api.tp.entsoe.eu"
MAX_XML_BYTES = 64 * 1024 * 1024
MAX_RANGE = timedelta(days=31)
RECENT = timedelta(hours=12)
RESOLUTIONS = {"PT15M": timedelta(minutes=15), "PT30M": timedelta(minutes=30), "PT60M": timedelta(minutes=60)}

# Standard code list of psrType; pumped storage (B10) is storage, not generation.
FUELS = {
    "B01": "biomass",
    "B02": "coal",
    "B03": "gas",
    "B04": "gas",
    "B05": "coal",
    "B06": "oil",
    "B07": "oil",
    "B08": "unknown",
    "B09": "geothermal",
    "B11": "hydro",
    "B12": "hydro",
    "B13": "hydro",
    "B14": "nuclear",
    "B15": "unknown",
    "B16": "solar",
    "B17": "biomass",
    "B18": "wind",
    "B19": "wind",
    "B20": "unknown",
}
STORAGE = frozenset({"B10", "B25"})
BIDDING_ZONES = {
    "AT": "10YAT-APG------L",
    "BE": "10YBE----------2",
    "CH": "10YCH-SWISSGRIDZ",
    "CZ": "10YCZ-CEPS-----N",
    "DE": "10Y1001A1001A82H",
    "ES": "10YES-REE------0",
    "FI": "10YFI-1--------U",
    "FR": "10YFR-RTE------C",
    "NL": "10YNL----------L",
    "PL": "10YPL-AREA-----S",
    "PT": "10YPT-REN------W",
}


class EntsoeFeed:
    """`zone` is a country of `BIDDING_ZONES` or an EIC code (16 characters)."""

    def __init__(
        self,
        http: FeedHttp,
        token: str,
        boundary: Boundary = Boundary.LIFECYCLE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = "entsoe"
        self.methodology = Methodology(Basis.AVERAGE, boundary, Mix.PRODUCTION)
        self._http = http
        self._token = token
        self._now = now

    async def current(self, zone: str) -> CarbonIntensity:
        """The newest interval for which every type has reported."""
        now = self._now()
        series = await self.history(zone, now - RECENT, now)
        return series[len(series) - 1]

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        raise NotOfferedError(f"{self.name} publishes no forecast of the mix; the seasonal model is used instead")

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        begin, end = as_utc(start), as_utc(end)
        points: list[CarbonIntensity] = []
        while begin < end:
            stop = min(begin + MAX_RANGE, end)
            points += self._intensities(zone, await self._documents(zone, begin, stop))
            begin = stop
        series = IntensitySeries(points).between(as_utc(start), end)
        if not series:
            raise FeedError(f"{self.name}: no complete interval for {zone!r}")
        return series

    async def _documents(self, zone: str, start: datetime, end: datetime) -> list[bytes]:
        area = BIDDING_ZONES.get(zone, zone if len(zone) == 16 else None)
        if area is None:
            raise FeedError(f"{self.name}: zone {zone!r} is neither known nor an EIC code", permanent=True)
        params = {
            "securityToken": self._token,
            "documentType": "A75",
            "processType": "A16",
            "in_Domain": area,
            "periodStart": start.strftime("%Y%m%d%H%M"),
            "periodEnd": end.strftime("%Y%m%d%H%M"),
        }
        body = await self._http.get_bytes("/api", params)
        return _unpack(body) if body[:4] == b"PK\x03\x04" else [body]

    def _intensities(self, zone: str, documents: list[bytes]) -> list[CarbonIntensity]:
        by_type: dict[str, dict[datetime, float]] = defaultdict(dict)
        step = min(RESOLUTIONS.values())
        area = BIDDING_ZONES.get(zone, zone)
        for document in documents:
            for psr, moment, length, power in _points(document, area):
                for part in range(int(length / step)):
                    by_type[psr][moment + part * step] = power
        if not by_type:
            raise FeedError(f"{self.name}: the document holds no generation")
        moments = sorted(set.intersection(*(set(values) for values in by_type.values())))
        points = []
        for moment in moments:
            fuels: dict[str, float] = defaultdict(float)
            for psr, values in by_type.items():
                fuels[FUELS[psr]] += values[moment]
            try:
                value = intensity_of_mix(fuels, self.methodology.boundary)
            except ValueError as error:
                raise FeedError(f"{self.name}: {error}") from None
            points.append(
                CarbonIntensity(
                    zone,
                    moment,
                    moment + step,
                    value,
                    self.methodology,
                    Kind.ESTIMATED,
                    self.name,
                    self._now(),
                    method="generation mix x emission factors",
                )
            )
        return points

    async def close(self) -> None:
        await self._http.close()


def _unpack(body: bytes) -> list[bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_XML_BYTES:
                raise FeedError("entsoe: the archive is larger than any answer")
            return [archive.read(name) for name in archive.namelist() if name.endswith(".xml")]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):
        raise FeedError("entsoe: the archive cannot be read") from None


def _points(document: bytes, area: str) -> Iterator[tuple[str, datetime, timedelta, float]]:
    """(psrType, start, length, megawatts) of every generation interval."""
    root = _parse(document)
    if _local(root.tag) == "Acknowledgement_MarketDocument":
        reason = next((node.text for node in root.iter() if _local(node.tag) == "text"), "no reason given")
        raise FeedError(f"entsoe: {reason}")
    if _local(root.tag) != "GL_MarketDocument":
        raise FeedError(f"entsoe: the answer is a {_local(root.tag)}, not a generation document")
    for series in (node for node in root if _local(node.tag) == "TimeSeries"):
        domain = _text(series, "inBiddingZone_Domain.mRID")
        if domain is None:
            continue
        if domain != area:
            raise FeedError(f"entsoe: asked for area {area!r}, got {domain!r}", permanent=True)
        psr = _text(series, "MktPSRType", "psrType")
        if psr in STORAGE:
            continue
        if psr not in FUELS:
            raise FeedError(f"entsoe: unknown production type {psr!r}")
        unit = _text(series, "quantity_Measure_Unit.name")
        if unit not in (None, "MAW"):
            raise FeedError(f"entsoe: power in {unit!r} instead of MAW")
        holds = _text(series, "curveType") == "A03"
        for period in (node for node in series if _local(node.tag) == "Period"):
            yield from ((psr, *point) for point in _period(period, holds))


def _period(period: ElementTree.Element, holds: bool) -> Iterator[tuple[datetime, timedelta, float]]:
    step = RESOLUTIONS.get(_text(period, "resolution") or "")
    start, end = _time(_text(period, "timeInterval", "start")), _time(_text(period, "timeInterval", "end"))
    if step is None or end <= start:
        raise FeedError("entsoe: a period without a usable resolution or interval")
    count = round((end - start) / step)
    values: dict[int, float] = {}
    for point in (node for node in period if _local(node.tag) == "Point"):
        try:
            position, quantity = int(_text(point, "position") or ""), float(_text(point, "quantity") or "")
        except ValueError:
            raise FeedError("entsoe: a point without position or quantity") from None
        if not 1 <= position <= count or not 0.0 <= quantity < 1e6:
            raise FeedError(f"entsoe: point {position} of {quantity} MW is out of range")
        values[position] = quantity
    held: float | None = None
    for position in range(1, count + 1):
        held = values.get(position, held if holds else None)
        if held is not None:
            yield start + (position - 1) * step, step, held


def _parse(document: bytes) -> ElementTree.Element:
    if b"<!DOCTYPE" in document or b"<!ENTITY" in document:
        raise FeedError("entsoe: the document declares entities, which no answer does")
    try:
        return ElementTree.fromstring(document)  # noqa: S314 - see above
    except ElementTree.ParseError:
        raise FeedError("entsoe: the answer is not XML") from None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _text(node: ElementTree.Element, *path: str) -> str | None:
    for name in path:
        found = next((child for child in node if _local(child.tag) == name), None)
        if found is None:
            return None
        node = found
    return (node.text or "").strip() or None


def _time(text: str | None) -> datetime:
    try:
        return as_utc(datetime.fromisoformat(text or ""))
    except ValueError:
        raise FeedError(f"entsoe: {text!r} is not a time") from None
