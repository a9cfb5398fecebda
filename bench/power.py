"""Cost of the power plane, and what governors save on the twin.

    gridserve bench power --json power.json

Overhead: attribution of a step with 64 running requests, and all of the plane's CPU time (telemetry at 20 Hz,
attribution, controller) at 100 steps a second, as a share of one core. On a simulated device the physics of the
board is part of the figure; `--device nvml` measures with the driver's own calls instead.
Governors: J per output token on the twin at a third of the highest load the default governor serves within the SLO,
at constant load and over a day's shape; everything in this part is simulated.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench._power_driver import Load, Outcome, Server
from power.attribution import Attributor
from power.books import EnergySample, Meter
from power.controller import Mode
from power.governors import (
    Decision,
    DefaultGovernor,
    Governor,
    Observation,
    PhaseAwareGovernor,
    Slo,
    SloSlackGovernor,
    StaticGovernor,
)
from power.idle import IdleBaseline
from power.model_shape import model_shape
from power.open import open_devices
from power.plane import PowerPlane
from power.quantities import Method, Scope, Source
from power.simulated import simulated_twin
from power.telemetry import RATE_HZ, Telemetry
from power.twin import Twin
from power.work import WorkModel, WorkShare

STEPS_PER_S = 100
RUNNING = 64
SLO = Slo(ttft_s=1.0, tpot_s=0.05)
GOAL = 0.99
STATIC_MHZ = (600, 705, 795, 900, 1005, 1095, 1200, 1305, 1410, 1500, 1605, 1755)
DAY_S = 480.0


@dataclass(frozen=True, slots=True)
class Step:
    started_s: float
    ended_s: float
    work: tuple[WorkShare, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """A governor that notes how long each decision took."""

    inner: Governor
    spent_us: list[float]
    name: str = "timed"

    def decide(self, observation: Observation) -> Decision:
        before = time.perf_counter()
        decision = self.inner.decide(observation)
        self.spent_us.append(1e6 * (time.perf_counter() - before))
        return decision


def constant(rate: float) -> Callable[[float], float]:
    return lambda t: rate


def attribution_us(twin: Twin, steps: int = 3000, *, prompt_every: int | None = None) -> dict[str, float]:
    """Microseconds of CPU time for attribution of each step of `RUNNING` decoding requests, settlement included.
    `prompt_every`: in every so many steps one request leaves and the prompt of another joins."""
    meter = Meter(Method.SIMULATED, Source.TWIN, Scope.GPU, 0.0)
    attributor = Attributor(meter, WorkModel.of(twin.gpu, twin.shape), IdleBaseline(configured_w=112.0))
    attributor.on_sample(EnergySample(0.0, 0.0, 400.0))
    now, spent = 0.0, list[float]()
    for step in range(steps):
        first = step // prompt_every if prompt_every is not None else 0
        joins = prompt_every is not None and step % prompt_every == 0 and step > 0
        decoding = tuple(WorkShare(f"r{first + number}", 0, 1, 500 + step) for number in range(RUNNING - joins))
        work = (*decoding, WorkShare(f"r{first + RUNNING - 1}", 500 + step, 0, 500 + step)) if joins else decoding
        before = time.thread_time()
        if joins:
            attributor.retire(f"r{first - 1}", now)
        attributor.on_step(now, now + 1 / STEPS_PER_S, work)
        now += 1 / STEPS_PER_S
        if step % 5 == 4:
            attributor.on_sample(EnergySample(now, 400.0 * (now - now % 0.1), 400.0))
        spent.append(1e6 * (time.thread_time() - before))
    return {"mean_us": statistics.fmean(spent), "median_us": statistics.median(spent), "p99_us": _p99(spent)}


def telemetry_us(device: str, samples: int = 400) -> float:
    """Microseconds of CPU time for one look at the device, every fourth a full reading."""
    (found,) = open_devices(device, model_shape("llama-3.1-8b"))
    telemetry = Telemetry([found], lambda sample, foreign: None)
    spent = 0.0
    for _ in range(samples):
        time.sleep(0.005)
        before = time.thread_time()
        telemetry.tick()
        spent += time.thread_time() - before
    return 1e6 * spent / samples


def plane_share(device: str, seconds: float, mode: Mode) -> dict[str, float | str]:
    """CPU time of the plane over wall time, less that of the same loop without a plane."""
    shape = model_shape("llama-3.1-8b")
    devices = open_devices(device, shape)
    if not devices:
        raise ValueError("no power device here; use --device simulated:h100-sxm")
    governor: Governor = SloSlackGovernor(simulated_twin("h100-sxm", shape.name))
    plane = PowerPlane(devices, shape=shape, mode=mode, governor=governor, slo=SLO, pace=False)
    plane.start()
    for number in range(RUNNING):
        plane.admit(f"r{number}", 500)
    with_plane = _paced(seconds, plane.on_step)
    plane.stop()
    without = _paced(seconds, lambda step: None)
    return {
        "device": devices[0].info.name,
        "method": devices[0].info.method.value,
        "mode": mode.value,
        "percent_of_a_core": 100 * (with_plane - without) / seconds,
        "closure_error_j": plane.status().books.closure_error_j,
        "skipped_samples": plane.status().skipped_samples,
    }


def _paced(seconds: float, use: Callable[[Step], object]) -> float:
    """CPU seconds of `STEPS_PER_S` steps a second, given to `use`."""
    begin, cpu, count = time.monotonic(), time.process_time(), int(seconds * STEPS_PER_S)
    for number in range(count):
        work = tuple(WorkShare(f"r{index}", 0, 1, 500 + number) for index in range(RUNNING))
        due = begin + (number + 1) / STEPS_PER_S
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        use(Step(now - 1 / STEPS_PER_S, now, work))
    return time.process_time() - cpu


def decide_us(twin: Twin) -> float:
    """Microseconds of one `slo_slack` decision, median over a minute of the driver's load."""
    timed = Timed(SloSlackGovernor(twin), [])
    Server(twin, timed, SLO, Load(constant(10.0), 60.0)).run()
    return statistics.median(timed.spent_us)


