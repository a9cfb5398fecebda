"""The benchmark's inputs, read from a folder laid out like the shared `carbon/` data: intensity, prompts, task mix."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carbon.feeds.recorded import electricity_maps_format, read_series
from carbon.intensity import Boundary
from carbon.series import IntensitySeries

Array = NDArray[np.float64]

FIRST_HOUR = 800
HOURS = 720
TASKS = ("alpaca", "math", "mmlu", "naturalqa", "triviaqa", "scienceqa")
LEVELS = 3
ZONES = {"TX": "US-TEX-ERCO", "CA": "US-CAL-CISO", "SA": "AU-SA", "NL": "NL", "GB": "GB"}
RESULT_NAMES = {"TX": "US-TEX", "CA": "US-CAL", "SA": "AU-SA", "NL": "NL", "GB": "GB"}


@dataclass(frozen=True, slots=True)
class Published:
    """SPROUT's own results of a zone, one entry an hour: shapes `[720]`, `x` `[720, 3]`."""

    intensity: Array
    x: Array
    grams: Array
    preference: Array
    base_grams: Array
    base_preference: Array
    assessed_at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Judged prompts: `task` `[n]` int, `preferred` `[n]` int, `energy_j` and `time_s` `[n, 3]`."""

    text: tuple[str, ...]
    task: NDArray[np.int64]
    preferred: NDArray[np.int64]
    energy_j: Array
    time_s: Array

    def subset(self, index: NDArray[np.int64]) -> Prompts:
        text = tuple(self.text[i] for i in index)
        return Prompts(text, self.task[index], self.preferred[index], self.energy_j[index], self.time_s[index])

    def __len__(self) -> int:
        return len(self.text)


def read_year(folder: Path, zone: str) -> IntensitySeries:
    path = folder / "electricitymaps-2023-hourly" / f"{ZONES[zone]}_2023_hourly.csv"
    return read_series(path, electricity_maps_format(Boundary.DIRECT), datetime.now(UTC))


def read_published(folder: Path, zone: str) -> Published:
    results = folder / "sprout" / "results_season_800"
    name = RESULT_NAMES[zone]
    sprout = json.loads((results / f"{name}_lp_opt_pai_gen.json").read_text())
    base = json.loads((results / f"{name}_baseline_opt_pai_gen.json").read_text())
    assessed = json.loads((results / f"{name}_offline_assessment.json").read_text())
    return Published(
        intensity=np.array(sprout["ci"]),
        x=np.array(sprout["x"]),
        grams=np.array(sprout["carbon_per_req"]),
        preference=np.array(sprout["quality_preference"]),
        base_grams=np.array(base["carbon_per_req"]),
        base_preference=np.array(sprout["pref_max"]),
        assessed_at=tuple(assessed),
    )


def read_prompts(folder: Path) -> Prompts:
    with gzip.open(folder / "sprout" / "judged_prompts.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Prompts(
        text=tuple(row["prompt"] for row in rows),
        task=np.array([TASKS.index(row["task"]) for row in rows]),
        preferred=np.array([int(row["preferred_level"]) for row in rows]),
        energy_j=np.array([[float(row[f"energy_j_l{level}"]) for level in range(LEVELS)] for row in rows]),
        time_s=np.array([[float(row[f"time_s_l{level}"]) for level in range(LEVELS)] for row in rows]),
    )


def task_mix(folder: Path, hours: int = HOURS) -> Array:
    """Shares of the six tasks in each hour, `[hours, 6]`, as SPROUT draws them from the Alibaba-PAI counts.

    numpy's legacy generator with seed 0: one start row a task, then at each change the next row of every task, and
    a gap of `round(normal(24, 4.8))` hours to the next change (artifact `utils.PromptGeneratorPAI`).
    """
    with (folder / "sprout" / "pai.csv").open(encoding="utf-8", newline="") as file:
        counts = np.array([float(row["job_name"]) for row in csv.DictReader(file)])
    random = np.random.RandomState(0)
    starts = [random.randint(0, len(counts) - HOURS // 24) for _ in TASKS]
    mix = np.zeros((hours, len(TASKS)))
    change_at, changes = 0, 0
    for hour in range(hours):
        if hour >= change_at:
            drawn = np.array([counts[start + changes] for start in starts])
            current = drawn / drawn.sum()
            changes += 1
            change_at += round(random.normal(24, 4.8))
        mix[hour] = current
    return mix
