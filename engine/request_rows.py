"""A row on the device for each running request: its block table, its newest token, how its tokens are drawn.

A row is written when its request arrives and where its table changes; a step names rows and sends nothing else about
a request. The last row belongs to nobody: it pads batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.request import Request, SamplingParams
from engine.transfers import Transfers

# Rows of `RequestRows.draws`, by what they hold.
TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE = range(7)
NUM_DRAWS = 7


@dataclass(slots=True, eq=False)
class Seat:
    """One request's row. `blocks`: the table as the device has it."""

    request: Request
    row: int
    blocks: list[int] = field(default_factory=list)


class RequestRows:
    """Tensors of `num_rows` requests and one row of padding, and who sits where.

    Attributes:
        block_tables: `[num_rows + 1, max_blocks]` int32.
        last_tokens: `[num_rows + 1]` int64, the token each request drew last.
        draws: `[NUM_DRAWS, num_rows + 1]` fp32: temperature, top-k, top-p, min-p and the three penalties.
        seeds: `[num_rows + 1]` int64.
    """

    def __init__(self, num_rows: int, max_blocks: int, device: torch.device, transfers: Transfers) -> None:
        self.padding_row = num_rows
        self.block_tables = torch.zeros((num_rows + 1, max_blocks), dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(num_rows + 1, dtype=torch.int64, device=device)
        self.draws = torch.zeros((NUM_DRAWS, num_rows + 1), dtype=torch.float32, device=device)
        self.seeds = torch.zeros(num_rows + 1, dtype=torch.int64, device=device)
        self._transfers = transfers
        self._free = list(range(num_rows - 1, -1, -1))
        self._seats: dict[str, Seat] = {}

    def drop(self, request_ids: Iterable[str]) -> list[Seat]:
        """Free the rows of these requests; those without one are passed over. Returns the seats that were freed."""
        left = []
        for request_id in request_ids:
            seat = self._seats.pop(request_id, None)
            if seat is not None:
                self._free.append(seat.row)
                left.append(seat)
        return left

    def seat(self, requests: Iterable[Request]) -> tuple[list[Seat], list[Seat]]:
        """`(seats, new)`: the seat of each request in order, and those taken just now, their parameters sent.

        Raises `RuntimeError` when more requests run than there are rows.
        """
        seats, new = [], []
        for request in requests:
            seat = self._seats.get(request.request_id)
            if seat is None or seat.request is not request:
                if not self._free:
                    raise RuntimeError(f"more than {self.padding_row} requests run at once; raise max_num_seqs")
                seat = self._seats[request.request_id] = Seat(request, self._free.pop())
                new.append(seat)
            seats.append(seat)
        if new:
            self._send_parameters(new)
        return seats, new

    def table_changes(self, seats: Iterable[Seat], counts: Iterable[int]) -> tuple[list[int], list[int]]:
        """`(where, blocks)`: entries of the flat `block_tables` that differ from the requests' first `counts` blocks.

        They count as sent.
        """
        width = self.block_tables.shape[1]
        where: list[int] = []
        blocks: list[int] = []
        for seat, count in zip(seats, counts):
            table = seat.request.block_table[:count]
            sent = seat.blocks
            if table == sent:
                continue
            base = seat.row * width
            known = len(sent)
            for index, block in enumerate(table):
                if index >= known or sent[index] != block:
                    where.append(base + index)
                    blocks.append(block)
            seat.blocks = table
        return where, blocks

    def _send_parameters(self, seats: list[Seat]) -> None:
        draws = np.array([_draws(seat.request.sampling) for seat in seats], dtype=np.float32).T
        keys = np.array([(seat.row, _signed(seat.request.sampling.seed or 0)) for seat in seats], dtype=np.int64).T
        sent = self._transfers.upload(np.ascontiguousarray(keys))
        self.draws.index_copy_(1, sent[0], self._transfers.upload(np.ascontiguousarray(draws)))
        self.seeds.index_copy_(0, sent[0], sent[1])


def _draws(params: SamplingParams) -> tuple[float, ...]:
    return (
        params.temperature,
        max(params.top_k, 0),
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    )


def _signed(seed: int) -> int:
    """The low 64 bits as a two's complement number: any integer is a seed."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
