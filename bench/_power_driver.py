"""A small continuous-batching server in virtual time, on the twin: enough to compare governors with each other."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from power.governors import DRIVER_DEFAULT, EngineView, Governor, Memory, Observation, Setpoint, Slo
from power.simulated import SimulatedDevice
from power.twin import StepWork, Twin

CONTROL_S = 0.2
WINDOW_S = 30.0
Trace = tuple[float, float, float, int]
"""Time, mean power since the last entry in W, SM clock MHz, running sequences."""


@dataclass(slots=True)
class _Request:
    arrival_s: float
    prompt: int
    output: int
    computed: int = 0
    drawn: int = 0
    first_s: float | None = None
    last_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        assert self.first_s is not None
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        if self.drawn < 2 or self.first_s is None:
            return None
        return (self.last_s - self.first_s) / (self.drawn - 1)


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals at `rate(t)` requests/s; lognormal lengths (mean of the logarithm, its deviation, largest)."""

    rate: Callable[[float], float]
    duration_s: float
    prompt: tuple[float, float, int] = (math.log(300), 0.8, 4000)
    output: tuple[float, float, int] = (math.log(180), 0.7, 1500)
    seed: int = 7


@dataclass(slots=True)
class Outcome:
    """What a run cost and how quick it was. J/token counts output tokens and the whole board."""

    joules: float
    tokens: int
    duration_s: float
    ttft_p99_s: float
    tpot_p99_s: float
    tpot_p50_s: float
    slo_share: float
    switches: int
    trace: list[Trace] = field(default_factory=list)

    @property
    def joules_per_token(self) -> float:
        return self.joules / self.tokens

    @property
    def power_w(self) -> float:
        return self.joules / self.duration_s


