"""Read a trace of any known format as a stream: constant memory, every oddity counted, every error with its place."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from traces.formats.layout import CsvLayout, JsonlLayout, Layout
from traces.formats.native import NATIVE_VERSION, NativeHeader
from traces.formats.registry import detect_layout, layout_named, open_bytes
from traces.request import TraceRequest
from traces.rows import SECONDS_PER, BadField, ReadOptions, Row, RowCounts, RowError
from traces.window import clip_to_window

SECONDS_A_DAY = 86_400.0
_STAMP_DIGITS = 6
_JSON_PATH = re.compile(r"at `\$\.([A-Za-z_]+)")
_JSON_BYTE = re.compile(r"\(byte (\d+)\)")


@dataclass(frozen=True, slots=True)
class Origin:
    """What arrival 0 means: a moment (UTC where the file names no offset), or only a time of day (seconds)."""

    started_at: datetime | None = None
    seconds_of_day: float | None = None


class TraceFile:
    """A trace on disk; each iteration is one pass from the start. `counts` tells of the latest pass."""

    def __init__(self, path: Path, format: str | None = None, options: ReadOptions | None = None) -> None:
        self.path = path
        self.options = options or ReadOptions()
        self.layout: Layout = layout_named(format) if format else detect_layout(path)
        if self.layout.name == "vidur-lengths":
            raise ValueError(
                f"{path}: lengths without arrival times. Draw arrivals for them: "
                f"gridserve traces synthesize --lengths {path} --rate R --out FILE"
            )
        self.counts = RowCounts()
        self._header = _native_header(path) if self._native else None

    @property
    def _native(self) -> bool:
        return isinstance(self.layout, JsonlLayout) and self.layout.header_format is not None

    @property
    def header(self) -> NativeHeader | None:
        """The first line of a native file, else None."""
        return self._header

    @property
    def origin(self) -> Origin:
        """Reads up to the first good row."""
        if self._header is not None:
            started = self._header.started_at
            return Origin(datetime.fromisoformat(started) if started else None, self._header.seconds_of_day)
        first = next(_rows(self.path, self.layout, self.options, RowCounts()), None)
        if first is None:
            return Origin()
        stamp_s = first.stamp_s
        zero = self.layout.stamp_zero
        if zero == "unix":
            return Origin(datetime.fromtimestamp(stamp_s, UTC), stamp_s % SECONDS_A_DAY)
        if zero == "unknown":
            return Origin()
        offset_s = SECONDS_A_DAY / 2 if zero == "noon" else 0.0
        return Origin(None, (stamp_s + offset_s) % SECONDS_A_DAY)

    def __iter__(self) -> Iterator[TraceRequest]:
        options = self.options
        counts = self.counts = RowCounts()
        clock = _Clock(options, counts, rebase=options.rebase and not self._native)
        for row in _rows(self.path, self.layout, options, counts, clock):
            arrival_s, input_tokens, output_tokens, extras = row
            if not extras.get("session_id"):
                counts.without_session += 1
            if output_tokens == 0:
                counts.zero_outputs += 1
                if options.zero_output == "drop":
                    counts.dropped_zero_output += 1
                    continue
            request = TraceRequest(arrival_s, input_tokens, output_tokens, **extras)
            if options.window_tokens is not None and input_tokens + output_tokens > options.window_tokens:
                if options.over_window == "drop":
                    counts.dropped_over_window += 1
                    continue
                request = clip_to_window(request, options.window_tokens)
                counts.clipped_over_window += 1
                counts.clipped_input_tokens += input_tokens - request.input_tokens
                counts.clipped_output_tokens += output_tokens - request.output_tokens
            counts.requests += 1
            yield request


def read_length_pairs(path: Path) -> list[tuple[int, int]]:
    """Lengths of all rows of a file of any format, with arrivals or not; rows without answer are left out."""
    layout = detect_layout(path)
    rows = _rows(path, layout, ReadOptions(), RowCounts())
    return [(row.input_tokens, row.output_tokens) for row in rows if row.output_tokens > 0]


class _Clock:
    """Turns stamps of the file into arrivals, never decreasing."""

    def __init__(self, options: ReadOptions, counts: RowCounts, rebase: bool) -> None:
        self._backwards = options.backwards
        self._counts = counts
        self._zero_s: float | None = None if rebase else 0.0
        self._latest_s = 0.0
        self._started = False

    def arrival(self, stamp_s: float) -> float:
        if self._zero_s is None:
            self._zero_s = stamp_s
        arrival_s = round(stamp_s - self._zero_s, _STAMP_DIGITS)
        if self._started and arrival_s <= self._latest_s:
            if arrival_s == self._latest_s:
                self._counts.equal_stamps += 1
            else:
                arrival_s = self._went_back(stamp_s, arrival_s)
        self._started = True
        self._latest_s = arrival_s
        return arrival_s

    def _went_back(self, stamp_s: float, arrival_s: float) -> float:
        assert self._zero_s is not None
        self._counts.backwards_stamps += 1
        if self._backwards == "error":
            raise _BackwardsError(
                f"the stamp goes back by {self._latest_s - arrival_s:g} s. If the clock restarted read with "
                "--backwards continue, if rows are slightly out of order with --backwards clamp"
            )
        if self._backwards == "continue":
            self._zero_s = stamp_s - self._latest_s
        return self._latest_s


class _BackwardsError(BadField):
    """Never skipped as a bad row: one restarted clock would silently drop all that follows."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)


