"""Multi-receptive-field blocks, CBAT decoders and the output block (Med-DisSeg, Stage II)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.model.blocks import (
    CBT,
    ChannelGate,
    Fusible,
    SpatialGate,
    gated,
    upsample,
    upsample_together,
)


class MultiReceptiveField(nn.Module):
    """Four parallel CBTs (1x1 and three dilated 3x3), each channel-gated, fused and shortcut."""

    def __init__(
        self, in_channels: int, width: int, dilations: tuple[int, ...], act: str, separable: bool
    ) -> None:
        super().__init__()
        fields = [CBT(in_channels, width, 1, act=act)]
        fields += [CBT(in_channels, width, 3, d, act, separable) for d in dilations]
        self.fields = nn.ModuleList(fields)
        self.gates = nn.ModuleList(ChannelGate(width) for _ in fields)
        self.fuse = CBT(width * len(fields), width, 3, act="none", separable=separable)
        self.shortcut = CBT(in_channels, width, 1, act="none")
        self.spatial = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, width, H, W]."""
        parts = [gate(field(x)) for field, gate in zip(self.fields, self.gates, strict=True)]
        out: Tensor = self.spatial(F.relu(self.fuse(torch.cat(parts, 1)) + self.shortcut(x)))
        return out


class Decoder(nn.Module):
    """Join a coarse and a skip feature by a dense residual stack, gates and an attention unit."""

    def __init__(self, width: int, attention: nn.Module, act: str, separable: bool) -> None:
        super().__init__()
        self.join = CBT(2 * width, width, 1, act=act)
        self.second = CBT(width, width, 3, act="none", separable=separable)
        self.third = CBT(width, width, 3, act="none", separable=separable)
        self.fourth = CBT(width, width, 1, act="none")
        self.channel = ChannelGate(width)
        self.spatial = SpatialGate()
        self.attention = attention

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[N, C, h, w], [N, C, 2h, 2w] -> [N, C, 2h, 2w]."""
        s1 = self.join.finish(self.joined(coarse, skip))
        s2 = F.relu(self.second(s1) + s1)
        s3 = F.relu(self.third(s2) + s2 + s1)
        out = F.relu(self.fourth(s3) + s3 + s2 + s1)
        attended: Tensor = self.attention(gated(out, self.channel, self.spatial))
        return attended

    def joined(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """The 1 x 1 convolution of both, concatenated, of ``coarse`` before it is enlarged.

        ``coarse``: [N, C, H / 2, W / 2]; ``skip``: [N, D, H, W]; the result: [N, out, H, W].

        The release enlarges first. Both are linear and the weights of a bilinear sample sum to one,
        so the values are the same; at its own size ``coarse`` costs a quarter, and nothing is
        concatenated.
        """
        conv, width = self.join.conv, coarse.shape[1]
        small = F.conv2d(coarse, conv.weight[:, :width])
        return F.conv2d(skip, conv.weight[:, width:], conv.bias) + upsample(small)


class PaperDecoder(Fusible):
    """Eq. 8 as the paper writes it: three steps F + CBT3x3(CBT1x1(F)) on the joined features.

    A CBT 1x1 then brings the 2C channels to C for the gates and the attention unit, which the
    paper leaves unsaid. The release has :class:`Decoder` in its place.
    """

    def __init__(self, width: int, attention: nn.Module, act: str, separable: bool) -> None:
        super().__init__()
        joined = 2 * width
        self.steps = nn.ModuleList(
            nn.Sequential(
                CBT(joined, joined, 1, act=act),
                CBT(joined, joined, 3, act=act, separable=separable),
            )
            for _ in range(3)
        )
        self.reduce = CBT(joined, width, 1, act=act)
        self.channel = ChannelGate(width)
        self.spatial = SpatialGate()
        self.attention = attention

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[N, C, h, w], [N, C, 2h, 2w] -> [N, C, 2h, 2w]."""
        x = upsample_together([coarse, skip], [2, 1], self.fused)
        for step in self.steps:
            x = x + step(x)
        out: Tensor = self.attention(gated(self.reduce(x), self.channel, self.spatial))
        return out


DECODERS = {"released": Decoder, "paper": PaperDecoder}


class OutputBlock(Fusible):
    """Fuse the decoders' outputs at the finest one's size and answer one map a class.

    ``detail`` adds an encoder feature of that many channels at twice that size, projected 1x1;
    ``shuffle`` makes the last convolution answer a square of that side for each position
    (sub-pixel convolution, Shi et al. 2016), which no bilinear enlargement then blurs.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        classes: int,
        act: str,
        separable: bool,
        maps: int = 3,
        detail: int = 0,
        shuffle: int = 1,
        fusion: str = "concat",
    ) -> None:
        super().__init__()
        self.sum = fusion == "sum"  # Eq. 9 of the paper; the release concatenates
        self.fuse = CBT(width if self.sum else maps * width, width, 3, act=act, separable=separable)
        self.detail = CBT(detail, width, 1, act="none") if detail else None
        self.refine = CBT(width, width, 3, act=act, separable=separable)
        self.reduce = CBT(width, hidden, 1, act=act)
        self.logits = nn.Conv2d(hidden, classes * shuffle**2, 1)
        self.shuffle = shuffle

    def forward(self, decoded: list[Tensor], height: int, finer: Tensor | None = None) -> Tensor:
        """Map the decoders' outputs to logits.

        Args:
            decoded: [N, width, h, w], then each half the size of the one before.
            height: H, a multiple of 2 ``shuffle`` h.
            finer: The encoder's feature [N, detail, 2 h, 2 w].

        Returns:
            Logits [N, classes, H, W].
        """
        scales = [2**i for i in range(len(decoded))]
        if self.sum:
            large = [upsample(m, scale) for m, scale in zip(decoded, scales, strict=True)]
            x = torch.stack(large).sum(0)
        else:
            x = upsample_together(decoded, scales, self.fused)
        x = upsample_together([self.fuse(x)], [2], self.fused)
        if self.detail is not None:
            assert finer is not None
            x = x + self.detail(finer)
        logits = self.logits(self.reduce(self.refine(x)))
        if self.shuffle > 1:
            logits = F.pixel_shuffle(logits, self.shuffle)
        return upsample(logits, height // logits.shape[-2])
