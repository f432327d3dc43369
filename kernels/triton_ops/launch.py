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
