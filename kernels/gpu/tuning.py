"""Meta-parameters of the kernels: a table by architecture and simple rules, no autotuner at run time.

Every row of the table is derived from shared-memory and register budgets that the compile gate checks; none has been
measured on a card yet. `gridserve bench kernels --sweep FILE` measures the candidates and writes a table in the same
form, which `load_table` reads.
"""

from __future__ import annotations

import enum
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

# Which card the tables below were measured on; None while they only follow from compiled kernels.
measured_on: str | None = None
MANY = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """What the rules need to know of a card: compute capability, times ten plus minor, and its SM count."""

    capability: int
    num_sms: int


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """`tile` keys a step; splits grow until `programs_per_sm` fill the card, each of at least `min_split` keys."""

    tile: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    min_split: int = 256


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """`block_m` rows (tokens x heads of a group) against `tile` keys a step."""

    block_m: int
    tile: int
    num_warps: int
    num_stages: int


class PackedFormat(enum.IntEnum):
    """How the weight of a linear layer lies in memory."""

    DENSE = 0
    INT8 = 1
    INT4 = 2


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """`block_m` tokens by `block_n` outputs, `block_k` inputs a step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


# Keyed (oldest capability it serves, bytes of one cache element at most, head_dim at most). Triton's pipeliner keeps
# `num_stages - 3` further tiles in flight where the address of a tile comes from a loaded block number. sm_120 has the
# shared memory of sm_89, so it takes that table again.
_DECODE_SMALL: dict[tuple[int, int], DecodeConfig] = {
    (1, 128): DecodeConfig(tile=64, num_warps=4, num_stages=5, programs_per_sm=2),
    (2, 128): DecodeConfig(tile=32, num_warps=4, num_stages=5, programs_per_sm=2),
    (2, 256): DecodeConfig(tile=32, num_warps=4, num_stages=5, programs_per_sm=1),
    (4, 128): DecodeConfig(tile=32, num_warps=4, num_stages=3, programs_per_sm=1),
    (4, 256): DecodeConfig(tile=16, num_warps=4, num_stages=3, programs_per_sm=1),
}
DECODE: dict[tuple[int, int, int], DecodeConfig] = {
    **{(80, *key): config for key, config in _DECODE_SMALL.items()},
    (90, 2, 128): DecodeConfig(tile=64, num_warps=4, num_stages=5, programs_per_sm=2),
    **{(120, *key): config for key, config in _DECODE_SMALL.items()},
}
_PREFILL_SMALL: dict[tuple[int, int], PrefillConfig] = {
    (1, 128): PrefillConfig(block_m=64, tile=64, num_warps=8, num_stages=3),
    (2, 64): PrefillConfig(block_m=128, tile=64, num_warps=8, num_stages=3),
    (2, 128): PrefillConfig(block_m=128, tile=32, num_warps=8, num_stages=3),
    (1, 256): PrefillConfig(block_m=64, tile=16, num_warps=8, num_stages=3),
    (2, 256): PrefillConfig(block_m=64, tile=32, num_warps=8, num_stages=3),
    (4, 256): PrefillConfig(block_m=32, tile=16, num_warps=4, num_stages=1),
}
PREFILL: dict[tuple[int, int, int], PrefillConfig] = {
    **{(80, *key): config for key, config in _PREFILL_SMALL.items()},
    (90, 1, 128): PrefillConfig(block_m=128, tile=64, num_warps=8, num_stages=3),
    (90, 2, 64): PrefillConfig(block_m=128, tile=128, num_warps=8, num_stages=3),
    (90, 2, 128): PrefillConfig(block_m=128, tile=64, num_warps=8, num_stages=3),
    (90, 1, 256): PrefillConfig(block_m=64, tile=32, num_warps=8, num_stages=3),
    (90, 2, 256): PrefillConfig(block_m=64, tile=64, num_warps=8, num_stages=3),
    **{(120, *key): config for key, config in _PREFILL_SMALL.items()},
}
# Keyed (format, bytes of one activation, tokens at most); the last entry of a format serves any number of tokens.
LINEAR: dict[tuple[PackedFormat, int, int], LinearConfig] = {
    (PackedFormat.DENSE, 2, 16): LinearConfig(16, 64, 128, num_warps=4, num_stages=4, programs_per_sm=2),
    (PackedFormat.DENSE, 2, 64): LinearConfig(64, 64, 64, num_warps=4, num_stages=4, programs_per_sm=2),
    (PackedFormat.DENSE, 2, MANY): LinearConfig(128, 128, 64, num_warps=8, num_stages=3, programs_per_sm=1),
    (PackedFormat.DENSE, 4, MANY): LinearConfig(16, 32, 32, num_warps=4, num_stages=2, programs_per_sm=2),
    (PackedFormat.INT8, 2, 16): LinearConfig(16, 64, 128, num_warps=4, num_stages=5, programs_per_sm=2),
    (PackedFormat.INT8, 2, 64): LinearConfig(64, 64, 64, num_warps=4, num_stages=4, programs_per_sm=2),
    (PackedFormat.INT8, 2, MANY): LinearConfig(128, 128, 64, num_warps=8, num_stages=3, programs_per_sm=1),
    (PackedFormat.INT8, 4, MANY): LinearConfig(16, 32, 32, num_warps=4, num_stages=2, programs_per_sm=2),
    (PackedFormat.INT4, 2, 16): LinearConfig(16, 128, 64, num_warps=4, num_stages=5, programs_per_sm=3),
    (PackedFormat.INT4, 2, 64): LinearConfig(64, 128, 64, num_warps=4, num_stages=4, programs_per_sm=2),
    (PackedFormat.INT4, 2, MANY): LinearConfig(128, 128, 64, num_warps=8, num_stages=3, programs_per_sm=1),
    (PackedFormat.INT4, 4, MANY): LinearConfig(16, 32, 64, num_warps=4, num_stages=2, programs_per_sm=2),
}
# The entry that serves every batch in deterministic mode.
FIXED_LINEAR_TOKENS = 64
# Keys of one segment in deterministic mode, a multiple of every tile, and the most memory its partial results may take.
SEGMENT = 1024
SEGMENT_WORKSPACE_BYTES = 512 << 20
MAX_SPLITS = 64

_deterministic = False
# Stands in for tensors that are on no card: under the interpreter and when compiling without one.
assumed_traits = DeviceTraits(capability=90, num_sms=132)


def set_deterministic(enabled: bool) -> None:
    """Fixed segments of keys and one linear configuration: a request's results depend on nothing else of a batch."""
    global _deterministic
    _deterministic = enabled


