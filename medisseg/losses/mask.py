"""Mask losses on logits: cross-entropy plus soft Dice, or MONAI's focal, Tversky and boundary loss.

Shapes:
    logits: [N, K, H, W], any floating type; computed in float32.
    target: [N, H, W] or [N, 1, H, W]; class indices, or 0 and 1 (any type) when K is 1; 255 where a
        pixel counts for nothing: no loss, no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOID = 255
# Logits of a pixel that is background beyond doubt: its loss and gradient are 0 to within 1e-13.
SURE = 30.0
SMOOTH = 1.0  # pixels; an empty mask answered empty has Dice 1


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy + soft Dice loss: sigmoid for one map, softmax for K classes.

    Args:
        logits: [N, K, H, W]; K = 1 is binary.
        target: Class indices [N, H, W] or [N, 1, H, W]; void pixels count for nothing.

    Returns:
        The loss, a float32 scalar.

    Example:
        >>> mask_loss(torch.zeros(2, 1, 64, 64), torch.ones(2, 64, 64))
    """
    return cross_entropy(logits, target) + dice_loss(logits, target)


class MaskLoss(nn.Module):
    """The loss of a map of logits against the mask.

    Args:
        kind: "cross_entropy_dice"; "focal_dice" (Lin et al. 2017 plus Dice); or "tversky" (Salehi
            et al. 2017). The last two and the boundary loss are MONAI's.
        gamma: Of the focal loss.
        tversky: Weights of false positives and false negatives.
        boundary: Weight of an added boundary loss (Kervadec et al. 2019); 0: none.
        class_weights: Of the classes in the cross-entropy or focal part, background first.
        dice_of_empty: Whether the Dice part counts a mask without foreground, see
            :func:`dice_loss`.
    """

    def __init__(
        self,
        kind: str = "cross_entropy_dice",
        gamma: float = 2.0,
        tversky: tuple[float, float] = (0.3, 0.7),
        boundary: float = 0.0,
        class_weights: tuple[float, ...] | None = None,
        dice_of_empty: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.gamma, self.tversky, self.boundary = kind, gamma, tversky, boundary
        self.class_weights, self.dice_of_empty = class_weights, dice_of_empty

    def unweighted(self) -> MaskLoss:
        """Return the same loss for maps of another meaning than the classes'."""
        return MaskLoss(
            self.kind, self.gamma, self.tversky, self.boundary, dice_of_empty=self.dice_of_empty
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits [N, K, H, W] and class indices [N, (1,) H, W]."""
        if self.kind == "cross_entropy_dice":
            total = cross_entropy(logits, target, self.class_weights)
            total = total + dice_loss(logits, target, self.dice_of_empty)
        elif self.kind == "focal_dice":
            total = self._focal(logits, target) + dice_loss(logits, target, self.dice_of_empty)
        else:
            total = self._tversky(logits, target)
        return total + self.boundary * self._boundary(logits, target) if self.boundary else total

    def _focal(self, logits: Tensor, target: Tensor) -> Tensor:
        from monai.losses import FocalLoss

        several = logits.shape[1] > 1
        weights = self.class_weights
        alpha = None if weights is None or several else weights[1] / sum(weights)
        loss = FocalLoss(
            to_onehot_y=several,
            gamma=self.gamma,
            alpha=alpha,
            weight=list(weights) if weights and several else None,
            use_softmax=several,
        )
        return _of_monai(loss, logits, target) * _valid_share(target)

    def _tversky(self, logits: Tensor, target: Tensor) -> Tensor:
        from monai.losses import TverskyLoss

        several = logits.shape[1] > 1
        loss = TverskyLoss(
            include_background=not several,
            to_onehot_y=several,
            sigmoid=not several,
            softmax=several,
            alpha=self.tversky[0],
            beta=self.tversky[1],
            smooth_nr=SMOOTH,
            smooth_dr=SMOOTH,
        )
        return _of_monai(loss, logits, target)

    def _boundary(self, logits: Tensor, target: Tensor) -> Tensor:
        from monai.losses import BoundaryLoss

        several = logits.shape[1] > 1
        loss = BoundaryLoss(
            include_background=not several,
            to_onehot_y=several,
            sigmoid=not several,
            softmax=several,
        )
        # Distances in shares of the longer side, so that a weight fits every input size.
        return _of_monai(loss, logits, target) / max(logits.shape[2:])


def _of_monai(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    logits, target = without_void(logits.float(), indices(target))
    return loss(logits, target.unsqueeze(1).float())


def without_void(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, K, H, W] and target [N, H, W] with void pixels as certain background."""
    void = target == VOID
    sure = logits.new_full((1, logits.shape[1], 1, 1), -SURE)
    if logits.shape[1] > 1:
        sure[:, 0] = SURE
    return torch.where(void.unsqueeze(1), sure, logits), torch.where(void, 0, target)


def _valid_share(target: Tensor) -> Tensor:
    """Return pixels over valid pixels: makes a mean over all a mean over the valid ones."""
    valid = (indices(target) != VOID).sum()
    return target.numel() / valid.clamp(min=1)


def cross_entropy(
    logits: Tensor, target: Tensor, class_weights: tuple[float, ...] | None = None
) -> Tensor:
    """Mean over valid pixels of binary (K = 1) or multi-class cross-entropy.

    Args:
        logits: [N, K, H, W].
        target: Class indices [N, H, W] or [N, 1, H, W].
        class_weights: Of each class, the background first; None: all 1.
    """
    scale = _valid_share(target)
    logits, target = without_void(logits.float(), indices(target))
    if logits.shape[1] == 1:
        each = F.binary_cross_entropy_with_logits(logits[:, 0], target.float(), reduction="none")
    else:
        each = F.cross_entropy(logits, target.long(), reduction="none")
    if class_weights is not None:
        each = each * logits.new_tensor(class_weights)[target.long()]
    return each.mean() * scale


def dice_loss(logits: Tensor, target: Tensor, of_empty: bool = True) -> Tensor:
    """1 - soft Dice (Milletari et al. 2016), per image and foreground class, then the mean.

    A mask without foreground costs nearly 1 until the probabilities of all its pixels together are
    less than a pixel, and its gradient outweighs the lesions' of the same batch.

    Args:
        logits: [N, K, H, W].
        target: Class indices [N, H, W] or [N, 1, H, W]; of K classes the first is the background,
            which is left out of the mean.
        of_empty: Whether an image counts for a class that it does not hold; if not, and no image
            holds any, the loss is 0.
    """
    logits, target = without_void(logits.float(), indices(target))
    if logits.shape[1] == 1:
        probability, truth = torch.sigmoid(logits), target.float()[:, None]
    else:
        probability = torch.softmax(logits, 1)[:, 1:]
        truth = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()
    overlap = (probability * truth).sum((2, 3))
    total = probability.sum((2, 3)) + truth.sum((2, 3))
    loss = 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)
    if of_empty:
        return loss.mean()
    there = truth.sum((2, 3)) > 0
    return (loss * there).sum() / there.sum().clamp(min=1)


def indices(target: Tensor) -> Tensor:
    """Return [N, H, W] of a target that may have a channel of one."""
    if target.ndim == 4 and target.shape[1] == 1:
        return target[:, 0]
    if target.ndim != 3:
        raise ValueError(f"target is {tuple(target.shape)}; expected [N, H, W] or [N, 1, H, W]")
    return target