class Server:
    """One engine with chunked prefill: decodes first, then prompts up to `max_step_tokens`."""

    def __init__(self, twin: Twin, governor: Governor, slo: Slo, load: Load, *, max_running: int = 256) -> None:
        self.now_s = 0.0
        self.twin, self.governor, self.slo, self.load = twin, governor, slo, load
        self.device = SimulatedDevice(twin, clock=lambda: self.now_s, exact_sensor=True)
        self.max_running, self.max_step_tokens = max_running, 2048
        self._random = random.Random(load.seed)
        self._arrivals = self._draw_arrivals()
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._recent: deque[tuple[float, float, float | None]] = deque()
        self._prompts: deque[tuple[float, int]] = deque()
        self._drawn: deque[tuple[float, int]] = deque()
        self._finished: deque[tuple[float]] = deque()
        self._steps: deque[tuple[float, float, int]] = deque()
        self._memory = Memory()
        self._asked: Setpoint = DRIVER_DEFAULT
        self._since_s = -math.inf
        self._switches = 0

    def run(self, *, warmup_s: float = 20.0) -> Outcome:
        next_control, counted_from, done, trace = 0.0, None, list[_Request](), list[Trace]()
        seen_s, seen_j = 0.0, 0.0
        tokens = 0
        while self.now_s < self.load.duration_s:
            if self.now_s >= next_control:
                self._control()
                next_control = self.now_s + CONTROL_S
                clock = self.device.board.state.clock_mhz
                energy = self.device.board.state.energy_j
                mean_w = (energy - seen_j) / max(self.now_s - seen_s, 1e-9)
                seen_s, seen_j = self.now_s, energy
                trace.append((self.now_s, mean_w, clock, len(self._running)))
            if counted_from is None and self.now_s >= warmup_s:
                counted_from = (self.now_s, self.device.board.state.energy_j)
                done.clear()
                tokens = 0
            self._admit()
            work, prefilled = self._schedule()
            if work.empty:
                nearest = self._arrivals[0].arrival_s if self._arrivals else self.load.duration_s
                self.now_s = min(max(nearest, self.now_s + 1e-6), next_control)
                self.device.read()
                continue
            started = self.now_s
            clock = min(self.device.board.target_clock(busy=True), self.device.board.state.ceiling_mhz)
            self.now_s += self.twin.predict(work, clock).duration_s
            self.device.on_step(work, started, self.now_s)
            self._steps.append((self.now_s, self.now_s - started, work.prefill_tokens))
            drawn = self._finish_step(prefilled, done)
            self._drawn.append((self.now_s, drawn))
            tokens += drawn
        assert counted_from is not None
        return self._outcome(counted_from, tokens, done, trace)

    def _draw_arrivals(self) -> deque[_Request]:
        load, rng, found, now = self.load, self._random, deque[_Request](), 0.0
        ceiling = max(load.rate(second / 4) for second in range(int(4 * load.duration_s)))
        while now < load.duration_s:
            now += rng.expovariate(ceiling)
            if rng.random() < load.rate(now) / ceiling:
                found.append(_Request(now, self._length(*load.prompt), self._length(*load.output)))
        return found

    def _length(self, mean: float, deviation: float, largest: int) -> int:
        return max(4, min(largest, round(self._random.lognormvariate(mean, deviation))))

    def _admit(self) -> None:
        while self._arrivals and self._arrivals[0].arrival_s <= self.now_s:
            request = self._arrivals.popleft()
            self._prompts.append((request.arrival_s, request.prompt))
            self._waiting.append(request)
        while self._waiting and len(self._running) < self.max_running:
            self._running.append(self._waiting.popleft())

    def _schedule(self) -> tuple[StepWork, list[tuple[_Request, int]]]:
        decodes = [request for request in self._running if request.computed >= request.prompt]
        budget, prefilled, pairs, kv = self.max_step_tokens - len(decodes), list[tuple[_Request, int]](), 0.0, 0
        for request in self._running:
            left = request.prompt - request.computed
            if left > 0 and budget > 0:
                size = min(left, budget)
                budget -= size
                pairs += size * (request.computed + size / 2)
                kv += request.computed + size
                prefilled.append((request, size))
        decode_kv = sum(request.prompt + request.drawn for request in decodes)
        tokens = sum(size for _, size in prefilled)
        return StepWork(tokens, len(prefilled), kv, pairs, len(decodes), decode_kv), prefilled

    def _finish_step(self, prefilled: list[tuple[_Request, int]], done: list[_Request]) -> int:
        chunks = {id(request): size for request, size in prefilled}
        tokens, kept = 0, list[_Request]()
        for request in self._running:
            size = chunks.get(id(request), 0)
            request.computed += size
            if request.computed < request.prompt or (not size and request.first_s is None):
                kept.append(request)
                continue
            tokens += 1
            request.drawn += 1
            if request.first_s is None:
                request.first_s = self.now_s
            if request.drawn < request.output:
                kept.append(request)
            else:
                request.last_s = self.now_s
                self._finished.append((self.now_s,))
                done.append(request)
                self._recent.append((self.now_s, request.ttft_s, request.tpot_s))
        self._running = kept
        return tokens

    def _control(self) -> None:
        info = self.device.info
        observation = Observation(
            time_s=self.now_s,
            clocks_mhz=info.clocks_mhz,
            limits=info.limits,
            current=self._asked,
            since_s=self._since_s,
            reading=self.device.read(),
            engine=self._view(),
            slo=self.slo,
            memory=self._memory,
        )
        decision = self.governor.decide(observation)
        self._memory = decision.memory
        if decision.setpoint == self._asked:
            return
        if decision.setpoint.sm_clock_mhz is None:
            self.device.reset_clocks()
        else:
            self.device.lock_clocks(decision.setpoint.sm_clock_mhz, decision.setpoint.sm_clock_mhz)
        if decision.setpoint.power_limit_w is not None:
            self.device.set_power_limit(decision.setpoint.power_limit_w)
        self._asked, self._since_s = decision.setpoint, self.now_s
        self._switches += 1

    def _view(self) -> EngineView:
        for recent in (self._recent, self._prompts, self._steps, self._drawn, self._finished):
            while recent and recent[0][0] < self.now_s - WINDOW_S:
                recent.popleft()
        steps = [step for step in self._steps if step[0] > self.now_s - 1.0]
        waiting = [request for request in (*self._running, *self._waiting) if request.first_s is None]
        window = max(1.0, min(WINDOW_S, self.now_s))
        return EngineView(
            running=sum(request.computed >= request.prompt for request in self._running),
            kv_tokens=sum(request.computed + request.drawn for request in self._running),
            waiting=len(self._waiting),
            waiting_tokens=sum(request.prompt - request.computed for request in waiting),
            oldest_wait_s=max((self.now_s - request.arrival_s for request in waiting), default=0.0),
            prompt_tokens_per_s=sum(prompt for _, prompt in self._prompts) / window,
            output_tokens_per_s=self._asked_tokens(window),
            prompt_p99_tokens=round(percentile([float(prompt) for _, prompt in self._prompts], 0.99) or 512),
            max_step_tokens=self.max_step_tokens,
            max_running=self.max_running,
            step_s=sum(step[1] for step in steps) / len(steps) if steps else None,
            step_tokens=sum(step[2] for step in steps) / len(steps) if steps else 0.0,
            ttft_p99_s=percentile([ttft for _, ttft, _ in self._recent], 0.99),
            tpot_p99_s=percentile([tpot for _, _, tpot in self._recent if tpot is not None], 0.99),
        )

    def _asked_tokens(self, window: float) -> float | None:
        if len(self._finished) < 10:
            return None
        mean_answer = sum(tokens for _, tokens in self._drawn) / len(self._finished)
        return len(self._prompts) / window * mean_answer

    def _outcome(self, since: tuple[float, float], tokens: int, done: list[_Request], trace: list[Trace]) -> Outcome:
        tpots = [request.tpot_s for request in done if request.tpot_s is not None]
        good = sum(request.ttft_s <= self.slo.ttft_s and (request.tpot_s or 0.0) <= self.slo.tpot_s for request in done)
        return Outcome(
            joules=self.device.board.state.energy_j - since[1],
            tokens=tokens,
            duration_s=self.now_s - since[0],
            ttft_p99_s=percentile([request.ttft_s for request in done], 0.99) or 0.0,
            tpot_p99_s=percentile(tpots, 0.99) or 0.0,
            tpot_p50_s=percentile(tpots, 0.5) or 0.0,
            slo_share=good / max(1, len(done)),
            switches=self._switches,
            trace=trace,
        )


def percentile(values: list[float], share: float) -> float | None:
    """Nearest rank; `None` for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
