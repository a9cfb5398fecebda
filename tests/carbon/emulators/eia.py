"""EIA v2: pages of rows, values as text, storage that is negative, newest hours without all fuels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.carbon.emulators.base import Emulator

HOUR = timedelta(hours=1)
# Gas 100 and wind 300: 130.75 g/kWh lifecycle. The sun's own use at night and batteries must not count.
MIX = {"NG": "100", "WND": 300, "SUN": "-2", "BAT": -40}


class EiaEmulator(Emulator):
    def __init__(self, now: datetime) -> None:
        super().__init__(now, "CISO", HOUR)
        self.page = 5000

    def answer(self, path, query, headers):
        if query.get("api_key") != "secret-token":
            return 403, {"error": {"code": "API_KEY_INVALID"}}
        if query.get("frequency") != "hourly" or ":" in query["start"]:
            return 400, {"error": "bad request", "code": 400}
        start = datetime.strptime(query["start"], "%Y-%m-%dT%H").replace(tzinfo=UTC)
        end = datetime.strptime(query["end"], "%Y-%m-%dT%H").replace(tzinfo=UTC)
        ends = self.moments(start, min(end, self.now - HOUR) + HOUR)
        newest = max(ends, default=None)
        rows = [
            {
                "period": moment.strftime("%Y-%m-%dT%H"),
                "respondent": self.returned_zone(),
                "fueltype": fuel,
                "type-name": fuel,
                "value": self.value(value),
                "value-units": "megawatts" if "units_changed" in self.faults else "megawatthours",
            }
            for moment in ends
            for fuel, value in MIX.items()
            if not (moment == newest and fuel == "WND")
        ]
        rows = [] if "empty_list" in self.faults else rows
        offset, length = int(query["offset"]), min(int(query["length"]), self.page)
        return {"response": {"total": str(len(rows)), "data": rows[offset : offset + length]}}

    def value(self, value):
        if self._has("null_value"):
            return None
        return "many" if self._has("string_number") else value
