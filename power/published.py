"""Published measurements the twin is fitted on and checked against, and how the twin reproduces each of them.

ML.ENERGY leaderboard v3 (vLLM 0.11.1, lm-arena-chat, default governor; commit 0cd52dab and the file of
Llama-3.1-8B) and Splitwise's measured runs (`Mutinifni/splitwise-sim` `data/perf_model.csv`, medians of five).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

from power.model_shape import model_shape
from power.profile import EngineProfile, GpuProfile
from power.twin import SteadyState, Twin, decode_work, prefill_work, steady_state

OUTPUT_TOKENS = 400.0
"""Mean answer of lm-arena-chat with Llama-3.1-8B (leaderboard: 390 to 405)."""
LENGTH_BIAS_TOKENS = 330.0
"""Mean generated tokens already in the cache of a running sequence; from the spread of the answer lengths."""
SPLITWISE_CAP_FRACTION = 0.5
SPLITWISE_PREFILL_STRETCH = 1.30
SPLITWISE_DECODE_STRETCH = 1.00


@dataclass(frozen=True, slots=True)
class ServingRow:
    """One leaderboard row: means per GPU, J per output token over all GPUs. `role` in the fit: `fit`, `weak` (a tenth
    of the weight, for the cost of tensor parallelism) or `held_out`."""

    model: str
    tensor_parallel: int
    batch: int
    power_w: float
    joules_per_token: float
    median_itl_ms: float
    role: str


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One Splitwise run of Llama-2-70B; power as a fraction of the TDP, `None` where it was not recorded."""

    gpu: str
    tensor_parallel: int
    prompt_tokens: int
    batch: int
    prompt_ms: float
    token_ms: float
    mean_power_fraction: float | None
    peak_power_fraction: float | None


@dataclass(frozen=True, slots=True)
class Residual:
    """Predicted over published, minus one, in percent."""

    row: ServingRow
    power_percent: float
    joules_percent: float
    itl_percent: float
    clock_mhz: float

    @property
    def worst_percent(self) -> float:
        return max(abs(self.power_percent), abs(self.joules_percent), abs(self.itl_percent))


def serving_rows() -> list[ServingRow]:
    return [
        ServingRow(
            row["model"],
            int(row["tensor_parallel"]),
            int(row["batch"]),
            float(row["power_w"]),
            float(row["joules_per_token"]),
            float(row["median_itl_ms"]),
            row["role"],
        )
        for row in _table("mlenergy_h100.csv")
    ]


def phase_rows() -> list[PhaseRow]:
    return [
        PhaseRow(
            row["gpu"],
            int(row["tensor_parallel"]),
            int(row["prompt_tokens"]),
            int(row["batch"]),
            float(row["prompt_ms"]),
            float(row["token_ms"]),
            float(row["mean_power_fraction"]) if row["mean_power_fraction"] else None,
            float(row["peak_power_fraction"]) if row["peak_power_fraction"] else None,
        )
        for row in _table("splitwise_llama2_70b.csv")
    ]


def serving_state(
    twin: Twin, batch: int, prompt_tokens: int, *, clock_mhz: float | None = None, limit_w: float | None = None
) -> SteadyState:
    """The twin under the leaderboard's load at a batch."""
    context = prompt_tokens + LENGTH_BIAS_TOKENS
    return steady_state(twin, batch, prompt_tokens, OUTPUT_TOKENS, context, clock_mhz=clock_mhz, limit_w=limit_w)


def serving_residuals(gpu: GpuProfile, engine: EngineProfile, prompt_tokens: int) -> list[Residual]:
    """The twin against every leaderboard row, fitted and held out."""
    residuals = []
    for row in serving_rows():
        twin = Twin(gpu, engine, model_shape(row.model), row.tensor_parallel)
        state = serving_state(twin, row.batch, prompt_tokens)
        residuals.append(
            Residual(
                row,
                100 * (state.power_w / row.power_w - 1),
                100 * (state.joules_per_token / row.joules_per_token - 1),
                100 * (1000 * state.median_itl_s / row.median_itl_ms - 1),
                state.clock_mhz,
            )
        )
    return residuals


def cap_stretch(
    gpu: GpuProfile, prefill_engine: EngineProfile, decode_engine: EngineProfile, *, prompt_tokens: int, batch: int
) -> tuple[float, float]:
    """How much longer prefill and decode of Llama-2-70B on 8 GPUs take when the cap is half the default."""
    stretches = []
    for engine, work in (
        (prefill_engine, prefill_work(prompt_tokens * batch, batch)),
        (decode_engine, decode_work(batch, prompt_tokens + 64)),
    ):
        twin = Twin(gpu, engine, model_shape("llama-2-70b"), 8)
        times = [
            twin.predict(work, twin.capped_clock([(1.0, work)], limit, gpu.clock_max_mhz)).duration_s
            for limit in (gpu.limit_default_w, gpu.limit_default_w * SPLITWISE_CAP_FRACTION)
        ]
        stretches.append(times[1] / times[0])
    return stretches[0], stretches[1]


def _table(name: str) -> list[dict[str, str]]:
    text = (resources.files("power.profiles") / "published" / name).read_text()
    return list(csv.DictReader(text.splitlines()))
