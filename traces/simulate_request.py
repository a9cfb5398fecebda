"""A request inside the simulator: the engine's own, with what the simulation keeps beside it."""

from __future__ import annotations

import functools

from engine.request import Request, SamplingParams
from traces.request import TraceRequest

UNIQUE_FROM = 1 << 32


class SimulatedRequest(Request):
    """Joules are booked here as the steps run; `idle_mark_j`: the idle joules a resident had received by its arrival
    (see `simulate_ledger`). `last_length`: tokens of prompt and answer. `level`: the directive level it was given;
    `length_method`: how its output length is known."""

    __slots__ = (
        "decode_j",
        "first_s",
        "idle_mark_j",
        "last_length",
        "last_s",
        "length_method",
        "level",
        "number",
        "prefill_j",
        "trace",
    )

    def __init__(
        self, number: int, trace: TraceRequest, output_tokens: int, *, priority: int = 0, share_prefixes: bool = False
    ) -> None:
        prompt = prompt_ids(number, trace) if share_prefixes else blank_prompt(trace.input_tokens)
        super().__init__(f"sim-{number}", prompt, sampling(output_tokens), trace.arrival_s, priority)
        self.number = number
        self.last_length = len(prompt) + output_tokens
        self.trace = trace
        self.prefill_j = 0.0
        self.decode_j = 0.0
        self.idle_mark_j = 0.0
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.level: str | None = None
        self.length_method = "recorded"


@functools.lru_cache(maxsize=4096)
def sampling(output_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)


@functools.lru_cache(maxsize=1024)
def blank_prompt(tokens: int) -> tuple[int, ...]:
    """A prompt of which only the length matters."""
    return (0,) * tokens


def prompt_ids(number: int, trace: TraceRequest) -> tuple[int, ...]:
    """Token ids such that two prompts begin alike exactly as far as their prefix ids do.

    The tokens after the last whole block, and prompts without ids, are this request's own.
    """
    own = UNIQUE_FROM + number
    block = trace.block_tokens
    if not trace.prefix_ids or block is None:
        return (own,) * trace.input_tokens
    ids: list[int] = []
    for prefix_id in trace.prefix_ids:
        ids.extend((prefix_id + 2,) * block)
    del ids[trace.input_tokens :]
    ids.extend((own,) * (trace.input_tokens - len(ids)))
    return tuple(ids)
