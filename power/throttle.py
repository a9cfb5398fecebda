"""The throttle of prompts under control: the policy's decision, and the engine's limit as a lease that runs out.

The engine lifts a limit that is not renewed, so that neither a crash nor a stalled loop can leave it slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from power.governors import EngineView, Observation, PrefillThrottle, ThrottleMemory

LEASE_S = 10.0
RENEW_S = 2.0

LimitEngine = Callable[[int | None, float], None]
"""Called with the most tokens of a step (`None`: the engine's own budget) and for how many seconds; must not wait."""


@dataclass(frozen=True, slots=True)
class ThrottleChange:
    """`pressed`: index of the device whose pressure changed the limit; the first where none presses."""

    tokens: int | None
    reason: str
    pressed: int


class EngineThrottle:
    """`policy` may be set at any time, `None` for no throttle; so may `limit_engine`, whom it tells."""

    def __init__(
        self, policy: PrefillThrottle | None = None, limit_engine: LimitEngine = lambda tokens, seconds: None
    ) -> None:
        self.policy = policy
        self.limit_engine = limit_engine
        self._memory = ThrottleMemory()
        self._told: tuple[float, int] | None = None
        """When the engine was last told of a limit, and of which."""

    @property
    def step_tokens(self) -> int | None:
        """The limit as decided; `None` for the engine's own budget."""
        return self._memory.tokens

    def decide(
        self,
        time_s: float,
        observations: Sequence[Observation],
        engine: EngineView | None,
        *,
        braking: bool,
        suspended: str | None = None,
    ) -> ThrottleChange | None:
        """One turn: what changes, `None` for nothing. `suspended`: why there is to be no limit whatever presses."""
        before, policy = self._memory.tokens, self.policy
        if policy is None or engine is None or suspended:
            self._memory = ThrottleMemory()
            reason = suspended or "the policy has no prefill_throttle"
            return ThrottleChange(None, reason, 0) if before is not None else None
        pressures = [policy.pressure(observation, braking=braking) for observation in observations]
        pressed = next((index for index, pressure in enumerate(pressures) if pressure is not None), 0)
        decision = policy.decide(time_s, pressures[pressed], engine.max_step_tokens, engine.max_running, self._memory)
        self._memory = decision.memory
        return ThrottleChange(decision.tokens, decision.reason, pressed) if decision.tokens != before else None

    def enforce(self, time_s: float) -> None:
        """Tell the engine what holds: at once after a change, and again before its lease runs out."""
        tokens = self._memory.tokens
        if tokens is None:
            self._lift()
        elif self._told is None or self._told[1] != tokens or time_s - self._told[0] >= RENEW_S:
            self._told = time_s, tokens
            self.limit_engine(tokens, LEASE_S)

    def forget(self) -> int | None:
        """No limit from here on; returns the one that was in force."""
        tokens, self._memory = self._memory.tokens, ThrottleMemory()
        self._lift()
        return tokens

    def _lift(self) -> None:
        if self._told is not None:
            self._told = None
            self.limit_engine(None, LEASE_S)
