"""The dispersive term as the authors released it, for comparison only: its gradient is zero.

On real features the nearest two images are some 500 apart, exp(-500 / tau) is 0 in float32, and
the loss is log(1e-8) = -18.42 whatever the features are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class PublishedDispersiveTerm(nn.Module):
    """log(mean over pairs of exp(-||h_i - h_j||^2 / tau) + 1e-8) of the flattened early feature.

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
        squared = torch.pdist(rows).square()
        return torch.log(torch.exp(-squared / self.tau).mean() + EPSILON)
