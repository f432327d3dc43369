"""The dispersive term as the authors released it, for comparison only: its gradient is zero.

On real features the nearest two images are some 500 apart, exp(-500 / tau) is 0 in float32, and
the loss is log(1e-8) = -18.42 whatever the features are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class PublishedDispersiveTerm(nn.Module):
    """log(mean over pairs of exp(-||h_i - h_j|| / tau) + 1e-8) of the flattened early feature.

    The release takes the distance, not its square, which Eq. 3 of the paper writes.

    Args:
        tau: Temperature.
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features [N, C, h, w] by placement -> a scalar."""
        rows = features["early"].flatten(1).float()
        if len(rows) < 2:
            return rows.sum() * 0.0
        return torch.log(torch.exp(-torch.pdist(rows) / self.tau).mean() + EPSILON)
