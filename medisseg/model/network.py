"""Med-DisSeg in its two stages, and ConDSeg and the small ``edge`` networks as options of it.

Stage I trains the encoder under a light head; Stage II decouples the deepest feature into
foreground, background and uncertainty and lets the first two guide the aggregation of all levels
(Chen, Wang, Zou, Wu: Med-DisSeg; the decoder is ConDSeg's, Lei et al. 2024). Logits throughout.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.checkpoint import Checkpoint
from medisseg.model.attention import ATTENTIONS
from medisseg.model.blocks import CBT, ELAT, resize, upsample
from medisseg.model.cdfa import CDFA
from medisseg.model.decoder import DECODERS, MultiReceptiveField, OutputBlock
from medisseg.model.decoupling import BRANCHES, AuxiliaryHead, Guide, SemanticDecoupling
from medisseg.model.encoders import create_encoder
from medisseg.model.options import NetworkOptions
from medisseg.model.output import TrainingOutput

# Logits; logits and the uncertainty's; or all of them, in training.
Answer = Tensor | tuple[Tensor, ...] | TrainingOutput


class StageOneHead(nn.Module):
    """Project each feature to ``head_width`` channels, gate it by ELAT, join and project to logits.

    The published head upsamples before its 1x1 convolutions. Both are linear and the weights of a
    bilinear sample sum to one, so projecting first gives the same values at a fraction of the
    cost; BatchNorm, activation and ELAT follow at the joint size, as published.
    """

    def __init__(self, channels: tuple[int, ...], classes: int, options: NetworkOptions) -> None:
        super().__init__()
        width, act = options.head_width, options.activation
        self.projections = nn.ModuleList(CBT(c, width, 1, act=act) for c in channels)
        self.gates = nn.ModuleList(
            ELAT(width, act) if options.elat else nn.Identity() for _ in channels
        )
        self.logits = nn.Conv2d(width * len(channels), classes, 1, bias=False)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return logits [N, K, *size], the deepest projection, the joined [N, 4 width, *size]."""
        maps = []
        for x, part, gate in zip(features, self.projections, self.gates, strict=True):
            block = cast(CBT, part)
            projected = block.project(x)
            full = resize(projected, size=size)
            maps.append(gate(block.finish(full)))
        joined = torch.cat(maps, 1)
        return self.logits(joined), projected, joined


class Network(nn.Module):
    """What both stages share: padding, the encoder, and what travels in a checkpoint."""

    stage: int
    encoder_prefix = "encoder."  # of its parameters' names
    info: Checkpoint  # set by create_model and load_checkpoint

    def __init__(self, options: NetworkOptions, classes: int) -> None:
        super().__init__()
        self.options, self.classes = options, classes
        self.encoder = create_encoder(options.encoder, options.stride_in)
        self.encoder_gates: nn.ModuleList | None = None
        if options.elat_encoder:
            self.encoder_gates = nn.ModuleList(
                ELAT(channels, options.activation) for channels in self.encoder.channels
            )

    @property
    def multiple(self) -> int:
        """Sides that are no multiple of this many pixels are padded and cropped back."""
        return max(16, self.encoder.strides[-1])

    def forward(self, x: Tensor) -> Answer:
        """Segment a batch.

        Args:
            x: [N, 3, H, W] float, already in the checkpoint's input convention.

        Returns:
            Logits [N, K, H, W] in evaluation mode; a :class:`TrainingOutput` in training mode.
        """
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        answer = self.answer(x)
        if not (bottom or right):
            return answer
        if isinstance(answer, Tensor):
            return answer[..., :height, :width]
        maps: list[Any] = [m[..., :height, :width] if isinstance(m, Tensor) else m for m in answer]
        return TrainingOutput(*maps) if isinstance(answer, TrainingOutput) else tuple(maps)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's features [N, C, h, w], finest first, gated by ``elat_encoder``."""
        found: list[Tensor] = self.encoder(x)
        if self.encoder_gates is None:
            return found
        return [gate(feature) for gate, feature in zip(self.encoder_gates, found, strict=True)]

    def answer(self, x: Tensor) -> Answer:
        """Forward of an input [N, 3, H, W] whose sides are multiples of :attr:`multiple`."""
        raise NotImplementedError


