"""Fit the twin's parameters on published measurements and write `power/profiles/*.json`.

    python scripts/power_fit_twin.py            # fit, print the residual tables (Markdown)
    python scripts/power_fit_twin.py --write    # also write the profiles
    python scripts/power_fit_twin.py --check    # no fit: residuals of the profiles as they are

H100: bounded least squares over ten ML.ENERGY rows of Llama-3.1-8B (watts, J/token, median ITL) together with
Splitwise's 50 % cap (prefill x1.30, decode x1.00), the clock a GEMM sustains under the cap (about 1455 MHz) and
the position of the J/token minimum (0.53 to 0.70 of the top clock). Rows on 2 and 4 GPUs enter with about a tenth of
the weight, for the cost of tensor parallelism; Qwen3-8B and 14B are held out.
A100: Splitwise's measured runs of Llama-2-70B on 2, 4 and 8 GPUs. H200: H100's fit with the data sheet's memory;
not fitted, and labelled so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from power.model_shape import model_shape
from power.profile import EngineProfile, GpuProfile, Thermal, load_engine, load_profile
from power.published import (
    SPLITWISE_DECODE_STRETCH,
    SPLITWISE_PREFILL_STRETCH,
    cap_stretch,
    phase_rows,
    serving_residuals,
    serving_state,
)
from power.twin import Twin, decode_work, prefill_work

PROFILES = Path(__file__).resolve().parent.parent / "power" / "profiles"
PROMPT_TOKENS = 205
GEMM_CLOCK_MHZ = 1455.0
CAP_LOADS = ((2048, 1), (512, 4), (512, 1), (512, 16))
"""Prompt tokens and batch. The first two fill the 2048 tokens a batch holds in Splitwise's capped configuration."""
BARE = EngineProfile(name="bare", source="", fitted_on="", host_s=0.0, per_sequence_s=0.0)

H100: dict[str, Any] = {
    "name": "h100-sxm",
    "product": "NVIDIA H100 80GB HBM3",
    "source": "NVIDIA data sheet (peak, bandwidth, limits); nvidia-smi -a dump, driver 545 (idle 72 W at 345 MHz)",
    "clock_min_mhz": 345,
    "clock_max_mhz": 1980,
    "idle_clock_mhz": 345,
    "memory_clock_mhz": 2619,
    "memory_bytes": 80 * 1024**3,
    "limit_min_w": 200.0,
    "limit_max_w": 700.0,
    "limit_default_w": 700.0,
    "idle_w": 72.0,
    "peak_flops": 1.07e15,
    "memory_bytes_per_s": 3.35e12,
}
H100_FIT = {  # name: (start, low, high)
    "active_idle_w": (55, 40, 75),
    "active_w": (250, 40, 420),
    "compute_w": (800, 150, 1100),
    "memory_w": (180, 140, 320),
    "voltage_knee": (0.64, 0.55, 0.72),
    "voltage_floor": (0.62, 0.60, 0.85),
    "compute_efficiency": (0.68, 0.5, 0.85),
    "memory_efficiency": (0.75, 0.55, 0.92),
    "bandwidth_knee": (0.55, 0.5, 0.6),
    "host_s": (0.001, 0.0, 0.004),
    "host_layer_s": (5e-5, 0.0, 3e-4),
    "tensor_parallel_s": (2e-5, 0.0, 1e-4),
    "per_sequence_s": (3e-5, 0.0, 1e-4),
    "per_prefill_s": (1e-3, 0.0, 4e-3),
}
A100: dict[str, Any] = {
    "name": "a100-sxm",
    "product": "NVIDIA A100-SXM4-80GB",
    "source": "NVIDIA data sheet; idle 63 W (Splitwise, ISCA 2024); knee from VoltanaLLM's 1005 MHz sweet spot",
    "clock_min_mhz": 210,
    "clock_max_mhz": 1410,
    "idle_clock_mhz": 210,
    "memory_clock_mhz": 1593,
    "memory_bytes": 80 * 1024**3,
    "limit_min_w": 100.0,
    "limit_max_w": 400.0,
    "limit_default_w": 400.0,
    "idle_w": 63.0,
    "peak_flops": 312e12,
    "memory_bytes_per_s": 2.04e12,
    "voltage_knee": 0.68,
    "voltage_floor": 0.72,
    "bandwidth_knee": 0.55,
    "cap_margin": 1.0,
    "thermal": Thermal(celsius_per_w=0.1, slowdown_c=87.0),
}
A100_FIT = {
    "active_idle_w": (30, 10, 60),
    "active_w": (60, 5, 200),
    "compute_w": (300, 100, 600),
    "memory_w": (150, 60, 260),
    "compute_efficiency": (0.6, 0.3, 0.9),
    "memory_efficiency": (0.75, 0.6, 0.92),
    "host_s": (0.03, 0.0, 0.06),
    "per_sequence_s": (1e-4, 0.0, 1e-3),
    "tensor_parallel_s": (1e-4, 0.0, 4e-4),
}
ROLES = {"fit": "fitted", "weak": "weakly fitted", "held_out": "held out"}
ENGINE_FIELDS = {"host_s", "host_layer_s", "per_sequence_s", "per_prefill_s", "tensor_parallel_s"}


