"""Plain-torch definitions of the operations that only the GPU has kernels for, in the manner of `kernels.reference`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

from kernels import reference
from kernels.linear import Int4Blocks, Int8Channels
from kernels.metadata import AttentionMetadata

QUANTIZED_DTYPES = (torch.int8, torch.float8_e4m3fn)
_CODE_MAX = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, slots=True)
class KVScales:
    """Factors of a quantised cache: `k` and `v`, each `[blocks, kv_heads, block_size]` fp32; value = code * factor."""

    k: torch.Tensor
    v: torch.Tensor


def quantize_heads(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `x` `[T, heads, D]` in int8 or fp8 (e4m3), and scales `[T, heads]` fp32: the largest magnitude of each
    head maps to the largest code. An all-zero head gets scale 0."""
    wide = x.float()
    peak = wide.abs().amax(-1)
    factor = torch.where(peak > 0, _CODE_MAX[dtype] / peak, 0.0)
    codes = wide * factor[..., None]
    if dtype is torch.int8:
        codes = codes.round()
    return codes.to(dtype), peak / _CODE_MAX[dtype]


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    scales: KVScales | None = None,
) -> None:
    """`reference.write_kv`, quantising to the dtype of the caches where `scales` are given."""
    if scales is None:
        reference.write_kv(k, v, k_cache, v_cache, slot_mapping)
        return
    kept = slot_mapping >= 0
    blocks = slot_mapping[kept] // k_cache.shape[2]
    offsets = slot_mapping[kept] % k_cache.shape[2]
    for values, cache, factors in ((k, k_cache, scales.k), (v, v_cache, scales.v)):
        codes, scale = quantize_heads(values[kept], cache.dtype)
        # fp8 tensors cannot be indexed on every device: move the bytes.
        cache.view(torch.uint8)[blocks, :, offsets] = codes.view(torch.uint8)
        factors[blocks, :, offsets] = scale


