"""Dispersive loss on a GPU; mathematics and epilogues are those of ``kernels.pairs``.

Covariance of many rows, and many rows longer than ``LONGEST``, are matrix products: PyTorch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.pairs import FEW, Options
from kernels.triton_ops import few_rows, many_rows
from kernels.triton_ops.launch import DTYPES

LONGEST = 256  # columns of many rows: every OWNED of them compute the pairs' weights again


def takes(h: Tensor, variant: str) -> bool:
    """Whether the kernels serve ``h`` [N, D]: its rows must be contiguous."""
    n, d = h.shape
    many = n > FEW and d <= LONGEST and variant != "covariance"
    return h.dtype in DTYPES and h.stride(1) == 1 and (2 <= n <= FEW or many)


def forward(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The loss of h [N, D] and, of few rows, the matrix [N, N] that gives the gradient."""
    if len(h) <= FEW:
        return few_rows.forward(h, options)
    return many_rows.forward(h, options), h.new_zeros(0, 0, dtype=torch.float32)


def backward(gradient: Tensor, h: Tensor, loss: Tensor, matrix: Tensor, options: Options) -> Tensor:
    """The gradient by h [N, D], contiguous."""
    if len(h) <= FEW:
        return few_rows.backward(gradient, h, matrix, options)
    return many_rows.backward(gradient, h, loss, options)
