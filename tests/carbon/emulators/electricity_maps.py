"""Electricity Maps v3."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.carbon.emulators.base import Emulator, iso, wave

HOUR = timedelta(hours=1)


class ElectricityMapsEmulator(Emulator):
    def __init__(self, now: datetime) -> None:
        super().__init__(now, "DE", HOUR)

    def item(self, moment: datetime, kind: str) -> dict:
        return {
            "zone": self.returned_zone(),
            "carbonIntensity": self.number(wave(moment)),
            "datetime": iso(moment),
            "updatedAt": iso(self.now - timedelta(minutes=12)),
            "createdAt": iso(self.now - timedelta(days=3)),
            "emissionFactorType": "direct" if kind == "lifecycle" and "factors_changed" in self.faults else kind,
            "isEstimated": moment > self.now - timedelta(hours=2),
            "estimationMethod": "TIME_SLICER_AVERAGE",
        }

    def answer(self, path, query, headers):
        if headers.get("auth-token") != "secret-token":
            return 401, {"message": "Invalid auth-token"}
        if query.get("zone") != self.zone:
            return 400, {"error": "Zone does not exist"}
        if "no_data_status" in self.faults:
            return {"zone": self.zone, "status": "no-data", "data": {}}
        kind = query["emissionFactorType"]
        if path == "/v3/carbon-intensity/latest":
            moments = self.moments(self.now - timedelta(hours=24), self.now)
            return self.item(max(moments), kind)
        if path == "/v3/carbon-intensity/history":
            rows = [self.item(m, kind) for m in self.moments(self.now - timedelta(hours=23), self.now)]
            return {"zone": self.returned_zone(), "history": [] if "empty_list" in self.faults else rows}
        if path == "/v3/carbon-intensity/forecast":
            hours = 5 if "short_forecast" in self.faults else 72
            rows = [
                {"carbonIntensity": self.number(wave(m)), "datetime": iso(m)}
                for m in self.moments(self.now, self.now + timedelta(hours=hours))
            ]
            rows = [] if "empty_list" in self.faults else rows
            return {"zone": self.returned_zone(), "forecast": rows, "updatedAt": iso(self.now)}
        if path == "/v3/carbon-intensity/past-range":
            start, end = datetime.fromisoformat(query["start"]), datetime.fromisoformat(query["end"])
            if end - start > timedelta(days=10):
                return 400, {"error": "range too long"}
            rows = [] if "empty_list" in self.faults else [self.item(m, kind) for m in self.moments(start, end)]
            return {"zone": self.returned_zone(), "data": rows}
        return 404, {"error": "no such path"}
