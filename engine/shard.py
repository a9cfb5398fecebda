"""What of a model one rank of a tensor-parallel group keeps (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053).

Attention is cut by heads, the MLP by inner columns, the vocabulary by rows: a layer needs one sum after attention and
one after the MLP. Where ranks outnumber KV heads, several keep the same head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from engine.model_config import ModelConfig
from engine.weights import Part, Weights
from kernels.linear import Int4Blocks, Int8Blocks

_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
# Added once, after the sum over ranks: by the first of them.
_SUMMED_BIASES = ("o_proj.bias", "down_proj.bias")


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of `ranks` of a model. Raises `ValueError` naming the sizes that cannot be shared out."""

    config: ModelConfig
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        if not fits(self.config, self.ranks):
            config = self.config
            possible = [str(count) for count in range(1, config.num_heads + 1) if fits(config, count)]
            raise ValueError(
                f"this model cannot be shared out to {self.ranks} ranks: {config.num_heads} attention heads, "
                f"{config.num_kv_heads} KV heads and {config.intermediate_size} MLP columns must divide; "
                f"use --tensor-parallel {' or '.join(possible)}"
            )

    @property
    def local(self) -> ModelConfig:
        """The model as one rank computes it; the vocabulary stays that of the whole."""
        config, ranks = self.config, self.ranks
        return replace(
            config,
            num_heads=config.num_heads // ranks,
            num_kv_heads=max(1, config.num_kv_heads // ranks),
            intermediate_size=config.intermediate_size // ranks,
        )

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and the head that each rank keeps; the last ranks pad theirs with zeros."""
        return -(-self.config.vocab_size // self.ranks)

    @property
    def vocab_start(self) -> int:
        return self.rank * self.vocab_rows

    def part(self, name: str) -> Part | None:
        """Which part of a weight is this rank's; None for all of it. Rows of the vocabulary may be fewer than kept."""
        if name in _VOCABULARY:
            size = self.config.vocab_size
            return Part(0, min(self.vocab_start, size), min(self.vocab_start + self.vocab_rows, size))
        module, _, kind = name.rpartition(".")
        local, head_dim = self.local, self.config.head_dim
        inner = local.intermediate_size
        match module.rpartition(".")[2]:
            case "q_proj":
                return _nth(0, self.rank, local.num_heads * head_dim)
            case "k_proj" | "v_proj":
                head = self.rank * self.config.num_kv_heads // self.ranks
                return Part(0, head * head_dim, (head + local.num_kv_heads) * head_dim)
            case "gate_proj" | "up_proj":
                return _nth(0, self.rank, inner)
            case "o_proj" if kind == "weight":
                return _nth(1, self.rank, local.num_heads * head_dim)
            case "down_proj" if kind == "weight":
                return _nth(1, self.rank, inner)
        return None


def fits(config: ModelConfig, ranks: int) -> bool:
    """Whether heads, KV heads and the MLP divide; KV heads may also be the ranks' divisor, then they are repeated."""
    kv_heads = config.num_kv_heads
    return (
        config.num_heads % ranks == 0
        and config.intermediate_size % ranks == 0
        and (kv_heads % ranks == 0 or ranks % kv_heads == 0)
    )


def _nth(dim: int, rank: int, size: int) -> Part:
    return Part(dim, rank * size, (rank + 1) * size)


class ShardedWeights:
    """A rank's part of each weight of `whole`, in the shapes of `Shard.local` and `Shard.vocab_rows`."""

    def __init__(self, whole: Weights, shard: Shard) -> None:
        self._whole = whole
        self._shard = shard

    @property
    def total_bytes(self) -> int:
        return self._whole.total_bytes // self._shard.ranks

    def nbytes(self, name: str) -> int:
        whole = self._whole.nbytes(name)
        return whole if self._shard.part(name) is None else whole // self._shard.ranks

    def __contains__(self, name: str) -> bool:
        return name in self._whole

    def dense(self, name: str, dtype: torch.dtype, part: Part | None = None) -> torch.Tensor:
        tensor = self._whole.dense(name, dtype, self._shard.part(name))
        if self._shard.rank and name.endswith(_SUMMED_BIASES):
            tensor = torch.zeros_like(tensor)
        tensor = self._padded(name, tensor)
        return tensor if part is None else part.of(tensor)

    def blocks(self, name: str, part: Part | None = None) -> Int4Blocks | Int8Blocks | None:
        assert part is None, "a rank's part is not cut again"
        blocks = self._whole.blocks(name, self._shard.part(name))
        if blocks is None:
            return None
        codes, scales = self._padded(name, blocks.codes), self._padded(name, blocks.scales)
        if isinstance(blocks, Int8Blocks):
            return Int8Blocks(codes, scales, blocks.block)
        return Int4Blocks(codes, scales, self._padded(name, blocks.minimums), blocks.block)

    def _padded(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        missing = self._shard.vocab_rows - rows.shape[0] if name in _VOCABULARY else 0
        return rows if missing <= 0 else torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))
