"""Fit a request into a model's window."""

from __future__ import annotations

import msgspec

from traces.request import TraceRequest


def clip_to_window(request: TraceRequest, window_tokens: int) -> TraceRequest:
    """Cut prompt and answer until both fit: the prompt first, since a cut answer changes the decode work more.

    The answer keeps its length up to half of the window; ids of prefix blocks beyond the cut go too. Lengths under
    directive levels are cut to what remains beside the prompt.
    """
    if window_tokens < 2:
        raise ValueError(f"window_tokens must be at least 2 (a prompt and an answer), got {window_tokens}")
    if request.input_tokens + request.output_tokens <= window_tokens:
        return request
    room = max(window_tokens // 2, window_tokens - request.input_tokens)
    output_tokens = min(request.output_tokens, room)
    input_tokens = min(request.input_tokens, window_tokens - max(output_tokens, 1))
    blocks = len(request.prefix_ids)
    if request.block_tokens is not None:
        blocks = -(-input_tokens // request.block_tokens)
    shaped = tuple(
        msgspec.structs.replace(length, output_tokens=min(length.output_tokens, window_tokens - input_tokens))
        for length in request.shaped
    )
    return msgspec.structs.replace(
        request,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prefix_ids=request.prefix_ids[:blocks],
        shaped=shaped,
    )
