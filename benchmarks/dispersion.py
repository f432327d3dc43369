"""How much of the gradient the dispersive loss has, on several encoders and in both forms.

    python -m benchmarks.dispersion DATA --out FOLDER [--reduced resnet50.npz]

Every row is one step of real images through a network in training: the norm of the dispersive
term's gradient at the encoder's deepest feature, as a share of the norm of all other terms'
gradient there. A form whose share is the same on every encoder lets lambda and tau carry over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import machine, parser, show, write
from medisseg.convention import InputConvention
from medisseg.data import augment
from medisseg.data.folder import SegmentationFolder, load
from medisseg.errors import command
from medisseg.losses import NORMALIZE, VARIANTS
from medisseg.losses.dispersive import DispersiveOptions, DispersiveTerm
from medisseg.losses.objective import StageOneObjective, StageTwoObjective, weighted_sum
from medisseg.model.create import create_model

Result = dict[str, Any]


class Start(NamedTuple):
    """A network and the weights that its encoder starts from."""

    label: str
    preset: str
    weights: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every encoder, stage and form."""
    options = parser("dispersion", __doc__)
    options.add_argument("data", help="data folder with a list train")
    options.add_argument("--reduced", help="reduced ResNet-50 weights (.npz), where at hand")
    args = options.parse_args(argv)
    side, batch = (64, 2) if args.quick else (256, 4)
    starts = [
        Start("ResNet-50, random", "medisseg-r50", None),
        Start("EfficientNet-Lite0, ImageNet", "edge", "imagenet"),
        Start("EfficientNet-Lite0, random", "edge", None),
    ]
    if args.reduced:
        starts.append(Start("ResNet-50, pruned 8-bit ImageNet", "medisseg-r50", args.reduced))
    convention = InputConvention(size=(side, side))
    names = SegmentationFolder(args.data, "train").names[:batch]
    images, masks = load(SegmentationFolder(args.data, names), convention)
    inputs = augment.normalize(torch.from_numpy(images).float() / 255, convention)
    target = torch.from_numpy(masks).long()
    rows: list[Result] = []
    for start in starts:
        for stage in (1, 2):
            rows.append(step(start, stage, inputs, target))
            write(args.out, "dispersion", machine(), rows, images=batch, size=side)
    show("Dispersive gradient as a share of all other terms'", rows)
    return 0


def step(start: Start, stage: int, inputs: Tensor, target: Tensor) -> Result:
    """Return the share of every variant and form at one network's first step."""
    torch.manual_seed(0)
    network = create_model(start.preset, stage=stage, encoder_weights=start.weights).train()
    output = network(inputs)
    if stage == 1:
        terms = StageOneObjective(0).terms(output, output, target)
    else:
        terms = StageTwoObjective(0).terms(output, target)
    feature = output.features["early"]
    (rest,) = torch.autograd.grad(weighted_sum(terms)[0], feature, retain_graph=True)
    row: Result = {"encoder": start.label, "stage": stage}
    for variant in VARIANTS:
        for normalize in NORMALIZE:
            term = DispersiveTerm(DispersiveOptions(variant, normalize=normalize))
            (found,) = torch.autograd.grad(term({"early": feature}), feature, retain_graph=True)
            row[f"{variant}, {normalize}"] = float(found.norm() / rest.norm())
    return row


if __name__ == "__main__":
    command(main)