def fit(residuals: Any, ranges: dict[str, tuple[float, float, float]]) -> dict[str, float]:
    """Bounded least squares; the weak last terms keep undetermined parameters near their start values."""
    start, low, high = (np.array(column, dtype=float) for column in zip(*ranges.values(), strict=True))

    def objective(x: Any) -> Any:
        return np.array([*residuals(dict(zip(ranges, x.tolist(), strict=True))), *(0.01 * (x - start) / (high - low))])

    found = least_squares(objective, start, bounds=(low, high), x_scale=high - low, diff_step=1e-3)
    return {name: float(f"{value:.4g}") for name, value in zip(ranges, found.x.tolist(), strict=True)}


def build(
    base: dict[str, Any], values: dict[str, float], fitted_on: str, engine: str
) -> tuple[GpuProfile, EngineProfile]:
    """Split fitted values into the GPU's and the engine's."""
    physics = {name: value for name, value in values.items() if name not in ENGINE_FIELDS}
    overheads: dict[str, Any] = {name: value for name, value in values.items() if name in ENGINE_FIELDS}
    return (
        GpuProfile(**base, **physics, fitted_on=fitted_on),
        EngineProfile(name=engine, source="scripts/power_fit_twin.py", fitted_on=fitted_on, **overheads),
    )


def fit_h100() -> tuple[GpuProfile, EngineProfile]:
    fitted_on = "ML.ENERGY leaderboard v3, Llama-3.1-8B on H100, vLLM 0.11.1, batch 8-512; Splitwise 50 % cap"

    def residuals(values: dict[str, float]) -> list[float]:
        gpu, engine = build(H100, values, fitted_on, "vllm-0.11")
        terms = []
        for found in serving_residuals(gpu, engine, PROMPT_TOKENS):
            if found.row.role == "weak":
                terms += [0.1 * found.power_percent / 100, 0.2 * found.itl_percent / 100]
            elif found.row.role == "fit":
                terms += [found.power_percent / 100, 1.5 * found.joules_percent / 100, 1.9 * found.itl_percent / 100]
        for prompt, batch in ((2048, 1), (512, 16)):
            prefill, decode = cap_stretch(gpu, BARE, BARE_DECODE, prompt_tokens=prompt, batch=batch)
            terms += [2 * (prefill / SPLITWISE_PREFILL_STRETCH - 1), 2 * (decode / SPLITWISE_DECODE_STRETCH - 1)]
        bare = Twin(gpu, BARE, model_shape("llama-2-70b"), 8)
        clock = bare.capped_clock([(1.0, prefill_work(8192, 16))], gpu.limit_default_w, gpu.clock_max_mhz)
        terms.append(0.7 * (clock / GEMM_CLOCK_MHZ - 1))
        twin = Twin(gpu, engine, model_shape("llama-3.1-8b"))
        for batch in (8, 32, 64, 128, 256):
            best = best_clock(twin, batch) / gpu.clock_max_mhz
            terms.append(max(0.0, best - 0.70) + max(0.0, 0.53 - best))
        return terms

    return build(H100, fit(residuals, H100_FIT), fitted_on, "vllm-0.11")


