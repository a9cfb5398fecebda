"""Rotary position embedding: the table of cosines and sines, computed once in fp32."""

from __future__ import annotations

import math

import torch

from engine.model_config import ModelConfig, RopeScaling, RopeScalingKind


def inverse_frequencies(config: ModelConfig, factors: torch.Tensor | None = None) -> torch.Tensor:
    """Radians per position, fp32 `[head_dim / 2]`; `factors` (GGUF's `rope_freqs.weight`) divide them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    if factors is not None:
        if factors.shape != frequencies.shape:
            raise ValueError(f"rope_freqs.weight has shape {tuple(factors.shape)}, expected {tuple(frequencies.shape)}")
        frequencies = frequencies / factors.float()
    return frequencies


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    slowed = frequencies / scaling.factor
    if scaling.kind is RopeScalingKind.LINEAR:
        return slowed
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * slowed + keep * frequencies


def rope_table(frequencies: torch.Tensor, max_positions: int) -> torch.Tensor:
    """Cosines then sines, fp32 `[max_positions, head_dim]`, as `kernels.ops.rope_and_write_kv` takes it."""
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
