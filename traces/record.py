"""What happened to one request of a run, whether replayed live or simulated."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec


class Outcome(enum.StrEnum):
    """COMPLETED: the stream ended properly. ABORTED: the run was stopped first. DROPPED: never sent, and why."""

    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    DROPPED = "dropped"


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=False):
    """Times are seconds from the start of the run; token counts are the server's own where it reports them.

    `recorded_output_tokens` is what the trace recorded, `requested_output_tokens` what this run asked for. `itl_s`:
    gaps between token chunks, empty where not kept. Energy and carbon are the server's or the twin's own attribution,
    with the method beside them; None where unknown.
    """

    index: int
    request_id: str
    outcome: Outcome
    scheduled_s: float
    requested_input_tokens: int
    requested_output_tokens: int
    recorded_output_tokens: int
    sent_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    task: str | None = None
    session_id: str | None = None
    directive: str | None = None
    energy_j: float | None = None
    energy_method: str | None = None
    co2e_g: float | None = None
    itl_s: Sequence[float] = ()

    @property
    def completed(self) -> bool:
        return self.outcome is Outcome.COMPLETED

    @property
    def send_lag_s(self) -> float | None:
        return None if self.sent_s is None else self.sent_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        return _difference(self.first_token_s, self.sent_s)

    @property
    def e2el_s(self) -> float | None:
        return _difference(self.last_token_s, self.sent_s)

    @property
    def ttft_scheduled_s(self) -> float | None:
        return _difference(self.first_token_s, self.scheduled_s)

    @property
    def e2el_scheduled_s(self) -> float | None:
        return _difference(self.last_token_s, self.scheduled_s)

    @property
    def tpot_s(self) -> float | None:
        """Mean time of the tokens after the first; None for answers of one token."""
        if self.output_tokens is None or self.output_tokens < 2:
            return None
        decode_s = _difference(self.last_token_s, self.first_token_s)
        return None if decode_s is None else decode_s / (self.output_tokens - 1)


def _difference(later_s: float | None, earlier_s: float | None) -> float | None:
    return None if later_s is None or earlier_s is None else later_s - earlier_s