BARE_DECODE = EngineProfile(
    name="", source="", fitted_on="", host_s=0.0, per_sequence_s=0.0, tensor_parallel_s=28e-3 / 80
)


def best_clock(twin: Twin, batch: int) -> float:
    """The SM clock with the lowest J/token under the leaderboard's load."""
    clocks = range(495, twin.gpu.clock_max_mhz + 1, 30)
    return min(clocks, key=lambda clock: serving_state(twin, batch, PROMPT_TOKENS, clock_mhz=clock).joules_per_token)


def fit_phases(base: dict[str, Any], gpu: GpuProfile | None, engine: str) -> tuple[GpuProfile, EngineProfile]:
    """Fit on Splitwise's runs: GPU and engine (A100), or the engine alone on a given GPU (H100)."""
    name = base["name"]
    fitted_on = f"Splitwise, Llama-2-70B on {name}, tensor parallel 2, 4 and 8, batch 1-4"
    rows = [row for row in phase_rows() if row.gpu == name]
    ranges = {key: value for key, value in A100_FIT.items() if gpu is None or key in ENGINE_FIELDS}
    if gpu is not None:
        ranges["compute_scale"] = (0.7, 0.3, 1.0)

    def assemble(values: dict[str, float]) -> tuple[GpuProfile, EngineProfile]:
        if gpu is None:
            return build(base, values, fitted_on, engine)
        overheads: dict[str, Any] = dict(values)
        return gpu, EngineProfile(name=engine, source="scripts/power_fit_twin.py", fitted_on=fitted_on, **overheads)

    def residuals(values: dict[str, float]) -> list[float]:
        terms = []
        for prompt, token, mean, _ in phase_residuals(*assemble(values), rows):
            terms += [0.5 * prompt, token, 1.5 * mean if mean is not None else 0.0]
        return terms

    return assemble(fit(residuals, ranges))


def phase_residuals(
    gpu: GpuProfile, engine: EngineProfile, rows: Any
) -> list[tuple[float, float, float | None, float]]:
    """Relative errors of prompt time, token time and mean power for each row, and the decode power in W."""
    found = []
    for row in rows:
        twin = Twin(gpu, engine, model_shape("llama-2-70b"), row.tensor_parallel)
        prefill = prefill_work(row.prompt_tokens * row.batch, row.batch)
        decode = decode_work(row.batch, row.prompt_tokens + 64)
        clock = twin.capped_clock([(1.0, prefill)], gpu.limit_default_w, gpu.clock_max_mhz)
        prompt, token = twin.predict(prefill, clock), twin.predict(decode, gpu.clock_max_mhz)
        mean = (prompt.energy_j + 127 * token.energy_j) / (prompt.duration_s + 127 * token.duration_s)
        published = row.mean_power_fraction
        found.append(
            (
                1000 * prompt.duration_s / row.prompt_ms - 1,
                1000 * token.duration_s / row.token_ms - 1,
                mean / gpu.limit_default_w / published - 1 if published else None,
                token.power_w,
            )
        )
    return found


def h200_of(h100: GpuProfile) -> GpuProfile:
    """H100's fit with H200's memory: more bandwidth, its power in proportion."""
    return msgspec.structs.replace(
        h100,
        name="h200-sxm",
        product="NVIDIA H200",
        source="NVIDIA data sheet (bandwidth 4.8 TB/s, 141 GB); compute die as H100",
        fitted_on="carried over from h100-sxm",
        provisional="not fitted on an H200: idle, bandwidth share and memory power are scaled from the H100",
        memory_clock_mhz=3201,
        memory_bytes=141 * 10**9,
        idle_w=75.0,
        memory_bytes_per_s=4.8e12,
        memory_w=float(f"{h100.memory_w * 4.8 / 3.35:.4g}"),
    )


