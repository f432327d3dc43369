"""Semantic decoupling of the deepest feature, its auxiliary head, and the guides made of it.

Med-DisSeg, section on semantic information decoupling (taken over from ConDSeg, Lei et al. 2024).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medisseg.model.blocks import CBT, Fusible, upsample, upsample_together

BRANCHES = ("foreground", "background", "uncertainty")


class SemanticDecoupling(nn.Module):
    """Three branches CBT 3x3 -> CBT 3x3 -> CBT 1x1 on the deepest encoder feature."""

    def __init__(self, channels: int, hidden: int, width: int, act: str) -> None:
        super().__init__()
        for name in BRANCHES:
            branch = nn.Sequential(
                CBT(channels, hidden, 3, act=act),
                CBT(hidden, width, 3, act=act),
                CBT(width, width, 1, act=act),
            )
            self.add_module(name, branch)

    def forward(self, deepest: Tensor) -> dict[str, Tensor]:
        """[N, C, h, w] -> branch name -> [N, width, h, w]; a stripped branch is left out."""
        return {name: branch(deepest) for name, branch in self.named_children()}


class AuxiliaryHead(nn.Module):
    """Per branch: CBT 3x3 with upsampling x2 between, then one logit map. Training only."""

    def __init__(self, channels: int, widths: tuple[int, ...], act: str, separable: bool) -> None:
        super().__init__()
        for name in BRANCHES:
            blocks = nn.ModuleList(
                CBT(before, after, 3, act=act, separable=separable)
                for before, after in zip((channels, *widths), widths, strict=False)
            )
            # One logit map a branch, whatever the number of classes.
            logits = nn.Conv2d(widths[-1], 1, 1)
            self.add_module(name, nn.ModuleDict({"blocks": blocks, "logits": logits}))

    def forward(self, decoupled: dict[str, Tensor], scale: int) -> dict[str, Tensor]:
        """Return each kept branch's logits [N, 1, H, W], ``scale`` times its last map."""
        return {
            name: upsample(self.one(branch, decoupled[name]), scale)
            for name, branch in self.named_children()
        }

    def one(self, branch: Any, x: Tensor) -> Tensor:
        """The logits [N, 1, h, w] of one branch at its own resolution."""
        for index, block in enumerate(branch["blocks"]):
            x = block(upsample(x) if index else x)
        logits: Tensor = branch["logits"](x)
        return logits


class Guide(Fusible):
    """Bring a decoupled feature to a finer level: CBT 3x3, then (up x2, CBT 3x3) per doubling."""

    def __init__(self, width: int, doublings: int, act: str, separable: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CBT(width, width, 3, act=act, separable=separable) for _ in range(doublings + 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h * 2**doublings, w * 2**doublings]."""
        for index, block in enumerate(self.blocks):
            x = block(upsample_together([x], [2], self.fused) if index else x)
        return x
