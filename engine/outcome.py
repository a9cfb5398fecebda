"""What the result of a step means: for each request the tokens it gains or its end, and the record of the work."""

from __future__ import annotations

from engine.batch import (
    Batch,
    RequestUpdate,
    RequestWork,
    SampledTokens,
    ScheduledRequest,
    StepRecord,
    StepResult,
)
from engine.request import FinishReason, Request


def length_limit(request: Request, max_model_len: int) -> int:
    """Tokens of prompt and answer at which the request ends with `LENGTH`."""
    return min(len(request.prompt_token_ids) + request.sampling.max_tokens, max_model_len)


def append_tokens(request: Request, sampled: SampledTokens, max_model_len: int) -> RequestUpdate:
    """Add the drawn tokens up to the one that ends the request; what was drawn beyond it is dropped.

    The reason is reported, not set. A token that both stops and fills the request counts as `STOP`.
    """
    sampling = request.sampling
    known = request.token_ids
    num_prompt_tokens = len(request.prompt_token_ids)
    limit = min(num_prompt_tokens + sampling.max_tokens, max_model_len)
    # Stop tokens count from this length on.
    earliest_stop = num_prompt_tokens + sampling.min_tokens
    stops, ends = sampling.stop_token_ids, () if sampling.ignore_eos else request.eos_token_ids
    if len(sampled.token_ids) == 1 and not stops and not ends:
        known += sampled.token_ids
        ended = FinishReason.LENGTH if len(known) >= limit else None
        return RequestUpdate(request, sampled.token_ids, sampled.logprobs, ended)
    reason: FinishReason | None = None
    for count, token_id in enumerate(sampled.token_ids, start=1):
        known.append(token_id)
        length = len(known)
        if length >= earliest_stop and (token_id in stops or token_id in ends):
            reason = FinishReason.STOP
        elif length >= limit:
            reason = FinishReason.LENGTH
        if reason is not None:
            return RequestUpdate(request, sampled.token_ids[:count], sampled.logprobs[:count], reason)
    return RequestUpdate(request, sampled.token_ids, sampled.logprobs)


def failure(scheduled: ScheduledRequest, sampled: SampledTokens) -> RequestUpdate:
    """The end of a request that failed alone, or whose result does not fit what was scheduled."""
    error = sampled.error
    if error is None:
        error = f"the executor drew {len(sampled.token_ids)} tokens where samples={scheduled.samples}"
    return RequestUpdate(scheduled.request, finish_reason=FinishReason.ERROR, error=error)


def step_record(batch: Batch, result: StepResult) -> StepRecord:
    """Whose work the step did. Call it before a later `schedule` preempts: that makes decode work prefill work."""
    work = []
    for scheduled in batch.requests:
        request, num_tokens = scheduled.request, scheduled.num_tokens
        prefill = scheduled.num_prefill_tokens
        work.append(RequestWork(request.request_id, prefill, num_tokens - prefill, scheduled.start + num_tokens))
    return StepRecord(batch.step_id, result.started_s, result.ended_s, tuple(work))