def deterministic() -> bool:
    return _deterministic


@functools.cache
def _cuda_traits(device: torch.device) -> DeviceTraits:
    properties = torch.cuda.get_device_properties(device)
    return DeviceTraits(properties.major * 10 + properties.minor, properties.multi_processor_count)


def traits(device: torch.device) -> DeviceTraits:
    return _cuda_traits(device) if device.type == "cuda" else assumed_traits


Config = TypeVar("Config")


def _pick(table: dict[tuple[int, int, int], Config], capability: int, element_bytes: int, head_dim: int) -> Config:
    """The tightest entry that covers the element size and head dimension, of the newest architecture not past ours."""
    fits = [key for key in table if key[0] <= capability and key[1] >= element_bytes and key[2] >= head_dim]
    if not fits:
        raise ValueError(
            f"no kernel configuration for head_dim={head_dim} with {element_bytes}-byte elements on sm_{capability}"
        )
    return table[min(fits, key=lambda key: (key[1], key[2], -key[0]))]


def decode_config(device: torch.device, element_bytes: int, head_dim: int) -> DecodeConfig:
    return _pick(DECODE, traits(device).capability, element_bytes, head_dim)


def prefill_config(device: torch.device, element_bytes: int, head_dim: int, group: int) -> PrefillConfig:
    """The entry of the table, with rows for at least one whole group of heads."""
    config = _pick(PREFILL, traits(device).capability, element_bytes, head_dim)
    if group > config.block_m:
        raise ValueError(f"{group} query heads to one KV head; the prefill kernel takes at most {config.block_m}")
    return config


def num_splits(device: torch.device, config: DecodeConfig, programs: int, reach: int) -> int:
    """As many splits along the keys as fill the card.

    `programs` is the grid without splits, `reach` the most keys a request sees.
    """
    slots = traits(device).num_sms * config.programs_per_sm
    wanted = math.ceil(0.9 * slots / max(1, programs))
    return max(1, min(wanted, MAX_SPLITS, math.ceil(reach / config.min_split)))


def linear_config(kind: PackedFormat, activation_bytes: int, tokens: int) -> LinearConfig:
    """The entry of the table for so many tokens; one for all of them in deterministic mode."""
    wanted = FIXED_LINEAR_TOKENS if deterministic() else tokens
    limits = [key[2] for key in LINEAR if key[:2] == (kind, activation_bytes) and key[2] >= wanted]
    return LINEAR[kind, activation_bytes, min(limits)]


def linear_splits(device: torch.device, config: LinearConfig, n_blocks: int, steps: int, tokens: int) -> int:
    """Splits of the inputs that fill the card with the outputs' blocks alone, each of at least 4 steps.

    Never more than one where many tokens fill the card themselves, but for deterministic mode, where the batch has no
    say.
    """
    if tokens > FIXED_LINEAR_TOKENS and not deterministic():
        return 1
    wanted = traits(device).num_sms * config.programs_per_sm // n_blocks
    return max(1, min(wanted, 16, steps // 4))


def tables() -> dict[str, dict[Any, Any]]:
    return {"decode": DECODE, "prefill": PREFILL, "linear": LINEAR}


def load_table(path: Path) -> None:
    """Put measured entries, written by `gridserve bench kernels --sweep`, in place of the ones here.

    Raises `ValueError` when the file is not such a table.
    """
    global measured_on
    makers = {"decode": DecodeConfig, "prefill": PrefillConfig, "linear": LinearConfig}
    try:
        content = json.loads(path.read_text())
        found = []
        for entry in content["entries"]:
            key = tuple(entry["key"])
            if entry["table"] == "linear":
                key = (PackedFormat(key[0]), *key[1:])
            found.append((entry["table"], key, makers[entry["table"]](**entry["config"])))
        card = str(content["measured_on"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no table of `gridserve bench kernels --sweep`: {error!r}") from error
    for name, key, config in found:
        tables()[name][key] = config
    measured_on = card