def dequantize_cache(cache: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`[blocks, kv_heads, block_size, D]` fp32."""
    return cache.float() * scales[..., None]


def rope_and_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    scales: KVScales | None = None,
) -> torch.Tensor:
    """Norm each head of q and k where weights `[D]` are given (Qwen3), rotate, quantise, store; returns rotated q."""
    q = q if q_norm is None else reference.rms_norm(q, q_norm, eps)
    k = k if k_norm is None else reference.rms_norm(k, k_norm, eps)
    rotated_k = reference.apply_rope(k, metadata.positions, cos_sin)
    write_kv(rotated_k, v, k_cache, v_cache, metadata.slot_mapping, scales)
    return reference.apply_rope(q, metadata.positions, cos_sin)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
    *,
    scales: KVScales | None = None,
) -> torch.Tensor:
    """`reference.paged_attention` over the values that the codes and scales stand for."""
    if scales is not None:
        k_cache = dequantize_cache(k_cache, scales.k)
        v_cache = dequantize_cache(v_cache, scales.v)
    return reference.paged_attention(q, k_cache, v_cache, metadata, scale, window)


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of `table` `[V, H]` at `token_ids` `[T]` int64: `[T, H]`."""
    return F.embedding(token_ids, table)


def greedy_argmax(logits: torch.Tensor) -> torch.Tensor:
    """The lowest token id that has the largest logit of each row of `[R, V]`: `[R]` int64.

    -1 where no token is possible: no logit is above -inf, or one is NaN.
    """
    peak = logits.amax(-1, keepdim=True)
    ids = torch.arange(logits.shape[1], device=logits.device)
    lowest = torch.where(logits == peak, ids, logits.shape[1]).amin(-1)
    return torch.where(peak.squeeze(-1) > -torch.inf, lowest, -1)


_MASK32 = (1 << 32) - 1


def philox_words(seeds: torch.Tensor, counter: torch.Tensor, position: torch.Tensor) -> list[torch.Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) of key `seeds` (64 bit) and counter `(counter, position, 0, 0)`.

    All arguments int64 and broadcastable; four tensors of 32-bit words come back as int64.
    """
    seeds, counter, position = torch.broadcast_tensors(seeds, counter, position)  # type: ignore[no-untyped-call]
    k0, k1 = seeds & _MASK32, (seeds >> 32) & _MASK32
    c0, c1 = counter & _MASK32, position & _MASK32
    c2 = c3 = torch.zeros_like(c0)
    for _ in range(10):
        low_b, high_b = _multiply(c2, 0xCD9E8D57)
        low_a, high_a = _multiply(c0, 0xD2511F53)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return [c0, c1, c2, c3]


def _multiply(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high 32 bits of `x * factor` for 32-bit operands held in int64, without overflowing it."""
    low = (x & 0xFFFF) * factor
    high = (x >> 16) * factor + (low >> 16)
    return ((high & 0xFFFF) << 16 | (low & 0xFFFF)), high >> 16


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise `[R, V]` fp32 for rows of `seeds` and `positions` `[R]` int64.

    Token `id` takes word `id % 4` of the Philox block `id // 4`, so its noise depends on (seed, position, id) alone.
    With u = (word + 1/2) / 2^32, noise = -log(-log(1 - u)); the inner logarithm is a series where u is small, since
    there fp32 cannot hold 1 - u and the largest noise, which decides the draw, comes from there.
    """
    blocks = torch.arange(-(-vocab_size // 4), device=seeds.device)
    words = torch.stack(philox_words(seeds[:, None], blocks[None, :], positions[:, None]), dim=-1)
    u = (words.flatten(1)[:, :vocab_size].float() + 0.5) * 2.0**-32
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5)))))
    exponential = torch.where(u < 0.05, series, -torch.log(1.0 - u.clamp(max=1.0 - 2.0**-24)))
    return -torch.log(exponential)


def gumbel_sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    thresholds: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token id of each row: argmax of `logits / temperature + Gumbel noise` where that quotient is kept.

    -1 where no token is possible, as in `greedy_argmax`.

    Args:
        logits: `[R, V]`, any float dtype.
        temperatures: `[R]` fp32; a row of temperature 0 takes the greedy token.
        thresholds: `[R]` fp32: scaled logits below are never drawn; -inf keeps all (see `sampling_thresholds`).
        seeds, positions: `[R]` int64, the key of each row's noise.
    """
    greedy = temperatures == 0
    scaled = logits.float() / torch.where(greedy, 1.0, temperatures)[:, None]
    noisy = scaled + gumbel_noise(seeds, positions, logits.shape[1])
    noisy = torch.where(scaled >= thresholds[:, None], noisy, -torch.inf)
    noisy = torch.where(scaled.isnan().any(-1, keepdim=True), torch.nan, noisy)
    return greedy_argmax(torch.where(greedy[:, None], logits.float(), noisy))


def sampling_thresholds(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """The smallest `logits / temperature` that survives top-k, then top-p of what top-k left, then min-p: `[R]` fp32.

    Equal logits stay together. Shapes: logits `[R, V]`, the others `[R]`; top_k int32, off at 0 or less or at V and
    more; top_p off at 1; min_p off at 0. A row of temperature 0 is not scaled. -inf means all are kept.
    """
    scaled = logits.float() / torch.where(temperatures == 0, 1.0, temperatures)[:, None]
    vocab_size = logits.shape[1]
    out = torch.full((logits.shape[0],), -torch.inf, device=logits.device)
    for row in range(logits.shape[0]):
        k, p = int(top_k[row]), float(top_p[row])
        ordered = torch.sort(scaled[row], descending=True).values
        head = ordered[:k] if 0 < k < vocab_size else ordered
        if 0 < k < vocab_size:
            out[row] = head[-1]
        if p < 1.0:
            mass = torch.softmax(head.double(), 0).cumsum(0)
            out[row] = head[min(int(torch.searchsorted(mass, p)), head.shape[0] - 1)]
    return torch.maximum(out, scaled.amax(-1) + min_p.log())


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

    Args:
        slots: `[R]` int32, the row of the state tables that belongs to each row of logits.
        output_counts: `[S, V]` int32, how often each token was generated.
        prompt_seen: `[S, V]` bool, whether the token stands in the prompt.
        repetition, frequency, presence: `[R]` fp32; 1, 0, 0 change nothing.
    """
    counts = output_counts[slots.long()]
    seen = prompt_seen[slots.long()] | (counts > 0)
    factor = torch.where(logits > 0, 1.0 / repetition[:, None], repetition[:, None])
    logits.mul_(torch.where(seen, factor, 1.0))
    logits.sub_(frequency[:, None] * counts + presence[:, None] * (counts > 0))


def count_tokens(output_counts: torch.Tensor, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Add one to `output_counts[slots[r], token_ids[r]]`; the slots `[R]` differ, -1 skips."""
    kept = slots >= 0
    output_counts[slots[kept].long(), token_ids[kept]] += 1


def quantize_int4(weight: torch.Tensor, block: int = 32) -> Int4Blocks:
    """4-bit codes with a scale and a minimum for each block of input columns."""
    grouped = weight.float().reshape(weight.shape[0], -1, block)
    minimums, peaks = grouped.aminmax(dim=-1)
    scales = (peaks - minimums) / 15.0
    codes = (grouped - minimums[..., None]) / torch.where(scales > 0, scales, 1.0)[..., None]
    return Int4Blocks(codes.round().clamp(0, 15).to(torch.uint8).flatten(1), scales, minimums, block)


def linear(x: torch.Tensor, weight: torch.Tensor | Int8Channels | Int4Blocks) -> torch.Tensor:
    """`x @ w.T` for x `[M, K]`, sums in fp32: `[M, N]` in the dtype of x.

    4-bit weights are rounded to the dtype of x first; the scale of an int8 channel multiplies its sum.
    """
    if isinstance(weight, Int8Channels):
        return ((x.float() @ weight.codes.float().T) * weight.scales).to(x.dtype)
    dense = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
    return (x.float() @ dense.to(x.dtype).float().T).to(x.dtype)


def step_inputs(
    num_computed: torch.Tensor, query_lens: torch.Tensor, block_tables: torch.Tensor, block_size: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(query_start, context_lens, positions, slot_mapping)` of a packed step, as `AttentionMetadata` wants them.

    Args:
        num_computed, query_lens: `[B]` int32, tokens in the cache before the step and tokens of the step.
        block_tables: `[B, max_blocks]` int32.
        num_tokens: size of the packed dimension; tokens past the last request get position 0 and slot -1.
    """
    query_start = F.pad(query_lens.cumsum(0), (1, 0)).int()
    positions = torch.zeros(num_tokens, dtype=torch.int64, device=num_computed.device)
    slots = torch.full((num_tokens,), -1, dtype=torch.int64, device=num_computed.device)
    starts = query_start.tolist()
    for row, (begin, end) in enumerate(pairwise(starts)):
        own = int(num_computed[row]) + torch.arange(end - begin, device=num_computed.device)
        positions[begin:end] = own
        slots[begin:end] = block_tables[row, own // block_size].long() * block_size + own % block_size
    return query_start, (num_computed + query_lens).int(), positions, slots


def advance_decodes(
    context_lens: torch.Tensor, block_tables: torch.Tensor, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One more token for each request: adds 1 to `context_lens` `[B]` int32 in place where it is not 0.

    Returns `(positions, slot_mapping)` `[B]` int64 of the new tokens; a row of length 0 is padding: 0 and -1.
    """
    used = context_lens > 0
    positions = torch.where(used, context_lens, 0).long()
    rows = torch.arange(len(positions), device=positions.device)
    slots = block_tables[rows, positions // block_size].long() * block_size + positions % block_size
    context_lens += used.int()
    return positions, torch.where(used, slots, -1)
