"""Encoders: four features of falling resolution, and where their ImageNet weights come from.

``r50`` and ``r18`` are ResNets (He et al. 2016) without the last stage, features at strides
2, 4, 8, 16. ``efficientnet-lite0`` to ``-lite2`` (Tan and Le 2019; Lite variants by Google, 2020)
keep all of their stages, features at strides 4, 8, 16, 32: the deep blocks carry the semantics and
cost little.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

# How much wider and deeper than Lite0.
LITE = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
ENCODERS = ("r50", "r18", *LITE)


class Encoder(nn.Module):
    """Four features; ``channels`` and ``strides`` say how many maps and how coarse each is."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> [f1, f2, f3, f4], fine to coarse."""
        raise NotImplementedError


def create_encoder(name: str, stride_in: str = "conv2") -> Encoder:
    """Return an untrained encoder.

    Args:
        name: One of ``ENCODERS``.
        stride_in: Which convolution of a bottleneck strides: "conv2" (torchvision) or "conv1"
            (the original ResNet, which the reduced weight set was trained with); ``r50`` only.
    """
    if name == "r50":
        return ResNet(Bottleneck, (3, 4, 6), stride_in)
    if name == "r18":
        return ResNet(BasicBlock, (2, 2, 2), stride_in)
    if name in LITE:
        return EfficientNetLite(*LITE[name])
    raise ValueError(f"encoder is {name!r}; expected one of {ENCODERS}")


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 with a shortcut; names as in torchvision."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, stride_in: str) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "conv1" else (1, stride)
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4 width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class BasicBlock(nn.Module):
    """3x3 -> 3x3 with a shortcut; names as in torchvision."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, stride_in: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(Encoder):
    """conv1 and three stages; ReLU inside, so that ImageNet weights keep their meaning."""

    strides = (2, 4, 8, 16)
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        block: type[Bottleneck] | type[BasicBlock],
        depths: tuple[int, int, int],
        stride_in: str = "conv2",
    ) -> None:
        super().__init__()
        if stride_in not in ("conv1", "conv2"):
            raise ValueError(f"stride_in is {stride_in!r}; expected conv1 or conv2")
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = [64]
        for stage, depth in enumerate(depths):
            width, stride = 64 * 2**stage, 1 if stage == 0 else 2
            blocks: list[nn.Module] = []
            for index in range(depth):
                before = channels[-1] if index == 0 else width * block.expansion
                blocks.append(block(before, width, stride if index == 0 else 1, stride_in))
            channels.append(width * block.expansion)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = tuple(channels)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> features at strides 2, 4, 8, 16."""
        f1 = F.relu(self.bn1(self.conv1(x)))
        f2 = self.layer1(F.max_pool2d(f1, 3, 2, 1))
        f3 = self.layer2(f2)
        return [f1, f2, f3, self.layer3(f3)]


class SamePad(nn.Module):
    """TensorFlow's "same" padding of a strided convolution on even sides: the odd one goes last."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.before, self.after = (kernel - 2) // 2, (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H + kernel - 2, W + kernel - 2]."""
        return F.pad(x, (self.before, self.after, self.before, self.after))


def conv_norm(
    channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution -> BatchNorm -> ReLU6, padded as TensorFlow pads."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        parts["pad"] = SamePad(kernel)
    padding = 0 if stride == 2 else kernel // 2
    parts["conv"] = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(out, eps=1e-3)
    if act:
        parts["act"] = nn.ReLU6()
    return nn.Sequential(parts)


class InvertedResidual(nn.Module):
    """Expand 1x1 -> depthwise -> project 1x1, with a shortcut where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.expand = conv_norm(channels, hidden) if ratio > 1 else nn.Identity()
        self.depthwise = conv_norm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = conv_norm(hidden, out, act=False)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out, H / stride, W / stride]."""
        y = self.project(self.depthwise(self.expand(x)))
        out: Tensor = x + y if self.shortcut else y
        return out


class EfficientNetLite(Encoder):
    """Stem and inverted residuals (Lite0: sixteen); no squeeze-and-excitation, ReLU6 throughout.

    Args:
        width: Factor of the channels, rounded to multiples of eight; the stem keeps its 32.
        depth: Factor of the repeats, rounded up; the first and the last stage keep theirs.
    """

    # (repeats, kernel, stride, expansion, channels)
    STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    TAPS = (1, 2, 4, 6)  # the last stage at each of the strides 4, 8, 16, 32
    strides = (4, 8, 16, 32)

    def __init__(self, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, 3, 2)
        blocks, channels, ends, outs = [], 32, [], []
        for stage, (repeats, kernel, stride, ratio, out) in enumerate(self.STAGES):
            out = int(width * out + 4) // 8 * 8
            if 0 < stage < len(self.STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            for index in range(repeats):
                blocks.append(
                    InvertedResidual(channels, out, kernel, stride if index == 0 else 1, ratio)
                )
                channels = out
            ends.append(len(blocks) - 1)
            outs.append(out)
        self.blocks = nn.ModuleList(blocks)
        self.taps = [ends[stage] for stage in self.TAPS]
        self.channels = tuple(outs[stage] for stage in self.TAPS)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> features at strides 4, 8, 16, 32."""
        x, features = self.stem(x), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features


def initialise(module: nn.Module) -> None:
    """Draw convolutions from He's normal distribution (fan out); BatchNorm stays 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


# The strides of every encoder's features, for checks that need no network.
STRIDES = {
    "r50": ResNet.strides,
    "r18": ResNet.strides,
    **dict.fromkeys(LITE, EfficientNetLite.strides),
}
