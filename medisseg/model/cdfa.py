"""Contrast-driven feature aggregation (CDFA), ConDSeg (Lei et al. 2024) and Med-DisSeg.

Every position mixes its 3 x 3 window by a softmaxed 9 x 9 matrix a head, predicted from a guide,
and overlapping windows are summed. That equals one 5 x 5 filter a position and head, which is how
:func:`kernels.window_mix` computes it; the literal unfold form lives in the tests.
"""

from __future__ import annotations

from torch import Tensor, nn

from kernels import window_mix, window_mix_convolution
from medisseg.model.blocks import CBT

PAIRS = 81  # 9 window outputs x 9 window inputs


class CDFA(nn.Module):
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

    def forward(self, x: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """[N, in, H, W] and two guides [N, width, H, W] -> [N, width, H, W]."""
        mix = window_mix_convolution if self.portable else window_mix
        values = self.value(self.before(x))
        for attend, guide in (
            (self.attend_foreground, foreground),
            (self.attend_background, background),
        ):
            values = self.project(mix(attend(guide) * self.scale, values))
        return self.after(values)
