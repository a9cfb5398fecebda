"""The next token of each row: greedy argmax, and Gumbel-max draws whose noise depends on (seed, position, token id).

Gumbel-max (Gumbel, 1954; Maddison et al., 2014): argmax(logits / T + noise) is a draw from softmax(logits / T), with
no softmax, no sort and no cumulative sum. Blocks of the vocabulary find their best in parallel; a second kernel takes
the best of those. Nothing depends on the row's place in the batch.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks

_BLOCK = 2048


@triton.jit
def gumbel(seed, position, first_token, BLOCK: tl.constexpr):
    """Noise of the tokens `[first_token, first_token + BLOCK)`: the four words of each Philox block in turn."""
    counter = first_token // 4 + tl.arange(0, BLOCK // 4)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + position, zero, zero)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # -log(1 - u): near 0, where the largest noise comes from, fp32 cannot hold 1 - u.
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5)))))
    exponential = tl.where(u < 0.05, series, -tl.log(1.0 - tl.minimum(u, 0.99999994)))
    return -tl.log(exponential)


# Rows of a table of parameters begin where the size of the batch has them begin.
@triton.jit(do_not_specialize_on_alignment=["temperatures", "thresholds", "seeds", "positions"])
def block_best_kernel(
    best_values,
    best_ids,
    logits,
    temperatures,
    thresholds,
    seeds,
    positions,
    stride,
    vocab_size,
    BLOCK: tl.constexpr,
    RANDOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    ids = first + tl.arange(0, BLOCK)
    values = tl.load(logits + row * stride + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    # Comparisons pass over NaN in an order of their own: it is looked for apart.
    broken = tl.max((values != values).to(tl.int32), 0)
    if RANDOM:
        temperature = tl.load(temperatures + row)
        if temperature > 0:
            scaled = tl.div_rn(values, temperature)
            noise = gumbel(tl.load(seeds + row), tl.load(positions + row).to(tl.int32), first, BLOCK)
            values = tl.where(scaled >= tl.load(thresholds + row), scaled + noise, float("-inf"))
    best, index = tl.max(values, 0, return_indices=True, return_indices_tie_break_left=True)
    best = tl.where(broken > 0, float("nan"), best)
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_values + at, best)
    tl.store(best_ids + at, first + index)


@triton.jit
def row_best_kernel(out, best_values, best_ids, num_blocks, BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCKS)
    values = tl.load(best_values + row * num_blocks + lane, mask=lane < num_blocks, other=float("-inf"))
    # Blocks stand in order of token id, so the leftmost of equals has the lowest id.
    index = tl.argmax(values, 0, tie_break_left=True)
    broken = tl.max((values != values).to(tl.int32), 0)
    possible = (tl.max(values, 0) > float("-inf")) & (broken == 0)
    token = tl.load(best_ids + row * num_blocks + index).to(tl.int64)
    tl.store(out + row, tl.where(possible, token, -1))


def _best(logits: torch.Tensor, row_arguments: tuple[torch.Tensor, ...] | None) -> torch.Tensor:
    checks.shape("logits", logits, None, None)
    checks.dtype("logits", logits, *checks.FLOATS)
    checks.dense_tail("logits", logits)
    rows, vocab_size = logits.shape
    blocks = triton.cdiv(vocab_size, _BLOCK)
    best_values = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    best_ids = torch.empty((rows, blocks), dtype=torch.int32, device=logits.device)
    out = torch.empty((rows,), dtype=torch.int64, device=logits.device)
    if rows > 0:
        block_best_kernel[(rows, blocks)](
            best_values,
            best_ids,
            logits,
            *(row_arguments or (None, None, None, None)),
            logits.stride(0),
            vocab_size,
            BLOCK=_BLOCK,
            RANDOM=row_arguments is not None,
            num_warps=8,
        )
        row_best_kernel[(rows,)](out, best_values, best_ids, blocks, BLOCKS=triton.next_power_of_2(blocks), num_warps=1)
    return out


def greedy_argmax(logits: torch.Tensor) -> torch.Tensor:
    """The lowest token id that has the largest logit of each row of `[R, V]`: `[R]` int64, with no fp32 copy.

    -1 where no logit is above -inf or one is NaN.
    """
    return _best(logits, None)


def gumbel_sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    thresholds: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token id of each row of `[R, V]`, `[R]` int64; arguments as in `definitions.gumbel_sample`."""
    rows = logits.shape[0]
    for name, tensor, dtype in (
        ("temperatures", temperatures, torch.float32),
        ("thresholds", thresholds, torch.float32),
        ("seeds", seeds, torch.int64),
        ("positions", positions, torch.int64),
    ):
        checks.shape(name, tensor, rows)
        checks.dtype(name, tensor, dtype)
        checks.dense_tail(name, tensor)
    checks.same_device(logits=logits, temperatures=temperatures, thresholds=thresholds, seeds=seeds)
    return _best(logits, (temperatures, thresholds, seeds, positions))
