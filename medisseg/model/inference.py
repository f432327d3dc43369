"""The network as it runs on patients: auxiliary head and uncertainty left out, BatchNorm folded."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medisseg.errors import UserError
from medisseg.model.blocks import Fusible, TeLU
from medisseg.model.cdfa import CDFA
from medisseg.model.network import Network, StageTwo


def for_inference(model: nn.Module, uncertainty: bool = False, portable: bool = True) -> nn.Module:
    """Return a stripped copy of a network in evaluation mode; its masks are the same.

    Args:
        model: A Stage I or II network or a baseline, which has nothing to strip and is left as it
            is; the export folds its BatchNorm.
        uncertainty: Keep the uncertainty branch: forward then returns (logits [N, K, H, W],
            uncertainty logits [N, 1, H, W]). Stage II only.
        portable: Use PyTorch's own operators alone, which every exporter knows; False keeps the
            kernels, for a GPU.

    Raises:
        UserError: The uncertainty map is asked of a Stage I network or a baseline, which have none.
    """
    stripped = copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(stripped, Network):
        if uncertainty:
            raise UserError("a baseline has no uncertainty map; leave the uncertainty option out")
        return stripped
    if uncertainty and stripped.stage == 1:
        raise UserError("a Stage I network has no uncertainty map; expected one of stage 2")
    if isinstance(stripped, StageTwo):
        strip(stripped, uncertainty)
    fold(stripped)
    for part in stripped.modules():
        if isinstance(part, (TeLU, CDFA)):
            part.portable = portable
        if isinstance(part, Fusible):
            part.fused = not portable
    return stripped


def strip(model: StageTwo, uncertainty: bool) -> None:
    """Remove in place what is not on the path to the mask (and to the uncertainty map)."""
    model.with_uncertainty = uncertainty
    if uncertainty:
        del model.auxiliary.foreground, model.auxiliary.background
    else:
        del model.auxiliary, model.decoupling.uncertainty


def fold(module: nn.Module) -> None:
    """Fold in place every BatchNorm that follows a convolution among its siblings."""
    children = list(module.named_children())
    for (_, before), (name, after) in zip(children, children[1:], strict=False):
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(before, after)
            before.weight, before.bias = fused.weight, fused.bias
            setattr(module, name, nn.Identity())
    for _, child in children:
        fold(child)
