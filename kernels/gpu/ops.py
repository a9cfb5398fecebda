"""The operations the engine calls, for CUDA tensors: as in `kernels.ops`, and those only GPUs have."""

from __future__ import annotations

from kernels.gpu.attention import paged_attention
from kernels.gpu.elementwise import embedding, silu_and_mul
from kernels.gpu.linear import PackedLinear, linear, pack_weight
from kernels.gpu.norms import add_rms_norm, rms_norm
from kernels.gpu.penalties import apply_penalties, count_tokens
from kernels.gpu.rope import rope_and_write_kv
from kernels.gpu.sampling import greedy_argmax, gumbel_sample
from kernels.gpu.step_inputs import advance_decodes, step_inputs
from kernels.gpu.thresholds import sampling_thresholds
from kernels.gpu.tuning import set_deterministic

__all__ = [
    "PackedLinear",
    "add_rms_norm",
    "advance_decodes",
    "apply_penalties",
    "count_tokens",
    "embedding",
    "greedy_argmax",
    "gumbel_sample",
    "linear",
    "pack_weight",
    "paged_attention",
    "rms_norm",
    "rope_and_write_kv",
    "sampling_thresholds",
    "set_deterministic",
    "silu_and_mul",
    "step_inputs",
]
