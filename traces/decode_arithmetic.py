"""Decode steps of a fixed number of sequences on a GPU in virtual time, compiled: see `simulate_board`.

Only the cached tokens change from step to step, and all depends on them linearly up to the last smooth maximum with the
host's time: a further step costs two powers. Equals `Twin.predict` up to rounding.
"""

from __future__ import annotations

import math

from traces.compiled import compiled
from traces.twin_arithmetic import (
    ACTIVE_IDLE_W,
    ACTIVE_W,
    BANDWIDTH_KNEE,
    BOARD_IDLE_W,
    COMPUTE_W,
    EXPONENT,
    MEMORY_W,
    TOP_MHZ,
    Numbers,
    smooth_max,
    switching,
)

(
    LINEAR_COMPUTE_S,
    LINEAR_MEMORY_S,
    CLOCKED_S,
    FIXED_S,
    WAIT_S,
    KV_COMPUTE_S,
    KV_MEMORY_S,
    WEIGHT,
    WEIGHT_KV,
    SEQUENCES,
) = range(10)
DECODE_NUMBERS = 10
"""Of decode steps of so many sequences: demand without cached tokens, demand of one, attribution weights."""

(
    TIME_S,
    ENERGY_J,
    CYCLES,
    SLOW_POWER_W,
    CEILING_MHZ,
    CLOCK_MHZ,
    LOCK_MHZ,
    DUE_S,
    DUE_MHZ,
    TEMPERATURE_C,
    LEAKAGE,
    HEAT_J,
    HEAT_S,
    LIMIT_W,
    STATE_NUMBERS,
) = range(15)
"""State of a virtual GPU. `LOCK_MHZ`, `DUE_MHZ`: the top clock where none is locked."""

(
    COUNT,
    LOWEST_MHZ,
    CAP_MARGIN,
    CAP_BLIND_S,
    CAP_TIME_S,
    AMBIENT_C,
    CELSIUS_PER_W,
    HEAT_TIME_S,
    LEAKAGE_PER_C,
    REFERENCE_C,
    BOARD_NUMBERS,
) = range(11)
"""What a board's rules are made of."""

HEAT_EVERY_S = 0.1

ENDS, SECONDS, PROMPTS, DRAWN = range(4)
"""Rows of a step log: see `step_log`."""


@compiled
def decode_coefficients(twin: Numbers, decode: Numbers, clock_mhz: float) -> tuple[float, float, float, float]:
    """At a clock: seconds and joules above idle without cached tokens, and of each of those."""
    fraction = clock_mhz / twin[TOP_MHZ]
    bandwidth = min(1.0, fraction / twin[BANDWIDTH_KNEE])
    exponent = twin[EXPONENT]
    linear_c, compute_s = decode[LINEAR_COMPUTE_S] / fraction, decode[KV_COMPUTE_S] / fraction
    linear_s = smooth_max(linear_c, decode[LINEAR_MEMORY_S] / bandwidth, exponent)
    working_s = linear_s + decode[CLOCKED_S] / fraction + decode[FIXED_S]
    kv_s = smooth_max(compute_s, decode[KV_MEMORY_S] / bandwidth, exponent)
    speed = switching(twin, fraction)
    active_w, compute_w, memory_w = speed * twin[ACTIVE_W], speed * twin[COMPUTE_W], twin[MEMORY_W]
    working_j = active_w * working_s + compute_w * linear_c + memory_w * decode[LINEAR_MEMORY_S]
    kv_j = active_w * kv_s + compute_w * compute_s + memory_w * decode[KV_MEMORY_S]
    return working_s, kv_s, working_j, kv_j


@compiled
def predict_decode(twin: Numbers, decode: Numbers, kv_tokens: float, clock_mhz: float) -> tuple[float, float]:
    """(seconds, W of one GPU) of a step that reads `kv_tokens` cached tokens."""
    working_s, kv_s, working_j, kv_j = decode_coefficients(twin, decode, clock_mhz)
    seconds = smooth_max(working_s + kv_tokens * kv_s, decode[WAIT_S], twin[EXPONENT])
    return seconds, twin[BOARD_IDLE_W] + twin[ACTIVE_IDLE_W] + (working_j + kv_tokens * kv_j) / seconds


@compiled
def clock_now(state: Numbers) -> float:
    """The SM clock of a step that starts now: lock, then the power cap's ceiling."""
    if state[TIME_S] >= state[DUE_S]:
        state[LOCK_MHZ], state[DUE_S] = state[DUE_MHZ], math.inf
    state[CLOCK_MHZ] = min(state[LOCK_MHZ], state[CEILING_MHZ])
    return float(state[CLOCK_MHZ])


