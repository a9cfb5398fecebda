"""One request of a workload: when it arrives, how long it is, and what is known about its answer."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

BASELINE_LEVEL = "L0"

Count = Annotated[int, msgspec.Meta(ge=0)]
LengthMethod = Literal["measured", "estimated", "synthetic"]


class ShapedLength(msgspec.Struct, frozen=True):
    """Output length of one request under a directive level, and how that figure was obtained."""

    level: str
    output_tokens: Count
    method: LengthMethod
    source: str


class TraceRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A msgspec struct and not a dataclass: traces have 44 million rows, and this is also a line of our JSONL.

    `arrival_s`: seconds from the workload's zero. `output_tokens`: the *recorded* length, 0 where the source
    recorded a failure. `shaped`: lengths under other directive levels, never derived from the recorded one here.
    `prefix_ids`: one id for each block of `block_tokens` prompt tokens; two prompts share the blocks of their common
    leading ids. `block_tokens` is None where the source does not say how long a block is.
    `preferred_level`: the level whose answer a judge preferred for this prompt. `judged_row`: its row in the judged
    file. `prompt`: the text itself, where the source has one.
    """

    arrival_s: Annotated[float, msgspec.Meta(ge=0)]
    input_tokens: Annotated[int, msgspec.Meta(ge=1)]
    output_tokens: Count
    session_id: str | None = None
    prefix_ids: tuple[Count, ...] = ()
    block_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    model: str | None = None
    task: str | None = None
    images: Count = 0
    recorded_duration_s: float | None = None
    preferred_level: str | None = None
    judged_row: Count | None = None
    shaped: tuple[ShapedLength, ...] = ()
    prompt: str | None = None

    def length_at(self, level: str) -> ShapedLength:
        """Length under a directive level. The baseline level is the recorded length; any other must be in `shaped`.

        Raises `ValueError` where it is unknown: a recorded length says nothing about an answer that was asked to
        be brief.
        """
        for length in self.shaped:
            if length.level == level:
                return length
        if level == BASELINE_LEVEL:
            return ShapedLength(level, self.output_tokens, "measured", "recorded in the trace")
        raise ValueError(
            f"the trace has no output length at level {level}: recorded lengths are those of {BASELINE_LEVEL}. "
            "Use a workload with judged rows or with a synthesis spec that states lengths by level"
        )
