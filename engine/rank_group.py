"""Sums and joins across the ranks of a tensor-parallel group: torch.distributed, NCCL on GPUs, Gloo on CPUs.

Every rank calls the same operations in the same order, and every rank gets the same bits: so all of them draw the same
tokens, and no token has to travel back.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
from torch import distributed

# The ranks load and compile at their own pace; while serving, `engine.rank_processes` is stricter.
PATIENCE = timedelta(minutes=10)


class RankGroup(Protocol):
    """What the decoder needs of its group."""

    rank: int
    size: int

    def add(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's `partial`, in place."""
        ...

    def join(self, columns: torch.Tensor) -> torch.Tensor:
        """Every rank's `[R, N]` side by side, `[R, size * N]`."""
        ...

    def smallest(self, number: int) -> int: ...


class ProcessGroup:
    """A process of the group. One to a process, since torch.distributed keeps its group there.

    Args:
        rendezvous: a file that does not exist yet, in a folder that all ranks see.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        # Gloo looks up the host's name to find an interface; the ranks share one machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        cuda = device.type == "cuda"
        distributed.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            # Connected now, not at the first operation, which a graph may capture.
            device_id=device if cuda else None,
        )

    def add(self, partial: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(partial)
        return partial

    def join(self, columns: torch.Tensor) -> torch.Tensor:
        rows, width = columns.shape
        gathered = columns.new_empty((self.size * rows, width))
        distributed.all_gather_into_tensor(gathered, columns.contiguous())
        return gathered.view(self.size, rows, width).transpose(0, 1).reshape(rows, -1)

    def smallest(self, number: int) -> int:
        value = torch.tensor(number, dtype=torch.int64, device=self._device)
        distributed.all_reduce(value, distributed.ReduceOp.MIN)
        return int(value)

    def close(self) -> None:
        distributed.destroy_process_group()
