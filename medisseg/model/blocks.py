"""Convolution blocks and the small gates of Med-DisSeg (Chen, Wang, Zou, Wu).

All maps are [N, C, H, W]. Upsampling is bilinear with aligned corners, as in the release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import spatial_gate, telu, telu_reference, upsample_concat

ACTIVATIONS = ("telu", "relu", "none")


class TeLU(nn.Module):
    """x tanh(exp(x)) (Fernandez and Mali 2024, "TeLU"), through :func:`kernels.telu`.

    ``portable`` spells it in PyTorch's own operators, for exporters.
    """

    portable = False

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape elementwise."""
        if self.portable:
            return telu_reference(x)
        return telu(x)


def activation(name: str) -> nn.Module:
    """Return the activation of that name: "telu", "relu" or "none" (identity)."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; expected one of {ACTIVATIONS}")
    module: nn.Module = {"telu": TeLU, "relu": nn.ReLU, "none": nn.Identity}[name]()
    return module


class Fusible(nn.Module):
    """Takes kernels that have no derivative, once ``for_inference`` sets ``fused``."""

    fused = False


def upsample_together(maps: Sequence[Tensor], scales: Sequence[int], fused: bool) -> Tensor:
    """Return maps side by side, each enlarged by its scale, bilinear with aligned corners.

    Args:
        maps: [N, C_i, H / scale_i, W / scale_i].
        scales: Whole numbers.
        fused: Through :func:`kernels.upsample_concat`.

    Returns:
        [N, sum of C_i, H, W].
    """
    if fused:
        return upsample_concat(maps, [side * scales[0] for side in maps[0].shape[2:]])
    large = [upsample(x, scale) for x, scale in zip(maps, scales, strict=True)]
    return large[0] if len(large) == 1 else torch.cat(large, 1)


def upsample(x: Tensor, scale: int = 2) -> Tensor:
    """Enlarge [N, C, H, W] ``scale`` times, bilinear with aligned corners."""
    return x if scale == 1 else resize(x, scale_factor=float(scale))


def resize(x: Tensor, **to: Any) -> Tensor:
    """Resize [N, C, H, W] to ``size`` or by ``scale_factor``, bilinear with aligned corners.

    In x's own precision: autocast alone would answer in float32 and double what all that follows
    moves.
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, mode="bilinear", align_corners=True, **to)
    return F.interpolate(x, mode="bilinear", align_corners=True, **to)


class CBT(nn.Module):
    """Convolution k x k (same padding, no bias) -> BatchNorm -> activation.

    ``separable`` replaces the k x k convolution by a depthwise one followed by 1 x 1: the light
    form of the ``edge`` preset.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        dilation: int = 1,
        act: str = "telu",
        separable: bool = False,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        separable = separable and kernel > 1
        if separable:
            self.depthwise = nn.Conv2d(
                in_channels, in_channels, kernel, 1, padding, dilation, in_channels, bias=False
            )
            kernel, padding, dilation = 1, 0, 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, 1, padding, dilation, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = activation(act)
        self.separable = separable

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        return self.finish(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """The convolution alone: [N, in, H, W] -> [N, out, H, W]."""
        return convolve(self.conv, convolve(self.depthwise, x) if self.separable else x)

    def finish(self, x: Tensor) -> Tensor:
        """BatchNorm and activation, of [N, out, H, W]."""
        out: Tensor = self.act(self.norm(x))
        return out


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)`` of [N, C, H, W]; a 3 x 3 dilated beyond the map by its centre tap alone.

    The other eight taps read nothing but padding there, as at the coarsest level with the dilations
    of the multi-receptive-field blocks.
    """
    if conv.kernel_size == (3, 3) and min(conv.dilation) >= max(x.shape[-2:]):
        return F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias, groups=conv.groups)
    out: Tensor = conv(x)
    return out


class ChannelGate(nn.Module):
    """x * sigmoid(MLP(avg pool) + MLP(max pool)), MLP = C -> C/16 -> ReLU -> C without bias."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return x * self.factors(x)[:, :, None, None]

    def factors(self, x: Tensor) -> Tensor:
        """What each channel of ``x`` [N, C, H, W] is multiplied with: [N, C], 0 to 1."""
        pooled = torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1)  # both in one product
        hidden = F.relu(F.linear(pooled, self.reduce.weight.flatten(1)))
        return torch.sigmoid(F.linear(hidden, self.expand.weight.flatten(1)).sum(1))


class SpatialGate(Fusible):
    """x * sigmoid(7 x 7 convolution of [channel mean, channel max])."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        if self.fused:
            return spatial_gate(x, self.conv.weight, self.conv.bias)
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(pooled))

    def after(self, x: Tensor, factors: Tensor) -> Tensor:
        """The gate of ``x`` [N, C, H, W] times a channel gate's ``factors`` [N, C]."""
        if self.fused:
            return spatial_gate(x, self.conv.weight, self.conv.bias, factors)
        out: Tensor = self(x * factors[:, :, None, None])
        return out


def gated(x: Tensor, channel: ChannelGate, spatial: SpatialGate) -> Tensor:
    """Both gates of [N, C, H, W], one after the other; fused, ``x`` is stored once."""
    if spatial.fused:
        return spatial.after(x, channel.factors(x))
    out: Tensor = spatial(channel(x))
    return out


class ELAT(nn.Module):
    """Encoder-level attention with TeLU: a channel and a multi-scale spatial gate in parallel."""

    def __init__(self, channels: int, act: str = "telu", reduction: int = 8) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction, bias=False)
        self.act = activation(act)
        self.expand = nn.Linear(channels // reduction, channels, bias=False)
        self.scales = nn.ModuleList(
            nn.Conv2d(channels, 1, 3, padding=d, dilation=d) for d in (1, 2, 3)
        )
        self.fuse = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        channel = torch.sigmoid(self.expand(self.act(self.reduce(x.mean((2, 3))))))
        spatial = torch.sigmoid(self.fuse(torch.cat([scale(x) for scale in self.scales], 1)))
        return x * channel[:, :, None, None] * spatial


class CBAT(nn.Module):
    """The decoder's attention unit: CBAM's two gates with TeLU and biases."""

    def __init__(self, channels: int, act: str = "telu", reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.reduce = nn.Linear(channels, hidden)
        self.act = activation(act)
        self.expand = nn.Linear(hidden, channels)
        self.spatial = SpatialGate(bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        pooled = torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1)
        both = self.expand(self.act(self.reduce(pooled))).sum(1)
        return self.spatial.after(x, torch.sigmoid(both))
