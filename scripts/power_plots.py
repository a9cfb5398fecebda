"""Draw the figures of docs/power.md. Everything in them is simulated, but for the published points.

python scripts/power_plots.py [NAME ...]     # calibration, clocks, day, savings, row, attribution
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt

from bench._power_driver import Load, Outcome, Server
from bench.power import DAY_S, SLO, constant, day
from power.attribution import Attributor
from power.books import EnergySample, Meter
from power.governors import (
    DefaultGovernor,
    Governor,
    PhaseAwareGovernor,
    Pool,
    RowBudget,
    RowState,
    SloSlackGovernor,
    StaticGovernor,
)
from power.governors.stability import snap_down
from power.idle import IdleBaseline
from power.published import serving_rows, serving_state
from power.quantities import Method, Scope, Source
from power.row import RowControl
from power.simulated import SimulatedDevice, simulated_twin
from power.twin import Twin, decode_work, prefill_work
from power.work import WorkModel, WorkShare, step_work

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROMPT_TOKENS = 205
PEAK = 30.0
INK, BLUE, ORANGE, GREEN, GREY, RED = "#222222", "#1f6feb", "#d9730d", "#2da44e", "#8c959f", "#cf222e"


def calibration(twin: Twin) -> Any:
    """Published rows and the twin, for watts, J/token and inter-token latency."""
    rows = [row for row in serving_rows() if row.role == "fit"]
    states = [serving_state(twin, row.batch, PROMPT_TOKENS) for row in rows]
    batches = [row.batch for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    parts = (
        ("board power, W", [row.power_w for row in rows], [state.power_w for state in states], (0, 760)),
        ("J per output token", [row.joules_per_token for row in rows], [s.joules_per_token for s in states], None),
        ("median ITL, ms", [row.median_itl_ms for row in rows], [1e3 * s.median_itl_s for s in states], None),
    )
    for axis, (label, published, predicted, limits) in zip(axes, parts, strict=True):
        axis.plot(batches, predicted, color=BLUE, label="twin (simulated)")
        axis.plot(batches, published, "o", color=INK, label="ML.ENERGY (measured)")
        axis.set(xlabel="batch", ylabel=label, xscale="log")
        axis.set_xticks([8, 32, 128, 512], ["8", "32", "128", "512"])
        if limits:
            axis.set_ylim(*limits)
        else:
            axis.set_yscale("log")
    axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle("Llama-3.1-8B on one H100, vLLM 0.11: published and predicted, default governor")
    return figure


def clocks(twin: Twin) -> Any:
    """J/token against the SM clock, at constant batch."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    mhz = list(range(405, twin.gpu.clock_max_mhz + 1, 15))
    for batch, colour in ((8, GREY), (32, GREEN), (128, BLUE), (512, ORANGE)):
        states = [serving_state(twin, batch, PROMPT_TOKENS, clock_mhz=clock) for clock in mhz]
        energy = [state.joules_per_token for state in states]
        best = min(range(len(mhz)), key=energy.__getitem__)
        axes[0].plot(mhz, [value / energy[-1] for value in energy], color=colour, label=f"batch {batch}")
        axes[0].plot(mhz[best], energy[best] / energy[-1], "o", color=colour)
        slowdown = [states[-1].tokens_per_s / state.tokens_per_s for state in states]
        axes[1].plot(mhz, slowdown, color=colour, label=f"batch {batch}")
    prefill = [twin.stretch(prefill_work(4096), clock) for clock in mhz]
    axes[1].plot(mhz, prefill, color=RED, linestyle="--", label="prefill of 4096 tokens")
    axes[0].axvspan(0.5 * mhz[-1], 0.75 * mhz[-1], color="#ddf4ff", zorder=0)
    axes[0].set(xlabel="locked SM clock, MHz", ylabel="J/token, relative to the top clock", ylim=(0.4, 1.2))
    axes[1].set(xlabel="locked SM clock, MHz", ylabel="time, relative to the top clock", ylim=(0.9, 4))
    axes[0].legend(frameon=False)
    axes[1].legend(frameon=False)
    figure.suptitle("The twin's H100 under locked clocks, constant batch, Llama-3.1-8B (simulated)")
    return figure


