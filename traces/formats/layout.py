"""The two shapes a trace file has, CSV and JSON lines, as data that a reader can drive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from traces.rows import BadField, Row, TimeUnit

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ParseFields = Callable[[Sequence[str]], Row]
ParseRecord = Callable[[Any], Row]


@dataclass(frozen=True, slots=True)
class CsvLayout:
    """A CSV file with a header. `bind(positions, seconds_per_unit)` gives the parser of its rows.

    `required` columns tell the format; `refused` columns belong to a sibling format. `stamp_zero`: what stamp 0
    means: the Unix epoch, a midnight, a noon, or nothing. `time_unit`: of numeric stamps; None when the stamps are
    dates.
    """

    name: str
    title: str
    required: tuple[str, ...]
    bind: Callable[[Mapping[str, int], float], ParseFields]
    time_unit: TimeUnit | None
    stamp_zero: Literal["unix", "midnight", "noon", "unknown"] = "unknown"
    refused: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JsonlLayout:
    """JSON lines. `record` is the msgspec type of a line, `bind(seconds_per_unit)` turns one into a `Row`.

    `required` keys tell the format, the one with most of them first.
    """

    name: str
    title: str
    required: tuple[str, ...]
    record: type[msgspec.Struct]
    bind: Callable[[float], ParseRecord]
    time_unit: TimeUnit
    stamp_zero: Literal["unix", "midnight", "noon", "unknown"] = "unknown"
    header_format: str | None = None


Layout = CsvLayout | JsonlLayout


def date_stamp(column: str, text: str) -> float:
    """Seconds since the Unix epoch of an ISO date and time; one without offset is taken as UTC.

    Any number of fraction digits is accepted and cut to microseconds; none is accepted too.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadField(column, f"{text!r} is not a date and time (YYYY-MM-DD HH:MM:SS[.fraction][offset])") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - UNIX_EPOCH).total_seconds()
