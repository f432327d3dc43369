"""The dispersive term: which features, what counts as one representation, and the joint batch.

Wang and He 2025, "Diffuse and Disperse"; Med-DisSeg Eq. 3. Representations have unit length, so
that lambda, tau and margin mean the same on every encoder: at the first step and before lambda,
InfoNCE-L2's gradient at the encoder's deepest feature is 0.96 to 1.6 times the other terms' in
stage 1 (four encoders) and 0.03 to 0.09 times in stage 2 (three), where raw features give 0.04 to
19 and 0.14 to 1.0 (benchmarks/results/cpu/dispersion.csv). The loss is a log-sum-exp and has a
gradient at every scale; the released form, exp and then log of flattened distances near 500, has
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import dispersive_loss
from medisseg.losses import GRANULARITIES, NORMALIZE, PLACEMENTS, VARIANTS


@dataclass(frozen=True)
class DispersiveOptions:
    """What is dispersed and how.

    Attributes:
        variant: "infonce_l2", "infonce_cosine", "hinge" or "covariance".
        placement: "early" (encoder), "middle" (bottleneck), "late" (decoder), "all" (their mean).
        granularity: "image": one representation an image; "pixel": one a position of the map.
        tau: Temperature of the InfoNCE variants.
        margin: Distance under which the hinge variant pushes apart; two representations of unit
            length are 0 to 2 apart, so 2 pushes every pair.
        normalize: "unit": representations are scaled to length 1; "none": features as they are,
            with squared distances divided by their number of dimensions.
        epsilon: Inside the logarithm of the InfoNCE variants; bounds the loss at log(epsilon).
    """

    variant: str = "infonce_l2"
    placement: str = "early"
    granularity: str = "image"
    tau: float = 0.8
    margin: float = 2.0
    normalize: str = "unit"
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name, known in (
            ("variant", VARIANTS),
            ("placement", PLACEMENTS),
            ("granularity", GRANULARITIES),
            ("normalize", NORMALIZE),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {known}")
        if self.tau <= 0 or self.margin <= 0:
            raise ValueError(f"tau and margin are {self.tau}, {self.margin}; expected more than 0")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}; expected within [0, 1), such as 1e-8")


class DispersiveTerm(nn.Module):
    """The dispersive loss of a training output's features, over all ranks' batches together."""

    def __init__(self, options: DispersiveOptions | None = None) -> None:
        super().__init__()
        self.options = options or DispersiveOptions()

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features [N, C, h, w] by placement -> a scalar; 0 where fewer than two are compared."""
        chosen = PLACEMENTS[:3] if self.options.placement == "all" else (self.options.placement,)
        return torch.stack([self.one(features[name]) for name in chosen]).mean()

    def one(self, feature: Tensor) -> Tensor:
        """The loss of one feature [N, C, h, w]."""
        options = self.options
        rows = gather(representations(feature, options.granularity))
        unit = options.normalize == "unit"
        return dispersive_loss(
            F.normalize(rows.float(), dim=1) if unit else rows,
            options.variant,
            tau=options.tau,
            margin=options.margin,
            normalize=not unit,
            epsilon=options.epsilon,
        )


def representations(feature: Tensor, granularity: str) -> Tensor:
    """[N, C, h, w] -> rows: [N, C h w] for "image", [N h w, C] for "pixel"."""
    if granularity == "image":
        return feature.flatten(1)
    return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])


def gather(rows: Tensor) -> Tensor:
    """Join [n, d] of every rank to [world n, d], differentiably; alone, return ``rows``."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    if torch.distributed.get_world_size() == 1:
        return rows
    joined: Tensor = _Gather.apply(rows)
    return joined


class _Gather(torch.autograd.Function):
    """All-gather whose gradient makes data-parallel averaging give the joint batch's gradient.

    Every rank computes the same loss of the joint batch and back-propagates through its own rows.
    Averaging over ranks then divides the sum of the shares by their number, hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        first = torch.distributed.get_rank() * ctx.count
        share = gradients[0][first : first + ctx.count]
        scaled: Tensor = share * torch.distributed.get_world_size()
        return scaled
