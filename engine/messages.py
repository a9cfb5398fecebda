"""What the front end and the engine process say to each other: msgspec structs, MessagePack on the wire.

Tokens travel, text does not. Every message is one frame; a frame that does not decode is a bug on our side, since
the socket is private to the two processes.
"""

from __future__ import annotations

import msgspec

from engine.batch import StepRecord, TokenLogprobs
from engine.client_protocol import EngineInfo, EngineStats
from engine.request import FinishReason, SamplingParams


class Submit(msgspec.Struct, tag=True, frozen=True):
    """Generate one sequence. `arrival_s` is monotonic, stamped by the front end.

    `ticket` comes back with every delta: an id may be used again while deltas of its aborted predecessor are still
    on their way, and those must not reach the new stream.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    priority: int = 0
    cache_salt: str = ""
    ticket: int = 0


class Abort(msgspec.Struct, tag=True, frozen=True):
    request_ids: tuple[str, ...]


class SetLimits(msgspec.Struct, tag=True, frozen=True):
    """Run-time limits of the scheduler; None lifts one. After `for_s` seconds without another such message both are
    lifted; None: they stay."""

    token_budget: int | None = None
    max_running: int | None = None
    for_s: float | None = None


class SetPaused(msgspec.Struct, tag=True, frozen=True):
    paused: bool


class SetPace(msgspec.Struct, tag=True, frozen=True):
    """Steps are to take `factor` times as long: a simulated device runs at a lower clock."""

    factor: float


class ResetPrefixCache(msgspec.Struct, tag=True, frozen=True):
    pass


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    pass


ToEngine = Submit | Abort | SetLimits | SetPaused | SetPace | ResetPrefixCache | Shutdown


class Loading(msgspec.Struct, tag=True, frozen=True):
    """Progress of start-up: bytes of weights read so far, or a stage without a measure (`total` 0)."""

    stage: str
    done: int = 0
    total: int = 0


class Ready(msgspec.Struct, tag=True, frozen=True):
    info: EngineInfo
    stats: EngineStats


class StartFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start, and a restart would not help; `reason` says what to do."""

    reason: str


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought for one request; `ticket` is that of its `Submit`, `admitted_s` is monotonic."""

    request_id: str
    ticket: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    num_cached_tokens: int
    error: str | None
    admitted_s: float | None = None


class StepOutputs(msgspec.Struct, tag=True, frozen=True):
    """Outcome of one step; `record` is None where nothing ran (an abort, a refusal, a probe).

    `fault`: why the engine is not healthy, None when it is.
    """

    deltas: tuple[Delta, ...]
    record: StepRecord | None
    stats: EngineStats
    fault: str | None = None


FromEngine = Loading | Ready | StartFailed | StepOutputs

encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)