def day_of_governors(twin: Twin) -> Any:
    """Load, clock and power of a day, default against slo_slack."""
    rate = day(PEAK / 3)
    outcomes = {
        governor.name: run(twin, governor, rate, DAY_S) for governor in (DefaultGovernor(), SloSlackGovernor(twin))
    }
    figure, axes = plt.subplots(3, 1, figsize=(10, 6.4), sharex=True)
    for (name, found), colour in zip(outcomes.items(), (GREY, BLUE), strict=True):
        times = [point[0] for point in found.trace]
        label = f"{name}: {found.joules_per_token:.3f} J/token, SLO kept by {found.slo_share:.1%}"
        axes[0].plot(times, [point[3] for point in found.trace], color=colour, linewidth=0.9)
        axes[1].plot(times, [point[2] for point in found.trace], color=colour, linewidth=0.9)
        axes[2].plot(times, smooth([point[1] for point in found.trace], 10), color=colour, linewidth=0.9, label=label)
    axes[0].set(ylabel="running sequences")
    axes[1].set(ylabel="SM clock, MHz", ylim=(0, 2100))
    axes[2].set(ylabel="board power, W", xlabel="time, s (two days' shape, compressed)", ylim=(0, 760))
    axes[2].legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.18))
    figure.suptitle("Two compressed days, mean load a third of the peak: SLO TTFT 1 s, TPOT 50 ms (simulated H100)")
    return figure


def savings(twin: Twin) -> Any:
    """J/token saved against the default governor, over load."""
    shares = [0.1, 0.2, 0.33, 0.5, 0.65, 0.8, 0.9, 1.0]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    default = [run(twin, DefaultGovernor(), constant(PEAK * share), 90.0) for share in shares]
    kinds: list[tuple[str, Governor, str, str]] = [
        ("slo_slack", SloSlackGovernor(twin), BLUE, "-"),
        ("phase_aware", PhaseAwareGovernor(twin), GREEN, "-"),
        ("static 1410 MHz", StaticGovernor(1410), ORANGE, "--"),
        ("static 1005 MHz", StaticGovernor(1005), GREY, "--"),
    ]
    for name, governor, colour, style in kinds:
        found = [run(twin, governor, constant(PEAK * share), 90.0) for share in shares]
        saved = [
            100 * (1 - mine.joules_per_token / base.joules_per_token) for mine, base in zip(found, default, strict=True)
        ]
        axes[0].plot(
            [100 * share for share in shares], saved, style, color=colour, label=name, marker="o", markersize=3
        )
        kept = [100 * outcome.slo_share for outcome in found]
        axes[1].plot([100 * share for share in shares], kept, style, color=colour, marker="o", markersize=3)
    axes[0].set(
        xlabel="load, % of the default governor's peak", ylabel="J/token saved against default, %", ylim=(0, 80)
    )
    axes[1].set(xlabel="load, % of the default governor's peak", ylabel="requests within the SLO, %", ylim=(0, 104))
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        "Savings shrink as slack does; a static clock that suits the night breaks the SLO at noon (simulated)"
    )
    return figure


def row(twin: Twin) -> Any:
    """A surge on a row of eight boards with and without the row budget."""
    figure, axes = plt.subplots(2, 1, figsize=(10, 5.2), sharex=True)
    for controlled, colour in ((False, GREY), (True, BLUE)):
        times, power, states, low, high = surge(twin, controlled=controlled)
        label = "row_budget" if controlled else "no control"
        axes[0].plot(times, power, color=colour, linewidth=1.0, label=label)
        if controlled:
            axes[1].step(times, low, color=ORANGE, label="low priority pool")
            axes[1].step(times, high, color=BLUE, label="high priority pool")
            names = {RowState(value).name for value in states}
            axes[1].text(
                0.01, 0.05, f"states seen: {', '.join(sorted(names))}", transform=axes[1].transAxes, fontsize=8
            )
    for share, name in ((0.8, "T1"), (0.89, "T2"), (1.0, "budget")):
        axes[0].axhline(share * ROW_W, color=RED if share == 1.0 else GREY, linewidth=0.8, linestyle=":")
        axes[0].text(0.2, share * ROW_W + 15, name, fontsize=8)
    axes[0].set(ylabel="row power, W")
    axes[1].set(ylabel="clock ceiling, MHz", xlabel="time, s", ylim=(0, 2100))
    axes[0].legend(frameon=False, loc="lower right")
    axes[1].legend(frameon=False, loc="lower right")
    figure.suptitle("Eight boards, four in each pool; half of them turn to prefill from 10 s to 40 s (simulated)")
    return figure


ROW_W = 4800.0


