"""ENTSO-E A75: XML documents of generation per type, A01 or A03 curves, zipped when asked, acknowledgements."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta

from tests.carbon.emulators.base import Emulator

AREA = "10YNL----------L"
NAMESPACE = "urn:iec62325.351:tc57wg16:451-6:generationloaddocument:3:0"
# Gas 100 MW and wind 300 MW: 130.75 g/kWh lifecycle, 92.5 direct. Pumped storage must not count.
MIX = {"B04": 100.0, "B19": 300.0, "B10": 500.0}


def minute(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%MZ")


class EntsoeEmulator(Emulator):
    def __init__(self, now: datetime, resolution_min: int = 15, curve: str = "A03") -> None:
        super().__init__(now, "NL", timedelta(minutes=resolution_min))
        self.curve = curve
        self.zipped = False

    def answer(self, path, query, headers):
        if query.get("securityToken") != "secret-token":
            return 401, b"<html>unauthorized</html>"
        if query.get("in_Domain") != AREA or "empty_list" in self.faults:
            return 200, self.acknowledgement("No matching data found")
        start = datetime.strptime(query["periodStart"], "%Y%m%d%H%M").replace(tzinfo=UTC)
        end = min(datetime.strptime(query["periodEnd"], "%Y%m%d%H%M").replace(tzinfo=UTC), self.now)
        document = self.document(start, end)
        if self.zipped:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("001.xml", document)
            return 200, buffer.getvalue()
        return 200, document

    def acknowledgement(self, text: str) -> bytes:
        return (
            '<Acknowledgement_MarketDocument xmlns="urn:iec62325.351:tc57wg16:451-1:acknowledgementdocument:7:0">'
            f"<Reason><code>999</code><text>{text}</text></Reason></Acknowledgement_MarketDocument>"
        ).encode()

    def document(self, start: datetime, end: datetime) -> bytes:
        moments = self.moments(start, end)
        entity = "<!DOCTYPE x [<!ENTITY a 'b'>]>" if "entities" in self.faults else ""
        body = "".join(self.series(psr, power, moments) for psr, power in MIX.items())
        body += self.series("B10", 250.0, moments, "outBiddingZone_Domain.mRID")
        return f'{entity}<GL_MarketDocument xmlns="{NAMESPACE}">{body}</GL_MarketDocument>'.encode()

    def series(self, psr: str, power: float, moments: list[datetime], domain: str = "inBiddingZone_Domain.mRID") -> str:
        unit = "KWH" if "units_changed" in self.faults else "MAW"
        area = "10YXX----------X" if "wrong_zone" in self.faults and domain.startswith("in") else AREA
        head = (
            f"<TimeSeries><{domain} codingScheme='A01'>{area}</{domain}>"
            f"<quantity_Measure_Unit.name>{unit}</quantity_Measure_Unit.name>"
            f"<curveType>{self.curve}</curveType><MktPSRType><psrType>{psr}</psrType></MktPSRType>"
        )
        return head + "".join(self.period(run, power) for run in self.runs(sorted(set(moments)))) + "</TimeSeries>"

    def runs(self, moments: list[datetime]) -> list[list[datetime]]:
        """Consecutive stretches; a gap starts a new Period."""
        found: list[list[datetime]] = []
        for moment in moments:
            if found and found[-1][-1] + self.step == moment:
                found[-1].append(moment)
            else:
                found.append([moment])
        return found

    def period(self, run: list[datetime], power: float) -> str:
        minutes = int(self.step.total_seconds() // 60)
        points = []
        for position in range(1, len(run) + 1):
            if self.curve == "A03" and position > 1:
                continue
            value = "" if "null_value" in self.faults else ("x" if "string_number" in self.faults else power)
            points.append(f"<Point><position>{position}</position><quantity>{value}</quantity></Point>")
        if "disordered" in self.faults:
            points = [*points[::-1], *points[:1]]
        return (
            f"<Period><timeInterval><start>{minute(run[0])}</start><end>{minute(run[-1] + self.step)}</end>"
            f"</timeInterval><resolution>PT{minutes}M</resolution>{''.join(points)}</Period>"
        )
