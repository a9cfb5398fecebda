"""WattTime v3: tokens of 30 minutes, inclusive ranges, pounds per megawatt-hour."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.carbon.emulators.base import Emulator, wave

GRAMS_PER_POUND_PER_MWH = 0.45359237


class WattTimeEmulator(Emulator):
    def __init__(self, now: datetime) -> None:
        super().__init__(now, "CAISO_NORTH", timedelta(minutes=5))
        self.logins = 0
        self.token: str | None = None

    def answer(self, path, query, headers):
        if path == "/login":
            if headers.get("authorization") != "Basic dXNlcjpwYXNz":
                return 401, {"error": "bad login"}
            self.logins += 1
            self.token = f"token-{self.logins}"
            return {"token": self.token}
        if self._has("token_expired"):
            self.token = None
        if self.token is None or headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "token expired"}
        if query.get("region") != self.zone:
            return 403, {"error": "no access to region"}
        if path == "/v3/forecast":
            hours = int(query["horizon_hours"])
            hours = min(hours, 2) if "short_forecast" in self.faults else hours
            moments = self.moments(self.now, self.now + timedelta(hours=hours))
        elif path == "/v3/historical":
            start, end = datetime.fromisoformat(query["start"]), datetime.fromisoformat(query["end"])
            if end - start > timedelta(days=32):
                return 400, {"error": "range too long"}
            moments = self.moments(start, end + self.step)
        else:
            return 404, {"error": "no such path"}
        rows = [{"point_time": m.isoformat(), "value": self.number(wave(m) / GRAMS_PER_POUND_PER_MWH)} for m in moments]
        units = "percentile" if "percentile" in self.faults else "lbs_co2_per_mwh"
        return {
            "data": [] if "empty_list" in self.faults else rows,
            "meta": {
                "region": self.returned_zone(),
                "signal_type": query["signal_type"],
                "units": units,
                "generated_at": self.now.isoformat(),
                "model": {"date": "2023-03-01"},
                "warnings": [],
            },
        }
