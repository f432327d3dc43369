"""The attention unit that ends each decoder, by name: the paper's CBAT and its rivals.

Each takes and returns [N, C, H, W]. Of the units that the paper compares, ES-UNet's and LEGO-Net's
are left out: their publications that could be found name a channel attention and a
squeeze-and-excitation block without the definition needed to rebuild them at this place.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.model.blocks import CBAT, ChannelGate, SpatialGate

NOT_FOUND = "the units of ES-UNet and LEGO-Net: no definition to rebuild them from was found"


class SqueezeExcitation(nn.Module):
    """SE (Hu et al. 2018): x * sigmoid(MLP(average pool)), reduction 16, ReLU."""

    def __init__(self, channels: int, act: str = "relu", reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.reduce, self.expand = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class EfficientChannel(nn.Module):
    """ECA (Wang et al. 2020): a 1-D convolution across channels of the average pool.

    Its kernel is the odd number nearest to log2(C) / 2 + 1 / 2: gamma = 2, b = 1.
    """

    def __init__(self, channels: int, act: str = "relu") -> None:
        super().__init__()
        size = int(abs(math.log2(channels) / 2 + 0.5))
        size += 1 - size % 2
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        gate = torch.sigmoid(self.conv(x.mean((2, 3))[:, None]))
        return x * gate[:, 0, :, None, None]


class CBAM(nn.Sequential):
    """CBAM (Woo et al. 2018): a channel gate, then a spatial gate, both without bias."""

    def __init__(self, channels: int, act: str = "relu") -> None:
        super().__init__(ChannelGate(channels), SpatialGate())


class MultiScaleConvolution(nn.Module):
    """EMCAD's MSCAM (Rahman et al. 2024): channel gate, spatial gate, multi-scale convolution.

    The last expands twice, sums depthwise convolutions of 1, 3 and 5, shuffles the channels in
    as many groups as fit and projects back onto its input.
    """

    SIZES = (1, 3, 5)

    def __init__(self, channels: int, act: str = "relu", expansion: int = 2) -> None:
        super().__init__()
        hidden = channels * expansion
        self.gates = CBAM(channels)
        self.expand = _conv_norm(channels, hidden, 1, act=True)
        self.scales = nn.ModuleList(
            _conv_norm(hidden, hidden, size, groups=hidden, act=True) for size in self.SIZES
        )
        self.groups = math.gcd(hidden, channels)
        self.project = _conv_norm(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        x = self.gates(x)
        expanded = self.expand(x)
        summed = sum(scale(expanded) for scale in self.scales)
        shuffled = summed.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        out: Tensor = x + self.project(shuffled)
        return out


class DualAttention(nn.Module):
    """DA-TransUNet's DA-Block (Sun et al. 2024), which is DANet's head (Fu et al. 2019) at C / 16.

    A position and a channel attention in parallel, each between 3x3 convolutions, summed. The
    position attention goes through scaled_dot_product_attention with scale 1, so that no matrix of
    positions by positions is kept where a fused kernel exists.
    """

    def __init__(self, channels: int, act: str = "relu") -> None:
        super().__init__()
        inner = max(channels // 16, 4)
        self.position_in = _conv_norm(channels, inner, 3, relu=True)
        self.channel_in = _conv_norm(channels, inner, 3, relu=True)
        self.query = nn.Conv2d(inner, max(inner // 8, 1), 1)
        self.key = nn.Conv2d(inner, max(inner // 8, 1), 1)
        self.value = nn.Conv2d(inner, inner, 1)
        self.position_scale = nn.Parameter(torch.zeros(()))
        self.channel_scale = nn.Parameter(torch.zeros(()))
        self.position_out = nn.Sequential(
            _conv_norm(inner, inner, 3, relu=True), nn.Dropout2d(0.1), nn.Conv2d(inner, channels, 1)
        )
        self.channel_out = nn.Sequential(
            _conv_norm(inner, inner, 3, relu=True), nn.Dropout2d(0.1), nn.Conv2d(inner, channels, 1)
        )
        self.out = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        position = self.position_out(self.attend_positions(self.position_in(x)))
        channel = self.channel_out(self.attend_channels(self.channel_in(x)))
        out: Tensor = self.out(position + channel)
        return out

    def attend_positions(self, x: Tensor) -> Tensor:
        """x + scale * softmax(Q K^T) V over the H W positions; [N, c, H, W]."""
        query, key, value = (
            part(x).flatten(2).transpose(1, 2)[:, None]
            for part in (self.query, self.key, self.value)
        )
        # Fused kernels want equal depths; zeros add nothing to the products.
        missing = value.shape[3] - query.shape[3]
        mixed = F.scaled_dot_product_attention(
            F.pad(query, (0, missing)), F.pad(key, (0, missing)), value, scale=1.0
        )
        return x + self.position_scale * mixed[:, 0].transpose(1, 2).reshape(x.shape)

    def attend_channels(self, x: Tensor) -> Tensor:
        """x + scale * softmax(max - X X^T) X over the c channels; [N, c, H, W]."""
        rows = x.flatten(2)
        energy = rows @ rows.transpose(1, 2)
        weights = torch.softmax(energy.amax(2, keepdim=True) - energy, 2)
        return x + self.channel_scale * (weights @ rows).reshape(x.shape)


def _conv_norm(
    channels: int, out: int, kernel: int, groups: int = 1, act: bool = False, relu: bool = False
) -> nn.Sequential:
    """Convolution -> BatchNorm, then ReLU6 (``act``) or ReLU (``relu``) or nothing."""
    parts: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    if act or relu:
        parts.append(nn.ReLU6() if act else nn.ReLU())
    return nn.Sequential(*parts)


# name -> maker(channels, activation); only CBAT follows the network's activation.
ATTENTIONS: dict[str, Callable[[int, str], nn.Module]] = {
    "none": lambda channels, act: nn.Identity(),
    "se": SqueezeExcitation,
    "eca": EfficientChannel,
    "cbam": CBAM,
    "cbat": CBAT,
    "emcad": MultiScaleConvolution,
    "datransunet": DualAttention,
}
