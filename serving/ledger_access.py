"""The ledger as the control plane holds it: the writer and both readers of one place, opened and closed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving.ledger.engine import Location
from serving.ledger.reader import LedgerReader
from serving.ledger.telemetry_reader import TelemetryReader
from serving.ledger.writer import LedgerWriter


@dataclass(frozen=True, slots=True)
class Ledger:
    location: Location
    writer: LedgerWriter
    reader: LedgerReader
    telemetry: TelemetryReader

    def close(self) -> None:
        """Write what is queued and let go."""
        self.writer.close()
        self.reader.close()
        self.telemetry.close()


def open_ledger(
    location: Location,
    *,
    keep_text: Callable[[str | None], bool] = lambda tenant: False,
    on_alarm: Callable[[str | None], None] | None = None,
) -> Ledger:
    """Raises `LedgerError` when the ledger cannot be opened, or another process writes to it."""
    writer = LedgerWriter(location, keep_text=keep_text, on_alarm=on_alarm)
    writer.start()
    return Ledger(location, writer, LedgerReader(location), TelemetryReader(location))