def report(h100: GpuProfile, vllm: EngineProfile, a100: GpuProfile, phases: dict[str, EngineProfile]) -> None:
    print("| model | GPUs | batch | W | error | J/token | error | ITL ms | error | clock MHz | |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    for found in serving_residuals(h100, vllm, PROMPT_TOKENS):
        row = found.row
        print(
            f"| {row.model} | {row.tensor_parallel} | {row.batch} | {row.power_w:g} | {found.power_percent:+.1f} % "
            f"| {row.joules_per_token:g} | {found.joules_percent:+.1f} % | {row.median_itl_ms:g} "
            f"| {found.itl_percent:+.1f} % | {found.clock_mhz:.0f} | {ROLES[row.role]} |"
        )
    twin = Twin(h100, vllm, model_shape("llama-3.1-8b"))
    print("\n| batch | best clock / top clock | J/token there | J/token at the default governor |\n|--:|--:|--:|--:|")
    for batch in (8, 32, 64, 128, 256, 512):
        clock = best_clock(twin, batch)
        best = serving_state(twin, batch, PROMPT_TOKENS, clock_mhz=clock).joules_per_token
        default = serving_state(twin, batch, PROMPT_TOKENS).joules_per_token
        print(f"| {batch} | {clock / h100.clock_max_mhz:.2f} | {best:.4f} | {default:.4f} |")
    print("\n| 50 % cap, Llama-2-70B on 8 H100 | published | twin, with the source's engine | twin, bare GPU |")
    print("|---|--:|--:|--:|")
    for prompt, batch in CAP_LOADS:
        engine = phases["h100-sxm"]
        prefill, decode = cap_stretch(h100, engine, engine, prompt_tokens=prompt, batch=batch)
        bare, bare_decode = cap_stretch(h100, BARE, BARE, prompt_tokens=prompt, batch=batch)
        print(f"| prefill, {batch} x {prompt} tokens | x1.30 | {_against(prefill, 1.30)} | {_against(bare, 1.30)} |")
        print(f"| decode, batch {batch} | x1.00 | {_against(decode, 1.00)} | {_against(bare_decode, 1.00)} |")
    print("\n| Splitwise run | TP | prompt | batch | prompt ms | token ms | mean W |\n|---|--:|--:|--:|--:|--:|--:|")
    for gpu in (a100, h100):
        rows = [row for row in phase_rows() if row.gpu == gpu.name]
        for row, (prompt_e, token_e, mean_e, _) in zip(rows, phase_residuals(gpu, phases[gpu.name], rows), strict=True):
            watts = f"{100 * mean_e:+.1f} %" if mean_e is not None else "not published"
            print(
                f"| {gpu.name} | {row.tensor_parallel} | {row.prompt_tokens} | {row.batch} "
                f"| {100 * prompt_e:+.0f} % | {100 * token_e:+.0f} % | {watts} |"
            )


def _against(found: float, published: float) -> str:
    return f"x{found:.2f} ({100 * (found / published - 1):+.0f} %)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the fitted profiles")
    parser.add_argument("--check", action="store_true", help="do not fit; report the profiles as they are")
    arguments = parser.parse_args()
    if arguments.check:
        h100, vllm, a100 = load_profile("h100-sxm"), load_engine("vllm-0.11"), load_profile("a100-sxm")
        phases = {"a100-sxm": load_engine("splitwise-a100"), "h100-sxm": load_engine("splitwise-h100")}
    else:
        h100, vllm = fit_h100()
        a100, splitwise_a100 = fit_phases(A100, None, "splitwise-a100")
        _, splitwise_h100 = fit_phases(H100, h100, "splitwise-h100")
        phases = {"a100-sxm": splitwise_a100, "h100-sxm": splitwise_h100}
    report(h100, vllm, a100, phases)
    if arguments.write and not arguments.check:
        for gpu in (h100, a100, h200_of(h100)):
            write(PROFILES / f"{gpu.name}.json", gpu)
        for engine in (vllm, *phases.values()):
            write(PROFILES / f"engine-{engine.name}.json", engine)
    return 0


def write(path: Path, value: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    print(f"wrote {path.name}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
