"""Errors of the operators: what was got, what was expected, what to do."""

from __future__ import annotations

import torch
from torch import Tensor


def floating(name: str, tensor: Tensor, rank: int | None = None) -> None:
    """Refuse what is not a floating-point tensor of the given rank.

    Raises:
        TypeError: Not a tensor, or not of a floating-point dtype.
        ValueError: Another rank.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}; expected a torch.Tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} is {tensor.dtype}; expected a float dtype: {name}.float()")
    if rank is not None and tensor.ndim != rank:
        shape = list(tensor.shape)
        raise ValueError(f"{name} has shape {shape}; expected {rank} dimensions: reshape it")


def same_device(**tensors: Tensor) -> None:
    """Refuse tensors on different devices."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"got {listed}; expected one device: move one with .to()")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """Return half-precision values as float32, others as they are."""
    return tensor.to(compute_dtype(tensor))
