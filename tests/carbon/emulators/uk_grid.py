"""The UK's Carbon Intensity API: half-hours, times without seconds, and a first slot that ends at `from`."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.carbon.emulators.base import Emulator, wave

HALF_HOUR = timedelta(minutes=30)


def minute(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%MZ")


class UkGridEmulator(Emulator):
    def __init__(self, now: datetime) -> None:
        super().__init__(now, "GB", HALF_HOUR)

    def slot(self, moment: datetime) -> dict:
        past = moment < self.now - HALF_HOUR
        value = self.number(wave(moment))
        return {
            "from": minute(moment),
            "to": minute(moment + HALF_HOUR),
            "intensity": {"forecast": value, "actual": value if past else None, "index": "moderate"},
        }

    def answer(self, path, query, headers):
        parts = path.strip("/").split("/")
        if parts == ["intensity"]:
            moments = self.moments(self.now - timedelta(hours=24), self.now)[-1:]
            if "disordered" in self.faults:
                moments = self.moments(self.now - timedelta(minutes=30), self.now)
        elif len(parts) == 3 and parts[2] == "fw48h":
            start = datetime.fromisoformat(parts[1])
            slots = 29 if "short_forecast" in self.faults else 96
            moments = self.moments(start - HALF_HOUR, start + slots * HALF_HOUR)
        elif len(parts) == 3:
            start, end = datetime.fromisoformat(parts[1]), datetime.fromisoformat(parts[2])
            if end - start > timedelta(days=14):
                return 400, {"error": {"code": "400 Bad Request", "message": "maximum range is 14 days"}}
            moments = self.moments(start - HALF_HOUR, end)
        else:
            return 400, {"error": {"code": "400 Bad Request", "message": "Please enter a valid path e.g. /intensity/"}}
        return {"data": [] if "empty_list" in self.faults else [self.slot(m) for m in moments]}
