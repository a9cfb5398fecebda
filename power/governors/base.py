"""What governors see and answer. All frozen: a decision can be replayed from its audit record.

msgspec structs, because a simulated day makes millions of them: they take a sixth of a frozen dataclass's time. They
hold nothing that leads back to them, so that the garbage collector need not look at them.
"""

from __future__ import annotations

import enum
from typing import Protocol

from msgspec import Struct, field

from power.device import PowerLimits, Reading


class Phase(enum.StrEnum):
    """What the engine is mostly doing."""

    IDLE = "idle"
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class Setpoint(Struct, frozen=True, gc=False):
    """What is asked of a device. `None` is the driver's default. `admit_low_priority=False` asks the server to
    hold back low-priority requests."""

    sm_clock_mhz: int | None = None
    power_limit_w: float | None = None
    admit_low_priority: bool = True


DRIVER_DEFAULT = Setpoint()


class Slo(Struct, frozen=True, gc=False):
    """Targets at the 99th percentile, seconds."""

    ttft_s: float
    tpot_s: float


class EngineView(Struct, frozen=True, gc=False):
    """The engine at a moment.

    `waiting_tokens`: prompt tokens not yet computed, waiting or running; `oldest_wait_s`: age of the oldest
    request without a first token; `prompt_tokens_per_s`: recent arrivals; `output_tokens_per_s`: arrivals times
    the mean answer length, what the load will come to ask for (`None`: unknown); `prompt_p99_tokens`: a long
    prompt of the recent past; `step_s` and `step_tokens`: mean duration and prompt tokens of recent steps;
    `*_p99_s`: measured over the recent window, `None` without enough requests.
    """

    running: int
    kv_tokens: int
    waiting: int = 0
    waiting_tokens: int = 0
    oldest_wait_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    output_tokens_per_s: float | None = None
    prompt_p99_tokens: int = 512
    max_step_tokens: int = 2048
    max_running: int = 256
    step_s: float | None = None
    step_tokens: float = 0.0
    ttft_p99_s: float | None = None
    tpot_p99_s: float | None = None
    phase: Phase = Phase.MIXED


class GridSignal(Struct, frozen=True, gc=False):
    """Carbon intensity now and the range it is judged in, g/kWh."""

    intensity_g_per_kwh: float
    low_g_per_kwh: float
    high_g_per_kwh: float
    stale: bool = False

    @property
    def dirtiness(self) -> float:
        """0 at or below `low`, 1 at or above `high`."""
        span = self.high_g_per_kwh - self.low_g_per_kwh
        if span <= 0:
            return 0.0
        return min(1.0, max(0.0, (self.intensity_g_per_kwh - self.low_g_per_kwh) / span))


class Memory(Struct, frozen=True, gc=False):
    """What a governor remembers between decisions; part of the observation, so that governors stay functions.

    `heard`: the worst latency already answered for, as a share of its SLO; `output_share`, `long_prompt`: output tokens
    for each prompt token, and tokens of a long prompt, as last known (`None`: never seen).
    """

    lower_wish_since_s: float | None = None
    step_correction: float = 1.0
    guard_until_s: float = 0.0
    deaf_until_s: float = 0.0
    caution: float = 1.0
    heard: float = 0.0
    output_share: float | None = None
    long_prompt: float | None = None


class Observation(Struct, frozen=True, gc=False):
    """Everything a governor may look at. `current` is what was last asked of the device, since `since_s`."""

    time_s: float
    clocks_mhz: tuple[int, ...]
    limits: PowerLimits | None
    current: Setpoint = DRIVER_DEFAULT
    since_s: float = float("-inf")
    reading: Reading | None = None
    engine: EngineView | None = None
    slo: Slo | None = None
    grid: GridSignal | None = None
    clock_ceiling_mhz: int | None = None
    memory: Memory = field(default_factory=Memory)

    @property
    def top_mhz(self) -> int:
        """0 where no clocks are known."""
        return self.clocks_mhz[-1] if self.clocks_mhz else 0

    @property
    def current_mhz(self) -> int:
        """The clock asked for; the driver's default counts as the top clock."""
        return self.current.sm_clock_mhz if self.current.sm_clock_mhz is not None else self.top_mhz


class Decision(Struct, frozen=True, gc=False):
    """What to ask for, why, and what to remember."""

    setpoint: Setpoint
    reason: str
    memory: Memory


class Governor(Protocol):
    """A pure function of the observation."""

    @property
    def name(self) -> str: ...

    def decide(self, observation: Observation) -> Decision: ...
