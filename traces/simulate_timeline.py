"""What a simulation draws and does over time, one row a sample."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

COLUMNS = (
    "end_s",
    "seconds",
    "energy_j",
    "idle_j",
    "clock_mhz",
    "running",
    "waiting",
    "arrivals",
    "tokens",
    "g_per_kwh",
)


class Timeline:
    """Columns of equal length. Each row covers `seconds` up to `end_s`; `energy_j` of all GPUs, `clock_mhz` their mean,
    `idle_j` what the idle power took, `arrivals` and `tokens` counts. `g_per_kwh` is NaN where unknown."""

    def __init__(self, columns: dict[str, NDArray[np.float64]] | None = None) -> None:
        self._arrays = {name: array("d", () if columns is None else columns[name].tolist()) for name in COLUMNS}

    def append(self, **row: float) -> None:
        for name, column in self._arrays.items():
            column.append(row[name])

    def __len__(self) -> int:
        return len(self._arrays["end_s"])

    def column(self, name: str) -> NDArray[np.float64]:
        return np.frombuffer(self._arrays[name], dtype=np.float64) if len(self) else np.empty(0)

    def with_column(self, name: str, values: Sequence[float]) -> Timeline:
        columns = {each: self.column(each) for each in COLUMNS}
        return Timeline(columns | {name: np.asarray(values, dtype=np.float64)})

    @property
    def mean_g_per_kwh(self) -> float | None:
        """Time-weighted; None where any intensity is missing."""
        values, seconds = self.column("g_per_kwh"), self.column("seconds")
        mean = float((values * seconds).sum() / seconds.sum())
        return None if math.isnan(mean) else mean

    @property
    def power_w(self) -> NDArray[np.float64]:
        """Mean power of all GPUs in each row."""
        return np.asarray(self.column("energy_j") / self.column("seconds"))

    def percentile_w(self, percent: float) -> float | None:
        """Time-weighted percentile of power."""
        if not len(self):
            return None
        order = np.argsort(self.power_w)
        weight = np.cumsum(self.column("seconds")[order])
        place = int(np.searchsorted(weight, percent / 100.0 * weight[-1]))
        return float(self.power_w[order][min(place, len(order) - 1)])

    def grams(self, pue: float) -> float | None:
        """Operational grams; None where any intensity is missing."""
        grams = self.column("energy_j") / 3.6e6 * pue * self.column("g_per_kwh")
        total = float(grams.sum())
        return None if np.isnan(total) else total

    def write(self, path: Path) -> None:
        scratch = path.with_name(f".{path.name}.part")
        pq.write_table(pa.table({name: self.column(name) for name in COLUMNS}), scratch, compression="zstd")
        os.replace(scratch, path)

    @classmethod
    def read(cls, path: Path) -> Timeline:
        table = pq.read_table(path)
        return cls({name: table.column(name).to_numpy() for name in COLUMNS})