def peak_rate(twin: Twin) -> float:
    """Highest constant rate (requests/s) at which the default governor meets the SLO for `GOAL` of the requests."""
    low, high = 1.0, 64.0
    while high - low > 0.5:
        middle = (low + high) / 2
        good = Server(twin, DefaultGovernor(), SLO, Load(constant(middle), 60.0)).run().slo_share
        low, high = (middle, high) if good >= GOAL else (low, middle)
    return low


def compare(twin: Twin, rate: Callable[[float], float], duration_s: float) -> dict[str, object]:
    """J/token of each governor on one load; the best static clock is the cheapest that meets the SLO."""

    def run(governor: Governor) -> Outcome:
        return Server(twin, governor, SLO, Load(rate, duration_s)).run()

    default = run(DefaultGovernor())
    statics = {mhz: run(StaticGovernor(mhz)) for mhz in STATIC_MHZ}
    meeting = {mhz: found for mhz, found in statics.items() if found.slo_share >= GOAL}
    best_mhz = min(meeting, key=lambda mhz: meeting[mhz].joules_per_token) if meeting else None
    rows: dict[str, object] = {"default": _row(default, default)}
    if best_mhz is not None:
        rows["best_static"] = {**_row(statics[best_mhz], default), "mhz": best_mhz}
    for governor in (SloSlackGovernor(twin), PhaseAwareGovernor(twin)):
        rows[governor.name] = _row(run(governor), default)
    return rows


def _row(found: Outcome, default: Outcome) -> dict[str, float | int]:
    return {
        "joules_per_token": round(found.joules_per_token, 5),
        "saving_percent": round(100 * (1 - found.joules_per_token / default.joules_per_token), 1),
        "power_w": round(found.power_w, 1),
        "slo_share": round(found.slo_share, 4),
        "ttft_p99_ms": round(1e3 * found.ttft_p99_s, 1),
        "tpot_p99_ms": round(1e3 * found.tpot_p99_s, 2),
        "switches": found.switches,
    }


def day(third: float) -> Callable[[float], float]:
    """A day in `DAY_S` seconds: mean about a third of the peak, quiet nights, 90 % of the peak at noon."""
    low, high = 0.2 * third, 2.7 * third

    def rate(t: float) -> float:
        return low + (high - low) * max(0.0, math.sin(2 * math.pi * t / (DAY_S / 2))) ** 2

    return rate


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gridserve bench power", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="simulated:h100-sxm", help="device of the overhead part")
    parser.add_argument("--profile", default="h100-sxm", help="GPU of the governors part")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the overhead part")
    parser.add_argument("--skip-governors", action="store_true", help="overhead only")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args(argv)
    try:
        twin = simulated_twin(arguments.profile, arguments.model)
        attribution, sampling_us = attribution_us(twin), telemetry_us(arguments.device)
        results: dict[str, object] = {
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
            "attribution": attribution,
            "attribution_with_a_prompt_every_10_steps": attribution_us(twin, prompt_every=10),
            "telemetry_us": sampling_us,
            "telemetry_and_attribution_percent_of_a_core": (
                (STEPS_PER_S * attribution["mean_us"] + RATE_HZ * sampling_us) / 1e4
            ),
            "plane_observe": plane_share(arguments.device, arguments.seconds, Mode.OBSERVE),
            "plane_shadow": plane_share(arguments.device, arguments.seconds, Mode.SHADOW),
        }
    except ValueError as error:
        print(f"bench power: {error}", file=sys.stderr)
        return 1
    if not arguments.skip_governors:
        peak = peak_rate(twin)
        results["slo_slack_decision_us"] = decide_us(twin)
        results["governors"] = {
            "method": "simulated",
            "gpu": twin.gpu.name,
            "model": twin.shape.name,
            "slo": {"ttft_s": SLO.ttft_s, "tpot_s": SLO.tpot_s, "share": GOAL},
            "peak_requests_per_s": peak,
            "constant_third_of_peak": compare(twin, constant(peak / 3), 120.0),
            "day_mean_third_of_peak": compare(twin, day(peak / 3), DAY_S),
        }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(0.99 * len(values)) - 1)]


if __name__ == "__main__":
    sys.exit(main())
