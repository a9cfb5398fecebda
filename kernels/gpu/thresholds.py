"""Top-k, top-p and min-p as one threshold on the logits, found without a sort.

One program a row. The k-th largest logit is the largest x with count(logits >= x) >= k; the nucleus ends at the
largest x with mass(logits >= x) >= p. Both predicates fall as x rises, so the bits of x, in the order-preserving
integer form of a float, are found from the top, one pass over the row for each bit: exact, deterministic, no atomics.
Division by the temperature keeps the order, so the search runs on the logits as they are, and as many bits as their
dtype has decide; only the result is scaled. Masses are added in fp64 across tiles.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks

_BLOCK = 4096
# Sign, exponent and mantissa bits of each dtype as they stand at the top of an fp32.
_LEADING_BITS = {torch.bfloat16: 16, torch.float16: 19, torch.float32: 32}


@triton.jit
def key_to_float(key):
    """The fp32 whose order-preserving 32-bit key (in int64) this is; keys outside the numbers give NaN."""
    bits = tl.where(key >= 0x80000000, key - 0x80000000, 0xFFFFFFFF - key)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def found_float(key, BITS: tl.constexpr):
    """The logit whose first BITS bits the search found; -inf where it found none.

    The key of a negative number is the complement of its bits: what the search left 0 must be 1 there.
    """
    rest: tl.constexpr = (1 << (32 - BITS)) - 1
    whole = tl.where(key < 0x80000000, key + rest, key)
    return tl.where(key > 0, key_to_float(whole), float("-inf"))


@triton.jit
def load_logits(row_logits, start, vocab_size, BLOCK: tl.constexpr):
    """A tile as fp32; past the end NaN, which no comparison counts."""
    ids = start + tl.arange(0, BLOCK)
    return tl.load(row_logits + ids, mask=ids < vocab_size, other=float("nan")).to(tl.float32)


@triton.jit
def count_at_least(row_logits, bound, vocab_size, BLOCK: tl.constexpr):
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab_size, BLOCK):
        count += (load_logits(row_logits, start, vocab_size, BLOCK) >= bound).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def mass_at_least(row_logits, bound, peak, rate, vocab_size, BLOCK: tl.constexpr):
    """Sum of 2^((x - peak) * rate) over x >= bound."""
    mass = tl.full([], 0.0, tl.float64)
    for start in range(0, vocab_size, BLOCK):
        values = load_logits(row_logits, start, vocab_size, BLOCK)
        mass += tl.sum(tl.where(values >= bound, tl.exp2((values - peak) * rate), 0.0), 0).to(tl.float64)
    return mass


# Rows of a table of parameters begin where the size of the batch has them begin.
@triton.jit(do_not_specialize_on_alignment=["temperatures", "top_k", "top_p", "min_p"])
def threshold_kernel(
    out, logits, temperatures, top_k, top_p, min_p, stride, vocab_size, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """BITS: leading bits of an fp32 that a logit's dtype can set."""
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * stride
    temperature = tl.load(temperatures + row)
    temperature = tl.where(temperature > 0, temperature, 1.0)
    rate = 1.4426950408889634 / temperature
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    floor = tl.load(min_p + row)
    limited = (k > 0) & (k < vocab_size)

    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        values = load_logits(row_logits, start, vocab_size, BLOCK)
        best = tl.where(values > best, values, best)
    peak = tl.max(best, 0)

    bound = tl.full([], float("-inf"), tl.float32)
    if limited:
        key = tl.full([], 0, tl.int64)
        for step in range(BITS):
            candidate = key + (tl.full([], 1, tl.int64) << (31 - step))
            if count_at_least(row_logits, key_to_float(candidate), vocab_size, BLOCK) >= k:
                key = candidate
        bound = found_float(key, BITS)

    if (p < 1.0) & (peak > float("-inf")):
        total = mass_at_least(row_logits, bound, peak, rate, vocab_size, BLOCK)
        if limited:
            # Of the logits that equal the k-th, top-k counts only as many as make up k.
            count = count_at_least(row_logits, bound, vocab_size, BLOCK)
            total -= ((count - k).to(tl.float32) * tl.exp2((bound - peak) * rate)).to(tl.float64)
        wanted = total * p.to(tl.float64)
        key = tl.full([], 0, tl.int64)
        for step in range(BITS):
            candidate = key + (tl.full([], 1, tl.int64) << (31 - step))
            if mass_at_least(row_logits, key_to_float(candidate), peak, rate, vocab_size, BLOCK) >= wanted:
                key = candidate
        bound = tl.maximum(bound, found_float(key, BITS))

    threshold = tl.div_rn(bound, temperature)
    if floor > 0:
        threshold = tl.maximum(threshold, tl.div_rn(peak, temperature) + tl.log(floor))
    tl.store(out + row, threshold)


def sampling_thresholds(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """The smallest `logits / temperature` that survives top-k, then top-p of what top-k left, then min-p: `[R]` fp32.

    Arguments as in `definitions.sampling_thresholds`; a row with all three off costs one pass.
    """
    checks.shape("logits", logits, None, None)
    checks.dtype("logits", logits, *checks.FLOATS)
    checks.dense_tail("logits", logits)
    rows, vocab_size = logits.shape
    for name, tensor, dtype in (
        ("temperatures", temperatures, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
    ):
        checks.shape(name, tensor, rows)
        checks.dtype(name, tensor, dtype)
        checks.dense_tail(name, tensor)
    checks.same_device(logits=logits, temperatures=temperatures, top_k=top_k, top_p=top_p, min_p=min_p)
    out = torch.empty((rows,), dtype=torch.float32, device=logits.device)
    if rows > 0:
        threshold_kernel[(rows,)](
            out,
            logits,
            temperatures,
            top_k,
            top_p,
            min_p,
            logits.stride(0),
            vocab_size,
            BITS=_LEADING_BITS[logits.dtype],
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocab_size)),
            num_warps=8,
        )
    return out
