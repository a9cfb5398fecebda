"""Our own JSON lines: a header line that says what the file is, then one `TraceRequest` a line.

Gives back what was written, without loss; the header names units, origin and how the rows came to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from traces.formats.layout import JsonlLayout, ParseRecord
from traces.request import TraceRequest
from traces.rows import Row

NATIVE_VERSION = "gridserve-trace/1"
_ROW_FIELDS = ("arrival_s", "input_tokens", "output_tokens")
_EXTRA_FIELDS = tuple(name for name in TraceRequest.__struct_fields__ if name not in _ROW_FIELDS)


class NativeHeader(msgspec.Struct, omit_defaults=True):
    """First line. `obtained`: recorded / synthetic. `started_at`: ISO date and time of `arrival_s` = 0."""

    format: str
    name: str
    obtained: str
    source: str
    started_at: str | None = None
    seconds_of_day: float | None = None
    steps: tuple[str, ...] = ()


def _bind(seconds_per_unit: float) -> ParseRecord:
    def parse(record: TraceRequest) -> Row:
        extras: dict[str, Any] = {}
        for name in _EXTRA_FIELDS:
            value = getattr(record, name)
            if value is not None and value != () and value != 0:
                extras[name] = value
        if record.judged_row == 0:
            extras["judged_row"] = 0
        return Row(record.arrival_s * seconds_per_unit, record.input_tokens, record.output_tokens, extras)

    return parse


def native_lines(header: NativeHeader, requests: Iterable[TraceRequest]) -> Iterator[bytes]:
    """Lines of a native file, each with its line end."""
    encoder = msgspec.json.Encoder()
    yield encoder.encode(header) + b"\n"
    for request in requests:
        yield encoder.encode(request) + b"\n"


NATIVE = JsonlLayout(
    name="native",
    title="gridserve JSON lines",
    required=("arrival_s", "input_tokens", "output_tokens"),
    record=TraceRequest,
    bind=_bind,
    time_unit="s",
    header_format=NATIVE_VERSION,
)
