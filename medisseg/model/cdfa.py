"""Contrast-driven feature aggregation (CDFA), ConDSeg (Lei et al. 2024) and Med-DisSeg.

Every position mixes its 3 x 3 window by a softmaxed 9 x 9 matrix a head, predicted from a guide,
and overlapping windows are summed. That equals one 5 x 5 filter a position and head, which is how
:func:`kernels.window_mix` computes it; the literal unfold form lives in the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import window_mix, window_mix_convolution
from medisseg.model.blocks import CBT, Fusible, upsample_together

PAIRS = 81  # 9 window outputs x 9 window inputs


class CDFA(Fusible):
    """Aggregate a level's feature twice: guided by the foreground, then by the background."""

    def __init__(self, in_channels: int, width: int, heads: int, act: str, separable: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; expected a multiple of heads = {heads}")
        self.scale = (width // heads) ** -0.5
        self.portable = False
        self.before = nn.Sequential(
            CBT(in_channels, width, 3, act=act, separable=separable),
            CBT(width, width, 3, act=act, separable=separable),
        )
        self.value = nn.Conv2d(width, width, 1)
        self.attend_foreground = nn.Conv2d(width, heads * PAIRS, 1)
        self.attend_background = nn.Conv2d(width, heads * PAIRS, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.after = nn.Sequential(
            CBT(width, width, 3, act=act, separable=separable),
            CBT(width, width, 3, act=act, separable=separable),
        )

    def forward(
        self, x: Tensor, foreground: Tensor, background: Tensor, coarser: Tensor | None = None
    ) -> Tensor:
        """Aggregate one level.

        Args:
            x: The level's feature [N, C, H, W].
            foreground: Guide [N, width, H, W].
            background: Guide [N, width, H, W].
            coarser: The aggregated feature of the next coarser level [N, width, H / 2, W / 2];
                ``in_channels`` counts its channels too.

        Returns:
            [N, width, H, W].
        """
        if coarser is not None:
            x = upsample_together([x, coarser], [1, 2], self.fused)
        mix = window_mix_convolution if self.portable else window_mix
        values = self.value(self.before(x))
        for attend, guide in (
            (self.attend_foreground, foreground),
            (self.attend_background, background),
        ):
            values = self.project(mix(self.logits(attend, guide), values))
        out: Tensor = self.after(values)
        return out

    def logits(self, attend: nn.Conv2d, guide: Tensor) -> Tensor:
        """Attention logits [N, heads * 81, H, W]; the weights are scaled, not the large map.

        A GPU gets them with positions innermost, as window mixing reads them.
        """
        assert attend.bias is not None
        weight, bias = attend.weight * self.scale, attend.bias * self.scale
        if self.portable or not guide.is_cuda:
            return F.conv2d(guide, weight, bias)
        return positions_innermost(guide, weight, bias)


def positions_innermost(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1 x 1 convolution of ``x`` [N, C, H, W], in any layout, whose output is contiguous."""
    filters = weight.flatten(1).expand(len(x), -1, -1)
    flat = torch.baddbmm(bias[:, None], filters, x.flatten(2))
    out: Tensor = flat.unflatten(2, x.shape[2:])
    return out
