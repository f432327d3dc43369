"""Mask losses on logits: cross-entropy plus soft Dice, binary or multi-class.

Shapes:
    logits: [N, K, H, W], any floating type; computed in float32.
    target: [N, H, W] or [N, 1, H, W]; class indices, or 0 and 1 (any type) when K is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1.0  # pixels; an empty mask answered empty has Dice 1


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy + soft Dice loss: sigmoid for one map, softmax for K classes.

    Example:
        >>> mask_loss(torch.zeros(2, 1, 64, 64), torch.ones(2, 64, 64))
    """
    return cross_entropy(logits, target) + dice_loss(logits, target)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of binary (K = 1) or multi-class cross-entropy."""
    logits, target = logits.float(), indices(target)
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], target.float())
    return F.cross_entropy(logits, target.long())


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice (Milletari et al. 2016), per image and foreground class, then the mean.

    Of K classes the first is the background, which is left out of the mean.
    """
    logits, target = logits.float(), indices(target)
    if logits.shape[1] == 1:
        probability, truth = torch.sigmoid(logits), target.float()[:, None]
    else:
        probability = torch.softmax(logits, 1)[:, 1:]
        truth = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()
    overlap = (probability * truth).sum((2, 3))
    total = probability.sum((2, 3)) + truth.sum((2, 3))
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def indices(target: Tensor) -> Tensor:
    """Return [N, H, W] of a target that may have a channel of one."""
    if target.ndim == 4 and target.shape[1] == 1:
        return target[:, 0]
    if target.ndim != 3:
        raise ValueError(f"target is {tuple(target.shape)}; expected [N, H, W] or [N, 1, H, W]")
    return target