@compiled
def leak(state: Numbers, board: Numbers) -> None:
    """Warm up by the mean power since the last time; leakage follows the temperature."""
    seconds = state[HEAT_S]
    if seconds > 0.0:
        settled = board[AMBIENT_C] + board[CELSIUS_PER_W] * state[HEAT_J] / seconds
        state[TEMPERATURE_C] += (settled - state[TEMPERATURE_C]) * -math.expm1(-seconds / board[HEAT_TIME_S])
        state[HEAT_J] = state[HEAT_S] = 0.0
    state[LEAKAGE] = 1.0 + board[LEAKAGE_PER_C] * (state[TEMPERATURE_C] - board[REFERENCE_C])


@compiled
def cap(state: Numbers, twin: Numbers, board: Numbers, power_w: float, seconds: float) -> None:
    """The firmware's loop: blind for a while, then pulls the clock ceiling until power fits the limit."""
    state[SLOW_POWER_W] += (power_w - state[SLOW_POWER_W]) * -math.expm1(-seconds / board[CAP_BLIND_S])
    target, slow, top = state[LIMIT_W] * board[CAP_MARGIN], state[SLOW_POWER_W], twin[TOP_MHZ]
    if slow <= target and state[CEILING_MHZ] >= top:
        return
    error = (target - slow) / max(target, slow)
    factor = 1.0 + max(-0.5, min(0.5, error * seconds / board[CAP_TIME_S]))
    state[CEILING_MHZ] = min(max(state[CEILING_MHZ] * factor, board[LOWEST_MHZ]), top)
    clock_now(state)


@compiled
def account(
    state: Numbers, twin: Numbers, board: Numbers, at_clock: Numbers, seconds: float, power_w: float, clock_mhz: float
) -> float:
    """Let `seconds` pass at a power of one GPU; the joules of all. `clock_mhz`: 0 while idle."""
    state[TIME_S] += seconds
    joules = power_w * seconds * board[COUNT]
    state[ENERGY_J] += joules
    if clock_mhz > 0.0:
        state[CYCLES] += clock_mhz * seconds
        at_clock[round(clock_mhz)] += seconds
    cap(state, twin, board, power_w, seconds)
    state[HEAT_J] += power_w * seconds
    state[HEAT_S] += seconds
    if state[HEAT_S] >= HEAT_EVERY_S:
        leak(state, board)
    return float(joules)


@compiled
def step(
    state: Numbers, twin: Numbers, board: Numbers, at_clock: Numbers, seconds: float, power_w: float, clock_mhz: float
) -> float:
    """Account a step that draws `power_w` of one GPU at the reference temperature; the joules of all."""
    idle_w = twin[BOARD_IDLE_W] + twin[ACTIVE_IDLE_W]
    return account(state, twin, board, at_clock, seconds, idle_w + (power_w - idle_w) * state[LEAKAGE], clock_mhz)


@compiled
def run_decodes(
    state: Numbers,
    twin: Numbers,
    board: Numbers,
    at_clock: Numbers,
    decode: Numbers,
    log: Numbers,
    place: int,
    kv_tokens: float,
    max_steps: int,
    until_s: float,
) -> tuple[int, float, float, float, float]:
    """Up to `max_steps` decode steps: the first unconditionally, each later one only while it starts before
    `until_s`; written to `log` from `place` on. (steps, `idle_j`, `dynamic_j`, `unit_j`, `moment_j`) of `DecodeRun`."""
    idle_w, count, sequences = twin[BOARD_IDLE_W] + twin[ACTIVE_IDLE_W], board[COUNT], decode[SEQUENCES]
    exponent, wait_s = twin[EXPONENT], decode[WAIT_S]
    idle_j = dynamic_j = unit_j = moment_j = 0.0
    clock = clock_now(state)
    working_s, kv_s, working_j, kv_j = decode_coefficients(twin, decode, clock)
    taken = 0
    while True:
        seconds = smooth_max(working_s + kv_tokens * kv_s, wait_s, exponent)
        power_w = idle_w + (working_j + kv_tokens * kv_j) / seconds
        drawn_j = account(state, twin, board, at_clock, seconds, idle_w + (power_w - idle_w) * state[LEAKAGE], clock)
        still_j = idle_w * seconds * count
        share = (drawn_j - still_j) / (decode[WEIGHT] + kv_tokens * decode[WEIGHT_KV])
        idle_j += still_j
        dynamic_j += drawn_j - still_j
        unit_j += share
        moment_j += share * taken
        log[ENDS, place + taken] = state[TIME_S]
        log[SECONDS, place + taken] = seconds
        log[PROMPTS, place + taken] = 0.0
        log[DRAWN, place + taken] = sequences
        kv_tokens += sequences
        taken += 1
        if state[TIME_S] >= until_s or taken == max_steps:
            return taken, idle_j, dynamic_j, unit_j, moment_j
        now_mhz = clock_now(state)
        if now_mhz != clock:
            clock = now_mhz
            working_s, kv_s, working_j, kv_j = decode_coefficients(twin, decode, clock)
