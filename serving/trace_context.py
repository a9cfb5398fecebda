"""What a trace needs of a request while it is served: whose trace it continues, and how it was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from engine.request import SamplingParams

MAX_TRACESTATE_CHARS = 512
# W3C Trace Context, section 3.2: version ff and ids of zeros alone are invalid; a later version may append fields.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]{1,64})?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The client's span, as its headers name it (W3C Trace Context)."""

    traceparent: str
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """What a finished request's spans are made of beside its record."""

    parent: TraceContext | None
    sampling: SamplingParams
    streamed: bool


def read_trace_context(headers: Mapping[str, str]) -> TraceContext | None:
    """None without a `traceparent`, or with one that is not valid: the request then begins a trace of its own."""
    traceparent = headers.get("traceparent")
    if traceparent is None or _TRACEPARENT.fullmatch(traceparent) is None:
        return None
    if traceparent.startswith("00-") and len(traceparent) != len("00--01") + 32 + 16 + 1:
        return None
    tracestate = headers.get("tracestate")
    return TraceContext(traceparent, tracestate if tracestate and len(tracestate) <= MAX_TRACESTATE_CHARS else None)
