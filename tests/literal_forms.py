"""Operators written down as the paper has them: what kernels and reformulations are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def literal_telu(x: Tensor) -> Tensor:
    """x tanh(exp(x))."""
    return x * torch.tanh(torch.exp(x))


def literal_window_mix(logits: Tensor, values: Tensor) -> Tensor:
    """CDFA's mixing as published: unfold, softmax and matrix product a head, fold.

    Args:
        logits: [N, heads * 81, H, W].
        values: [N, C, H, W].

    Returns:
        [N, C, H, W].
    """
    n, channels, h, w = values.shape
    heads = logits.shape[1] // 81
    attention = logits.reshape(n, heads, 9, 9, h * w).softmax(3)
    windows = F.unfold(values, 3, padding=1).reshape(n, heads, channels // heads, 9, h * w)
    mixed = torch.einsum("nhqkl,nhdkl->nhdql", attention, windows)
    return F.fold(mixed.reshape(n, channels * 9, h * w), (h, w), 3, padding=1)
