"""The Green Software Foundation's SDK, with its defects: null becomes -1, unknown query names are ignored."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.carbon.emulators.base import Emulator, iso, wave


class CarbonAwareSdkEmulator(Emulator):
    def __init__(self, now: datetime) -> None:
        super().__init__(now, "eastus", timedelta(minutes=5))

    def answer(self, path, query, headers):
        if query.get("location") != self.zone:
            return 400, {"title": "ArgumentException", "errors": {"location": ["unknown"]}, "status": 400}
        if path == "/emissions/bylocation":
            start, end = datetime.fromisoformat(query["time"]), datetime.fromisoformat(query["toTime"])
            if "window_ignored" in self.faults:
                start, end = self.now - timedelta(minutes=5), self.now
            rows = [
                {
                    "location": self.returned_zone(),
                    "time": iso(m),
                    "rating": -1 if self._has("minus_one") else self.number(wave(m)),
                    "duration": "00:05:00",
                }
                for m in self.moments(start, end)
            ]
            return [] if "empty_list" in self.faults else rows
        if path == "/emissions/forecasts/current":
            hours = 1 if "short_forecast" in self.faults else 24
            rows = [
                {"location": self.returned_zone(), "timestamp": iso(m), "duration": 5, "value": self.number(wave(m))}
                for m in self.moments(self.now, self.now + timedelta(hours=hours))
            ]
            rows = [] if "empty_list" in self.faults else rows
            return [{"generatedAt": iso(self.now), "location": self.zone, "forecastData": rows}]
        return 404, {"title": "Not Found", "status": 404}
