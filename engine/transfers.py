"""Moving a step's small arrays to the device and its result back, without the host waiting in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch


class Download(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> Sequence[torch.Tensor]:
        """Block until they have arrived."""
        ...


class Transfers(Protocol):
    """The only way in and out of a device for whoever runs steps on it."""

    def upload(self, values: np.ndarray) -> torch.Tensor:
        """A copy of `values` on the device; `values` may be changed at once."""
        ...

    def download(self, tensors: Sequence[torch.Tensor]) -> Download: ...


class CudaTransfers:
    """Through fresh pinned memory: the copies run beside the host, and no buffer is written while one still reads it.

    torch's pinned allocator hands a buffer out again only when the copies from it have ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def upload(self, values: np.ndarray) -> torch.Tensor:
        pinned = torch.from_numpy(values).pin_memory()
        return pinned.to(self._device, non_blocking=True)

    def download(self, tensors: Sequence[torch.Tensor]) -> Download:
        pinned = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
        for target, source in zip(pinned, tensors):
            target.copy_(source, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self._device))
        return _CudaDownload(pinned, arrived)


class _CudaDownload:
    def __init__(self, pinned: Sequence[torch.Tensor], arrived: torch.cuda.Event) -> None:
        self._pinned = pinned
        self._arrived = arrived

    def wait(self) -> Sequence[torch.Tensor]:
        self._arrived.synchronize()
        return self._pinned


class HostTransfers:
    """Device and host are one: plain copies."""

    def upload(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.copy())

    def download(self, tensors: Sequence[torch.Tensor]) -> Download:
        return _HostDownload([each.clone() for each in tensors])


class _HostDownload:
    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors

    def wait(self) -> Sequence[torch.Tensor]:
        return self._tensors


def make_transfers(device: torch.device) -> Transfers:
    return CudaTransfers(device) if device.type == "cuda" else HostTransfers()
