"""Make the synthetic traces and intensity series that ship under `traces/data/`; nothing in them is recorded.

Run from the repository's root with `PYTHONPATH=. python scripts/make_bundled_traces.py [--check]`. Traces are drawn
from the specs beside them (each names its seed), intensity series from the shapes below and `INTENSITY_SEED`.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from traces.export import export
from traces.synthesis import synthesize
from traces.synthesis_spec import read_spec

DATA = Path(__file__).parents[1] / "traces" / "data"
INTENSITY_SEED = 20260101
START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
HOURS = 14 * 24


@dataclass(frozen=True)
class IntensityShape:
    """A made-up grid: mean g/kWh, a midday dip (solar), an evening peak, and weather that wanders over days.

    The shape is invented; its spread is of the order that public hourly series show (coefficient of variation
    0.2 to 0.9 between zones).
    """

    zone: str
    mean_g_per_kwh: float
    midday_dip: float
    evening_peak: float
    weather: float
    weather_memory_h: float
    least_g_per_kwh: float

    def values(self, rng: np.random.Generator) -> Iterator[float]:
        memory = math.exp(-1.0 / self.weather_memory_h)
        noise = math.sqrt(1.0 - memory * memory)
        weather = float(rng.standard_normal())
        for hour in range(HOURS):
            of_day = hour % 24
            midday = math.exp(-(((of_day - 13.0) / 3.0) ** 2))
            evening = math.exp(-(((of_day - 19.0) / 2.5) ** 2))
            factor = 1.0 - self.midday_dip * midday + self.evening_peak * evening + self.weather * weather
            yield round(max(self.least_g_per_kwh, self.mean_g_per_kwh * factor), 1)
            weather = memory * weather + noise * float(rng.standard_normal())


SHAPES = (
    IntensityShape("SYN-SOLAR", 240.0, 0.55, 0.30, 0.08, 12.0, 40.0),
    IntensityShape("SYN-WIND", 180.0, 0.10, 0.15, 0.45, 30.0, 20.0),
    IntensityShape("SYN-FLAT", 400.0, 0.03, 0.05, 0.03, 12.0, 300.0),
)


def intensity_csv(shape: IntensityShape, rng: np.random.Generator) -> str:
    """Our own two columns: start of the hour with its offset, and g/kWh."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("start", "g_per_kwh"))
    for hour, value in enumerate(shape.values(rng)):
        writer.writerow(((START + timedelta(hours=hour)).isoformat(), value))
    return text.getvalue()


def make(folder: Path) -> list[Path]:
    """Write all files to a folder and return them."""
    made = []
    for spec_path in sorted(DATA.glob("*.spec.yaml")):
        path = folder / spec_path.name.replace(".spec.yaml", ".jsonl")
        export(synthesize(read_spec(spec_path)), path, "native")
        made.append(path)
    seeds = np.random.SeedSequence(INTENSITY_SEED).spawn(len(SHAPES))
    for shape, seed in zip(SHAPES, seeds, strict=True):
        path = folder / f"intensity_synthetic_{shape.zone.removeprefix('SYN-').lower()}.csv"
        path.write_text(intensity_csv(shape, np.random.Generator(np.random.PCG64(seed))))
        made.append(path)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if a shipped file is not what the script makes")
    if not parser.parse_args().check:
        for path in make(DATA):
            print(f"{path.name}: {path.stat().st_size:,} bytes")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        stale = [path.name for path in make(Path(scratch)) if (DATA / path.name).read_bytes() != path.read_bytes()]
    for name in stale:
        print(f"{name} is not what the script makes; run it without --check", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
