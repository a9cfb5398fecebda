"""Time series of the emulated world."""

from __future__ import annotations

import time

from emulated_world import World, clock_at, intensity_at, noise, wave

from serving import admin_schema as api

ENGINE = {
    "running": "",
    "waiting": "",
    "kv_usage_ratio": "",
    "output_tokens_per_s": "1/s",
    "requests_per_s": "1/s",
    "joules_per_token": "J",
    "ttft_p95_s": "s",
    "ttft_p99_s": "s",
    "tpot_p99_s": "s",
}


def catalogue(world: World) -> list[api.SeriesInfo]:
    if world.condition == "empty":
        return [_info("running", ""), _info("waiting", "")]
    found = [_info("power_w", "W"), _info("intensity_g_per_kwh", "g/kWh"), _info("grams_total", "g", True)]
    for gpu in range(world.gpus):
        for name, unit in (("power_w", "W"), ("power_limit_w", "W"), ("sm_clock_mhz", "MHz"), ("temperature_c", "C")):
            found.append(_info(f'{name}{{gpu="{gpu}"}}', unit))
        if world.condition != "no_permission":
            found.append(_info(f'asked_clock_mhz{{gpu="{gpu}"}}', "MHz"))
    for phase in ("prefill", "decode", "request_idle", "idle", "unattributed"):
        found.append(_info(f'energy_j{{phase="{phase}"}}', "J", True))
    return found + [_info(name, unit) for name, unit in ENGINE.items()]


def _info(name: str, unit: str, counter: bool = False) -> api.SeriesInfo:
    return api.SeriesInfo(name, unit, counter, name)


def value(world: World, name: str, t: float) -> float | None:
    metric, _, label = name.partition("{")
    gpu = int(label.split('"')[1]) if label.startswith("gpu") else 0
    up = t - world.started
    figures = {
        "power_w": world.power(t + 7 * gpu) if label else sum(world.power(t + 7 * g) for g in range(world.gpus)),
        "power_limit_w": 600.0,
        "sm_clock_mhz": clock_at(t - 2) + 4 * noise(t, "c"),
        "asked_clock_mhz": clock_at(t),
        "temperature_c": 58 + 4 * wave(t, 500) + gpu,
        "intensity_g_per_kwh": intensity_at(t),
        "grams_total": 0.01 * up,
        "running": 31 + 9 * wave(t, 60),
        "waiting": max(0.0, 3 * wave(t, 45)),
        "kv_usage_ratio": 0.54 + 0.1 * wave(t, 130),
        "output_tokens_per_s": 1180 + 200 * wave(t, 200) + 60 * noise(t, "o"),
        "requests_per_s": 3.4 + wave(t, 200),
        "joules_per_token": 0.71 + 0.05 * wave(t, 90),
        "ttft_p95_s": 0.24 + 0.07 * wave(t, 240) + 0.02 * noise(t, "m"),
        "ttft_p99_s": 0.31 + 0.1 * wave(t, 240) + 0.03 * noise(t, "l"),
        "tpot_p99_s": 0.034 + 0.004 * wave(t, 240),
    }
    rates = {"prefill": 180, "decode": 470, "request_idle": 60, "idle": 115, "unattributed": 15}
    if metric == "energy_j":
        return rates[label.split('"')[1]] * up
    return figures.get(metric)


def answer(world: World, names: list[str], since: float, until: float, points: int) -> api.SeriesAnswer:
    until = min(until, time.time())
    step = max(world.step_s, (until - since) / points)
    count = int((until - since) / step)
    first = since // 1 + 1
    times = [first + i * step for i in range(count + 1) if first + i * step <= until]
    source = "memory" if until - since <= 900 else "ledger"
    series = [
        api.SeriesData(name, "", source, times, [value(world, name, t) for t in times], None, None) for name in names
    ]
    return api.SeriesAnswer(since, until, step, series)
