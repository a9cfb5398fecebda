"""What every wrapper refuses before it launches: wrong shapes, dtypes, strides or devices."""

from __future__ import annotations

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`."""
    if not condition:
        raise ValueError(message)


def shape(name: str, tensor: torch.Tensor, *sizes: int | None) -> None:
    """Check dimensions; None leaves a dimension free."""
    matches = tensor.dim() == len(sizes) and all(want in (None, got) for want, got in zip(sizes, tensor.shape))
    wanted = ", ".join("*" if size is None else str(size) for size in sizes)
    require(matches, f"{name} must have shape [{wanted}], got {list(tensor.shape)}")


def dtype(name: str, tensor: torch.Tensor, *allowed: torch.dtype) -> None:
    names = " or ".join(str(each).removeprefix("torch.") for each in allowed)
    require(tensor.dtype in allowed, f"{name} must be {names}, got {tensor.dtype}; convert it before the call")


def dense_tail(name: str, tensor: torch.Tensor, dims: int = 1) -> None:
    """Check that the last `dims` dimensions lie contiguous; outer strides are free."""
    expected = 1
    for dim in range(tensor.dim() - 1, tensor.dim() - 1 - dims, -1):
        require(
            tensor.stride(dim) == expected or tensor.shape[dim] == 1,
            f"the last {dims} dimension(s) of {name} must be contiguous, got strides {tensor.stride()}",
        )
        expected *= tensor.shape[dim]


def same_device(**tensors: torch.Tensor | None) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    require(len(set(devices.values())) <= 1, f"all tensors must be on one device, got {devices}")
