"""Repetition, frequency and presence penalties from count tables that stay on the device, and their upkeep."""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks

_BLOCK = 1024


# Rows of a table of parameters begin where the size of the batch has them begin.
@triton.jit(do_not_specialize_on_alignment=["slots", "repetition", "frequency", "presence"])
def penalties_kernel(
    logits,
    slots,
    output_counts,
    prompt_seen,
    repetition,
    frequency,
    presence,
    logits_stride,
    counts_stride,
    seen_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    repeat = tl.load(repetition + row)
    frequent = tl.load(frequency + row)
    present = tl.load(presence + row)
    # A row without penalties reads and writes nothing.
    if (repeat == 1.0) & (frequent == 0.0) & (present == 0.0):
        return
    slot = tl.load(slots + row).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = ids < vocab_size
    values = tl.load(logits + row * logits_stride + ids, mask=mask, other=0.0)
    counts = tl.load(output_counts + slot * counts_stride + ids, mask=mask, other=0)
    in_prompt = tl.load(prompt_seen + slot * seen_stride + ids, mask=mask, other=0)
    generated = counts > 0
    seen = generated | (in_prompt != 0)
    factor = tl.where(values > 0, tl.div_rn(1.0, repeat), repeat)
    values = tl.where(seen, values * factor, values)
    values -= frequent * counts.to(tl.float32) + tl.where(generated, present, 0.0)
    tl.store(logits + row * logits_stride + ids, values, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def count_tokens_kernel(output_counts, slots, token_ids, stride, num_rows, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_rows
    slot = tl.load(slots + rows, mask=mask, other=-1).to(tl.int64)
    token = tl.load(token_ids + rows, mask=mask, other=0)
    at = output_counts + slot * stride + token
    mask = mask & (slot >= 0)
    tl.store(at, tl.load(at, mask=mask, other=0) + 1, mask=mask)


def apply_penalties(
    logits: torch.Tensor,
    slots: torch.Tensor,
    output_counts: torch.Tensor,
    prompt_seen: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> None:
    """Repetition, then frequency and presence penalties on `logits` `[R, V]` fp32, in place.

    Arguments as in `definitions.apply_penalties`: tables `[S, V]` int32 and bool, their rows by `slots` `[R]` int32.
    """
    checks.shape("logits", logits, None, None)
    rows, vocab_size = logits.shape
    checks.shape("output_counts", output_counts, None, vocab_size)
    checks.shape("prompt_seen", prompt_seen, output_counts.shape[0], vocab_size)
    checks.dtype("logits", logits, torch.float32)
    checks.dtype("output_counts", output_counts, torch.int32)
    checks.dtype("prompt_seen", prompt_seen, torch.bool)
    checks.dtype("slots", slots, torch.int32)
    checks.shape("slots", slots, rows)
    for name, tensor in (("repetition", repetition), ("frequency", frequency), ("presence", presence)):
        checks.shape(name, tensor, rows)
        checks.dtype(name, tensor, torch.float32)
    for name, tensor in (("logits", logits), ("output_counts", output_counts), ("prompt_seen", prompt_seen)):
        checks.dense_tail(name, tensor)
    checks.same_device(logits=logits, slots=slots, output_counts=output_counts, prompt_seen=prompt_seen)
    if rows > 0:
        penalties_kernel[(rows, triton.cdiv(vocab_size, _BLOCK))](
            logits,
            slots,
            output_counts,
            prompt_seen,
            repetition,
            frequency,
            presence,
            logits.stride(0),
            output_counts.stride(0),
            prompt_seen.stride(0),
            vocab_size,
            BLOCK=_BLOCK,
            num_warps=4,
        )


def count_tokens(output_counts: torch.Tensor, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Add one to `output_counts[slots[r], token_ids[r]]`; the slots `[R]` int32 differ, -1 skips; ids `[R]` int64."""
    checks.shape("output_counts", output_counts, None, None)
    checks.dtype("output_counts", output_counts, torch.int32)
    checks.dense_tail("output_counts", output_counts)
    checks.dtype("slots", slots, torch.int32)
    checks.shape("token_ids", token_ids, slots.shape[0])
    checks.dtype("token_ids", token_ids, torch.int64)
    checks.same_device(output_counts=output_counts, slots=slots, token_ids=token_ids)
    rows = slots.shape[0]
    if rows > 0:
        count_tokens_kernel[(triton.cdiv(rows, 128),)](
            output_counts, slots, token_ids, output_counts.stride(0), rows, BLOCK=128, num_warps=4
        )
