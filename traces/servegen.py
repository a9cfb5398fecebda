"""ServeGen (alibaba/ServeGen, Apache-2.0): clients as rate curves and length tables, and requests drawn from them.

`chunk-N-trace.csv` (no header): window start in s (0 is a midnight), mean rate in req/s, inter-arrival CV, fitted
family (Gamma, Weibull or empty), shape, scale. `chunk-N-dataset.json`: window start to tables of input and output
lengths, each a Python mapping as text. The summed curve has a header and no fits.
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from traces.arrivals import Family, RateWindow, arrivals, gamma_shape
from traces.formats.registry import open_bytes
from traces.lengths import Table
from traces.reader import Origin
from traces.request import TraceRequest
from traces.rows import BadField, RowError, real_number
from traces.workload import Workload

WINDOW_S = 600.0
_FAMILIES: Mapping[str, Family] = {"Gamma": "gamma", "Weibull": "weibull"}
_CURVE_COLUMNS = ("window_start_s", "requests_per_s", "rate_weighted_iat_cv")


def read_rate_windows(path: Path) -> tuple[RateWindow, ...]:
    """Windows of a client file or of the summed curve.

    A window without fit follows gamma gaps of its CV, or is empty. Raises `RowError` with the place of a bad row.
    """
    with open_bytes(path) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        first = next(reader, None)
        if first is None:
            raise ValueError(f"{path}:1:1: the file is empty")
        curve = first[0] == _CURVE_COLUMNS[0]
        if curve and (missing := [name for name in _CURVE_COLUMNS if name not in first]):
            raise ValueError(f"{path}:1:1: no column {', '.join(missing)}")
        at = {name: index for index, name in enumerate(first)} if curve else {}
        windows = []
        for fields in reader if curve else itertools.chain([first], reader):
            try:
                windows.append(_curve_window(fields, at) if curve else _client_window(fields))
            except (BadField, IndexError) as bad:
                name = bad.column if isinstance(bad, BadField) else None
                reason = bad.reason if isinstance(bad, BadField) else f"only {len(fields)} fields"
                raise RowError(path, reader.line_num, 1, name, reason) from None
            except ValueError as error:
                raise RowError(path, reader.line_num, 1, None, str(error)) from None
    return tuple(windows)


def _client_window(fields: Sequence[str]) -> RateWindow:
    start_s = real_number("window start", fields[0])
    rate_rps, cv = real_number("rate", fields[1]), real_number("CV", fields[2])
    if fields[3] and fields[3] not in _FAMILIES:
        raise BadField("family", f"{fields[3]!r} is neither Gamma nor Weibull")
    if fields[3]:
        return RateWindow(start_s, start_s + WINDOW_S, rate_rps, _FAMILIES[fields[3]], real_number("shape", fields[4]))
    return RateWindow(start_s, start_s + WINDOW_S, rate_rps, "gamma", gamma_shape(cv) if cv > 0 else 1.0)


def _curve_window(fields: Sequence[str], at: Mapping[str, int]) -> RateWindow:
    start_s, rate_rps, cv = (real_number(name, fields[at[name]]) for name in _CURVE_COLUMNS)
    return RateWindow(start_s, start_s + WINDOW_S, rate_rps, "gamma", gamma_shape(cv) if cv > 0 else 1.0)


@dataclass(frozen=True, slots=True)
class LengthWindow:
    start_s: float
    input_tokens: Table
    output_tokens: Table


class _Tables(msgspec.Struct):
    input_tokens: str
    output_tokens: str


def read_length_windows(path: Path) -> tuple[LengthWindow, ...]:
    """Length tables in order of time; windows without requests are left out. Raises `ValueError` naming the window."""
    with open_bytes(path) as stream:
        try:
            by_start = msgspec.json.decode(stream.read(), type=dict[str, _Tables])
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: not a ServeGen dataset: {error}") from None
    windows = []
    for start, tables in by_start.items():
        try:
            inputs, outputs = _table(tables.input_tokens), _table(tables.output_tokens)
            if inputs is not None and outputs is not None:
                windows.append(LengthWindow(real_number("window start", start), inputs, outputs))
        except (BadField, ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"{path}: window {start}: {error}") from None
    if not windows:
        raise ValueError(f"{path}: no window has lengths")
    return tuple(sorted(windows, key=lambda window: window.start_s))


def _table(text: str) -> Table | None:
    probability = cast(dict[int, float], ast.literal_eval(text))
    if not isinstance(probability, dict):
        raise ValueError(f"not a mapping of tokens to probabilities: {text[:40]!r}")
    positive = {max(1, int(tokens)): float(share) for tokens, share in probability.items()}
    return Table.of(positive) if positive else None


@dataclass(frozen=True, slots=True)
class _Client:
    """Re-iterable requests of one client. An empty window has the lengths of the one before it (or of the first)."""

    name: str
    windows: Sequence[RateWindow]
    lengths: Sequence[LengthWindow]
    seed: int

    def __iter__(self) -> Iterator[TraceRequest]:
        arrival_seed, length_seed = np.random.SeedSequence(self.seed).spawn(2)
        rng = np.random.Generator(np.random.PCG64(length_seed))
        starts = [window.start_s for window in self.lengths]
        for arrival_s in arrivals(self.windows, np.random.Generator(np.random.PCG64(arrival_seed))):
            lengths = self.lengths[max(0, bisect_right(starts, arrival_s) - 1)]
            yield TraceRequest(
                round(arrival_s, 6), lengths.input_tokens.draw(rng), lengths.output_tokens.draw(rng), task=self.name
            )


def client_workload(
    trace: Path, dataset: Path, seed: int, start_s: float = 0.0, end_s: float | None = None, rate_factor: float = 1.0
) -> Workload:
    """Requests of one client between two times of its 14 days, at `rate_factor` times its rate; times do not change."""
    windows = tuple(
        replace(
            window,
            start_s=max(window.start_s, start_s),
            end_s=window.end_s if end_s is None else min(window.end_s, end_s),
            rate_rps=window.rate_rps * rate_factor,
        )
        for window in read_rate_windows(trace)
        if window.end_s > start_s and (end_s is None or window.start_s < end_s)
    )
    if not windows:
        raise ValueError(f"{trace}: no window between {start_s:g} and {end_s} s")
    name = trace.name.removesuffix("-trace.csv")
    step = f"drawn from ServeGen {name}, rate x {rate_factor:g}, seed {seed}"
    client = _Client(name, windows, read_length_windows(dataset), seed)
    return Workload(client, name, "synthetic", Origin(None, 0.0), (step,))


def client_files(folder: Path) -> tuple[tuple[Path, Path], ...]:
    """Pairs of rate and length files in a ServeGen folder, by client number."""
    found = []
    for trace in folder.glob("chunk-*-trace.csv"):
        dataset = trace.with_name(trace.name.replace("-trace.csv", "-dataset.json"))
        if dataset.is_file():
            found.append((int(trace.name.split("-")[1]), trace, dataset))
    if not found:
        raise ValueError(f"{folder}: no ServeGen clients (chunk-N-trace.csv beside chunk-N-dataset.json)")
    return tuple((trace, dataset) for _, trace, dataset in sorted(found))


def folder_workload(
    folder: Path, seed: int, start_s: float = 0.0, end_s: float | None = None, rate_factor: float = 1.0
) -> Workload:
    """All clients of a folder together; each draws from a seed of its own. Arrivals count from `start_s`."""
    parts = [
        client_workload(trace, dataset, seed + number, start_s, end_s, rate_factor)
        for number, (trace, dataset) in enumerate(client_files(folder))
    ]
    whole = parts[0].merge(*parts[1:]) if len(parts) > 1 else parts[0]
    return whole.shift(-start_s) if start_s else whole