Locate = Callable[[str | None], int]


def _rows(
    path: Path, layout: Layout, options: ReadOptions, counts: RowCounts, clock: _Clock | None = None
) -> Iterator[Row]:
    """Good rows in file order, with arrivals in place of stamps where a clock is given."""
    unit = options.time_unit or layout.time_unit
    if options.time_unit is not None and layout.time_unit is None:
        raise ValueError(f"{path}: the stamps of {layout.name} are dates; leave --time-unit away")
    seconds_per_unit = SECONDS_PER[unit] if unit else 1.0
    with open_bytes(path) as stream:
        if isinstance(layout, CsvLayout):
            parsed = _csv_rows(path, layout, stream, seconds_per_unit)
        else:
            parsed = _jsonl_rows(path, layout, stream, seconds_per_unit)
        window = options.window_tokens if options.over_window == "error" else None
        for line, locate, parse in parsed:
            counts.rows += 1
            try:
                row = parse()
                if window is not None and row.input_tokens + row.output_tokens > window:
                    raise BadField(
                        None,
                        f"{row.input_tokens} + {row.output_tokens} tokens exceed the window of {window}; "
                        "choose --over-window clip or drop",
                    )
                if clock is not None:
                    row = row._replace(stamp_s=clock.arrival(row.stamp_s))
            except BadField as bad:
                if options.skip_bad and not isinstance(bad, _BackwardsError):
                    counts.bad += 1
                    reason = bad.column or "row"
                    counts.bad_reasons[reason] = counts.bad_reasons.get(reason, 0) + 1
                    continue
                raise RowError(path, line, locate(bad.column), bad.column, bad.reason) from None
            yield row


Parsed = Iterator[tuple[int, Locate, Callable[[], Row]]]


def _csv_rows(path: Path, layout: CsvLayout, stream: BinaryIO, seconds_per_unit: float) -> Parsed:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="backslashreplace", newline="")
    raw = ""

    def tapped() -> Iterator[str]:
        nonlocal raw
        while raw := text.readline():
            yield raw

    reader = csv.reader(tapped(), strict=True)
    header = next(reader, None)
    if header is None:
        raise ValueError(f"{path}:1:1: the file is empty")
    missing = [name for name in layout.required if name not in header]
    if missing:
        raise ValueError(f"{path}:1:1: no column {', '.join(map(repr, missing))}; it has {', '.join(header)}")
    at = {name: index for index, name in enumerate(header)}
    parse_fields = layout.bind(at, seconds_per_unit)
    width = len(header)
    fields: list[str] = []
    broken: str | None = None

    def parse() -> Row:
        if broken is not None:
            raise BadField(None, f"not CSV: {broken}")
        if len(fields) != width:
            raise BadField(None, f"{len(fields)} fields where the header has {width}")
        return parse_fields(fields)

    def locate(column: str | None) -> int:
        return 1 if column is None else _field_offset(raw, at[column]) + 1

    while True:
        broken = None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            broken = str(error)
        if fields or broken:
            yield reader.line_num, locate, parse


def _field_offset(line: str, index: int) -> int:
    """Offset of a field in a CSV line."""
    quoted = False
    for offset, character in enumerate(line):
        if index == 0:
            return offset
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            index -= 1
    return len(line)


def _jsonl_rows(path: Path, layout: JsonlLayout, stream: BinaryIO, seconds_per_unit: float) -> Parsed:
    decoder = msgspec.json.Decoder(layout.record)
    parse_record = layout.bind(seconds_per_unit)
    raw = b""

    def parse() -> Row:
        try:
            return parse_record(decoder.decode(raw))
        except msgspec.ValidationError as error:
            place = _JSON_PATH.search(str(error))
            raise BadField(place.group(1) if place else None, str(error)) from None
        except msgspec.DecodeError as error:
            raise BadField(None, str(error)) from None

    def locate(column: str | None) -> int:
        if column is not None:
            return max(raw.find(f'"{column}"'.encode()), 0) + 1
        try:
            decoder.decode(raw)
        except msgspec.DecodeError as error:
            place = _JSON_BYTE.search(str(error))
            return int(place.group(1)) + 1 if place else 1
        return 1

    numbered = enumerate(stream, start=1)
    for number, raw in itertools.islice(numbered, 1 if layout.header_format else 0, None):
        if raw.strip():
            yield number, locate, parse


def _native_header(path: Path) -> NativeHeader:
    with open_bytes(path) as stream:
        first = stream.readline()
    try:
        header = msgspec.json.decode(first, type=NativeHeader)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}:1:1: the header of a native trace cannot be read: {error}") from None
    if header.format != NATIVE_VERSION:
        raise ValueError(f"{path}:1:1: format {header.format!r} is not {NATIVE_VERSION!r}, the version known here")
    return header
