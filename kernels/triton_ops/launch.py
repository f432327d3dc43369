"""What every launch shares: the dtypes served, the tensor's own device, precision of products."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Three TF32 products instead of one: float32's accuracy at tensor-core speed.
PRODUCTS = "tf32x3"


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launch on the device that holds ``x``; the interpreter's tensors are on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length())


def capability(device: torch.device) -> int:
    """Return a GPU's compute capability as 90 for 9.0, and 0 for the interpreter's CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def warps_for(target: int, element_size: int) -> int:
    """Return the warps of a program that multiplies tiles.

    Compiled for sm_120, float32 tiles spill with four warps (up to three values) and not with
    eight; for sm_80 to sm_89 it is the other way round.
    """
    return 8 if target >= 120 and element_size == 4 else 4