class StageOne(Network):
    """Encoder and light head."""

    stage = 1

    def __init__(self, options: NetworkOptions, classes: int) -> None:
        super().__init__(options, classes)
        self.head = StageOneHead(self.encoder.channels, classes, options)

    def answer(self, x: Tensor) -> Answer:
        """See :meth:`Network.forward`."""
        features = self.features(x)
        full = x.shape[-2:]
        size = full if self.options.head_at_input else features[0].shape[-2:]
        logits, middle, joined = self.head(features, size)
        logits = upsample(logits, full[0] // size[0])
        if not self.training:
            return logits
        kept = {"early": features[-1], "middle": middle, "late": joined}
        return TrainingOutput(logits, None, None, None, kept)


class StageTwo(Network):
    """The full network.

    ``with_uncertainty`` makes evaluation answer (logits, uncertainty logits [N, 1, H, W]).
    """

    stage = 2
    with_uncertainty = False

    def __init__(self, options: NetworkOptions, classes: int) -> None:
        super().__init__(options, classes)
        o, channels = options, self.encoder.channels[-options.levels :]
        light: dict[str, Any] = {"act": o.activation, "separable": o.separable}
        self.fields = nn.ModuleList(
            MultiReceptiveField(c, o.width, o.dilations, **light) for c in channels
        )
        self.decoupling = SemanticDecoupling(channels[-1], o.decouple_width, o.width, o.activation)
        self.auxiliary = AuxiliaryHead(o.width, o.aux_widths, **light)
        doublings = range(o.levels - 1, -1, -1)
        self.guides_foreground = nn.ModuleList(Guide(o.width, d, **light) for d in doublings)
        self.guides_background = nn.ModuleList(Guide(o.width, d, **light) for d in doublings)
        self.aggregations = nn.ModuleList(
            CDFA(2 * o.width if d else o.width, o.width, o.heads, **light) for d in doublings
        )
        self.decoders = nn.ModuleDict(
            {
                name: DECODERS[o.decoder](
                    o.width, ATTENTIONS[o.attention](o.width, o.activation), **light
                )
                for name in ("small", "medium", "large")[-o.levels + 1 :]
            }
        )
        finer = self.encoder.channels[-o.levels - 1] if o.detail else 0
        self.output = OutputBlock(
            o.width,
            o.head_width,
            classes,
            maps=o.levels - 1,
            detail=finer,
            shuffle=o.shuffle,
            fusion=o.fusion,
            **light,
        )

    def aggregate(self, maps: list[Tensor], foreground: Tensor, background: Tensor) -> list[Tensor]:
        """CDFA from the coarsest of the maps [N, width, ...] on -> as many of the same sizes."""
        aggregated: list[Tensor] = []
        for level in reversed(range(len(maps))):
            guides = (
                self.guides_foreground[level](foreground),
                self.guides_background[level](background),
            )
            coarser = aggregated[0] if aggregated else None
            aggregated.insert(0, self.aggregations[level](maps[level], *guides, coarser))
        return aggregated

    def answer(self, x: Tensor) -> Answer:
        """See :meth:`Network.forward`."""
        features = self.features(x)
        levels = features[-self.options.levels :]
        maps = [field(feature) for field, feature in zip(self.fields, levels, strict=True)]
        parts = self.decoupling(features[-1])
        aggregated = self.aggregate(maps, parts["foreground"], parts["background"])
        decoded = [
            decoder(coarse, fine)
            for decoder, fine, coarse in zip(
                self.decoders.values(), aggregated, aggregated[1:], strict=False
            )
        ]
        finer = features[-self.options.levels - 1] if self.options.detail else None
        logits = self.output(decoded, x.shape[-2], finer)
        if self.training:
            auxiliary = self.auxiliary(parts, self.auxiliary_scale)
            kept = {"early": features[-1], "middle": maps[-1], "late": decoded[0]}
            foreground, background, uncertainty = (auxiliary[name] for name in BRANCHES)
            return TrainingOutput(logits, foreground, background, uncertainty, kept)
        if self.with_uncertainty:
            return logits, self.auxiliary(parts, self.auxiliary_scale)["uncertainty"]
        answer: Tensor = logits
        return answer

    @property
    def auxiliary_scale(self) -> int:
        """How many times the auxiliary maps are enlarged to the input's size."""
        scale: int = self.encoder.strides[-1] // 2 ** (len(self.options.aux_widths) - 1)
        return scale

    def auxiliary_logits(self, x: Tensor) -> dict[str, Tensor]:
        """Foreground, background and uncertainty logits [N, 1, H, W], in any mode.

        The sides of ``x`` must be multiples of :attr:`multiple`.
        """
        parts = self.decoupling(self.features(x)[-1])
        maps: dict[str, Tensor] = self.auxiliary(parts, self.auxiliary_scale)
        return maps
