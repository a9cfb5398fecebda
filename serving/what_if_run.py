"""`python -m serving.what_if_run`: one what-if from stdin to stdout, in a process of its own so that serving keeps its
time. A `Question` in JSON comes in, two `WhatIfOutcome` go out; a question that cannot be answered is one line on
stderr and status 1. Everything in an outcome is *simulated*.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec

from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology
from carbon.series import IntensitySeries
from power.model_shape import ModelShape
from power.profile import load_engine, load_profile
from power.twin import Twin
from serving.admin_schema.policy import WhatIfOutcome
from traces.reader import Origin
from traces.request import BASELINE_LEVEL, TraceRequest
from traces.simulate_grid import Grid
from traces.simulate_policy import SimulationPolicy, SloSettings
from traces.simulate_settings import SimulationSettings
from traces.workload import Workload

if TYPE_CHECKING:
    from traces.simulate import SimulationOutcome
    from traces.twin_step import PreparedTwin

ENGINE_PROFILE = "vllm-0.11"


class Asked(msgspec.Struct, frozen=True):
    """One recorded request; `level`: the directive it was served with."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    task: str | None = None
    level: str | None = None


class Mixes(msgspec.Struct, frozen=True):
    """Directives to choose anew: for each prompt class the share of each level, and each level's expected length as a
    share of L0's. Classes that are not named take those of `""`."""

    levels: tuple[str, ...]
    shares: dict[str, tuple[float, ...]]
    lengths: dict[str, tuple[float, ...]]


class Variant(msgspec.Struct, frozen=True):
    """One policy. `mixes` None: every answer keeps the length it had."""

    revision: str
    policy: SimulationPolicy
    slo: SloSettings
    pue: float
    mixes: Mixes | None = None


class Question(msgspec.Struct, frozen=True):
    """`intensity`: `(start, end, g/kWh)`, seconds since 1970; empty: grams stay unknown."""

    gpu: str
    shape: dict[str, Any]
    started_unix_s: float
    requests: list[Asked]
    variants: list[Variant]
    max_num_seqs: int
    max_model_len: int
    intensity: list[tuple[float, float, float]] = []
    intensity_source: str = ""
    seed: int = 0


class ServedSettings(SimulationSettings, frozen=True):
    """Settings for a model shape that is no preset: the one that serves."""

    shape: ModelShape | None = None

    def make_twin(self) -> PreparedTwin:
        if self.shape is None:
            return super().make_twin()
        from traces.twin_step import PreparedTwin

        return PreparedTwin.of(Twin(load_profile(self.gpu), load_engine(self.engine), self.shape))


class DrawnLevels:
    """Levels drawn from the mixes of a plan, with lengths scaled from the recorded ones. The same seed draws the same
    point for a request whatever the policy."""

    def __init__(self, mixes: Mixes, asked: list[Asked], seed: int) -> None:
        self._mixes, self._asked, self._seed = mixes, asked, seed

    def choose(self, number: int, trace: TraceRequest, time_s: float) -> tuple[str, int, str]:
        mixes, levels = self._mixes, self._mixes.levels
        shares = _of(mixes.shares, trace.task, (1.0,))
        lengths = _of(mixes.lengths, trace.task, tuple(1.0 for _ in levels))
        had = self._asked[number].level or BASELINE_LEVEL
        place = _drawn(shares, random.Random(f"{self._seed}/{number}").random())
        level = levels[place]
        if level == had or had not in levels:
            return level, trace.output_tokens, "recorded"
        ratio = lengths[place] / max(lengths[levels.index(had)], 1e-9)
        return level, max(1, round(trace.output_tokens * ratio)), "estimated"

    def figures(self) -> dict[str, Any]:
        return {}


def run(question: Question) -> list[WhatIfOutcome]:
    """Raises `ValueError` for a question without requests or with an unknown profile."""
    if not question.requests:
        raise ValueError("no request was recorded in the window")
    started = datetime.fromtimestamp(question.started_unix_s, UTC)
    requests = [
        TraceRequest(one.arrival_s, one.input_tokens, one.output_tokens, task=one.task) for one in question.requests
    ]
    workload = Workload(requests, "recorded window", "recorded", Origin(started_at=started))
    grid = _grid(question, started)
    return [_outcome(variant, _simulated(question, variant, workload, grid)) for variant in question.variants]


def _simulated(question: Question, variant: Variant, workload: Workload, grid: Grid | None) -> SimulationOutcome:
    # The control plane imports this file for its values alone and need not load what simulates.
    from traces.simulate import simulate

    settings = ServedSettings(
        gpu=question.gpu,
        engine=ENGINE_PROFILE,
        max_num_seqs=question.max_num_seqs,
        max_model_len=question.max_model_len,
        pue=variant.pue,
        slo=variant.slo,
        shape=ModelShape(**question.shape),
    )
    directing = DrawnLevels(variant.mixes, question.requests, question.seed) if variant.mixes is not None else None
    return simulate(workload, variant.policy, settings, grid=grid, directing=directing, seed=question.seed)


def _outcome(variant: Variant, done: SimulationOutcome) -> WhatIfOutcome:
    figures, device = done.result.summary(), done.result.device
    assert device is not None
    return WhatIfOutcome(
        revision=variant.revision,
        requests=figures["completed"],
        energy_j=device.energy_j,
        grams=device.co2e_g,
        mean_power_w=device.average_power_w,
        ttft_p50_s=_seconds(figures.get("median_ttft_ms")),
        ttft_p99_s=_seconds(figures.get("p99_ttft_ms")),
        tpot_p50_s=_seconds(figures.get("median_tpot_ms")),
        tpot_p99_s=_seconds(figures.get("p99_tpot_ms")),
        actuations=device.clock_changes,
    )


def _grid(question: Question, started: datetime) -> Grid | None:
    """None where the intensity of the beginning is not known."""
    method = Methodology(Basis.AVERAGE, Boundary.DIRECT)  # one series: nothing is compared with it
    points = [
        CarbonIntensity(
            "window",
            datetime.fromtimestamp(start, UTC),
            datetime.fromtimestamp(end, UTC),
            value,
            method,
            Kind.REPLAYED,
            question.intensity_source,
            fetched_at=started,
        )
        for start, end, value in question.intensity
    ]
    if not points:
        return None
    try:
        return Grid(IntensitySeries(points), started, question.intensity_source)
    except ValueError:
        return None


def shape_fields(shape: ModelShape) -> dict[str, Any]:
    """A shape as the question carries it."""
    return {field.name: asdict(shape)[field.name] for field in fields(shape)}


def _of(table: Mapping[str, tuple[float, ...]], task: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    return table.get(task or "", table.get("", default))


def _drawn(shares: tuple[float, ...], point: float) -> int:
    total = 0.0
    for place, share in enumerate(shares):
        total += share
        if point < total:
            return place
    return max(place for place, share in enumerate(shares) if share > 0.0)


def _seconds(milliseconds: object) -> float | None:
    return cast(float, milliseconds) / 1e3 if milliseconds is not None else None


def main() -> int:
    os.nice(10)  # serving comes first
    try:
        outcomes = run(msgspec.json.decode(sys.stdin.buffer.read(), type=Question))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