def surge(twin: Twin, *, controlled: bool) -> tuple[list[float], list[float], list[int], list[float], list[float]]:
    now = [0.0]
    devices = [SimulatedDevice(twin, ordinal=ordinal, clock=lambda: now[0], exact_sensor=True) for ordinal in range(8)]
    pools = [Pool.HIGH if ordinal < 4 else Pool.LOW for ordinal in range(8)]
    control = RowControl(ROW_W, RowBudget(reaction_s=0.5, relax_dwell_s=2.0), t2=0.89, meter_s=0.0)
    times, power, states, low, high = [], [], [], [], []
    top = twin.gpu.clock_max_mhz
    while now[0] < 60.0:
        started, now[0] = now[0], now[0] + 0.05
        batch = 40 if 10.0 <= now[0] < 40.0 else 4
        for ordinal, device in enumerate(devices):
            prefill = batch > 4 and ordinal % 2 == 0
            work = prefill_work(2048) if prefill else decode_work(batch + 8 * (ordinal % 4), 600)
            device.on_step(work, started, now[0])
        watts = sum(device.read().power_w or 0.0 for device in devices)
        decision = control.decide(now[0], watts, None)
        for device, pool in zip(devices, pools, strict=True):
            fraction = decision.fraction(pool) if controlled else None
            wanted = snap_down(device.info.clocks_mhz, fraction * top) if fraction is not None else None
            if device.board.state.lock_max_mhz != wanted:
                device.board.set_lock(wanted and device.info.clocks_mhz[0], wanted)
        times.append(now[0])
        power.append(sum(device.board.state.power_w for device in devices))
        states.append(int(decision.state))
        low.append((decision.low_fraction or 1.0) * top)
        high.append((decision.high_fraction or 1.0) * top)
    return times, power, states, low, high


def attribution(twin: Twin) -> Any:
    """Where the counter's joules go while requests come and go."""
    now = [0.0]
    device = SimulatedDevice(twin, clock=lambda: now[0], exact_sensor=True)
    books = Attributor(
        Meter(Method.SIMULATED, Source.TWIN, Scope.GPU, 0.0),
        WorkModel.of(twin.gpu, twin.shape),
        IdleBaseline(configured_w=twin.idle_power_w(active=True)),
    )
    contexts: dict[str, int] = {}
    ends: dict[str, int] = {}
    sums: list[tuple[float, float, float, float, float, float]] = []
    next_sample, number = 0.0, 0
    while now[0] < 12.0:
        if 1.0 <= now[0] < 9.0 and len(contexts) < int(32 * (now[0] - 1.0) / 4.0):
            number += 1
            contexts[f"r{number}"], ends[f"r{number}"] = 0, 500 + 60 + 7 * (number % 20)
            books.admit(f"r{number}", now[0])
        work = []
        for name, context in list(contexts.items()):
            if context >= ends[name]:
                books.retire(name, now[0])
                del contexts[name]
            elif context == 0:
                work.append(WorkShare(name, 500, 0, 500))
                contexts[name] = 500
            else:
                contexts[name] += 1
                work.append(WorkShare(name, 0, 1, context + 1))
        started = now[0]
        if work:
            demand = step_work(work)
            now[0] += twin.predict(demand, device.board.state.clock_mhz).duration_s
            device.on_step(demand, started, now[0])
            books.on_step(started, now[0], work)
        else:
            device.quiet(now[0])
            now[0] += 0.01
        if now[0] >= next_sample:
            next_sample += 0.05
            reading = device.sample()
            books.on_sample(EnergySample(reading.time_s, reading.energy_j, reading.power_w))
            b = books.books
            sums.append((now[0], b.prefill_j, b.decode_j, b.request_idle_j, b.idle_j, b.unattributed_j))
    figure, axis = plt.subplots(figsize=(10, 3.6))
    times, *parts = zip(*sums, strict=True)
    rates = [smooth([max(0.0, later - earlier) / 0.05 for earlier, later in pairwise(part)], 9) for part in parts]
    labels = ("prefill", "decode", "idle share of requests", "idle", "unattributed")
    axis.stackplot(times[1:], *rates, labels=labels, colors=(ORANGE, BLUE, "#b6e3ff", "#d0d7de", RED))
    axis.set(xlabel="time, s", ylabel="W, from settled joules", xlim=(0.2, 12))
    axis.legend(frameon=False, loc="upper right", fontsize=8)
    total = books.books.counter_j
    axis.set_title(f"{total:.0f} J on the counter, closure error {books.books.closure_error_j:.1e} J (simulated)")
    return figure


def run(twin: Twin, governor: Governor, rate: Callable[[float], float], seconds: float) -> Outcome:
    return Server(twin, governor, SLO, Load(rate, seconds)).run()


def smooth(values: list[float], width: int) -> list[float]:
    return [sum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1]) for i in range(len(values))]


PLOTS: dict[str, Callable[[Twin], Any]] = {
    "calibration": calibration,
    "clocks": clocks,
    "day": day_of_governors,
    "savings": savings,
    "row": row,
    "attribution": attribution,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *PLOTS], metavar="NAME")
    arguments = parser.parse_args()
    plt.switch_backend("Agg")
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.dpi": 110})
    twin = simulated_twin("h100-sxm", "llama-3.1-8b")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PLOTS:
        figure = PLOTS[name](twin)
        figure.tight_layout()
        figure.savefig(IMAGES / f"power-{name}.png", metadata={"Software": None})
        plt.close(figure)
        print(f"docs/images/power-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
