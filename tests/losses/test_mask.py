"""Void pixels, class weights, and MONAI's losses of a mask."""

from __future__ import annotations

import pytest
import torch

from medisseg.losses.mask import VOID, MaskLoss, cross_entropy, dice_loss
from medisseg.losses.objective import StageTwoObjective
from medisseg.model.output import TrainingOutput
from medisseg.training.modules import image_scores

LOSSES = [
    MaskLoss(),
    MaskLoss("focal_dice"),
    MaskLoss("tversky"),
    MaskLoss(class_weights=(1.0, 3.0, 2.0)),
    MaskLoss("focal_dice", class_weights=(1.0, 3.0, 2.0)),
]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_void_pixels_have_no_loss_and_no_gradient(loss: MaskLoss, classes: int) -> None:
    """What is void may be anything: cut off, the rest has the same loss (but for Dice's sums)."""
    torch.manual_seed(0)
    target = torch.randint(0, max(classes, 2), (2, 8, 6))
    target[:, :, 4:] = VOID
    logits = torch.randn(2, classes, 8, 6, requires_grad=True)
    value = loss(logits, target)
    torch.testing.assert_close(value, loss(logits[..., :4], target[..., :4]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[..., 4:].any() and gradient[..., :4].any()


def test_focal_loss_is_its_formula() -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(2, 1, 5, 5), torch.randint(0, 2, (2, 5, 5))
    p = torch.sigmoid(logits[:, 0])
    right = torch.where(target == 1, p, 1 - p)
    focal = -((1 - right) ** 2 * right.log()).mean()
    dice = MaskLoss()(logits, target) - cross_entropy(logits, target)
    torch.testing.assert_close(MaskLoss("focal_dice")(logits, target), focal + dice)


def test_tversky_of_equal_weights_is_dice() -> None:
    torch.manual_seed(2)
    logits, target = torch.randn(1, 1, 9, 9), torch.randint(0, 2, (1, 9, 9))
    p, t = torch.sigmoid(logits[0, 0]), target[0].float()
    dice = (2 * (p * t).sum() + 2) / (p.sum() + t.sum() + 2)
    torch.testing.assert_close(MaskLoss("tversky", tversky=(0.5, 0.5))(logits, target), 1 - dice)


@pytest.mark.parametrize("classes", [1, 3])
def test_dice_without_empty_masks_is_that_of_the_others(classes: int) -> None:
    """An empty mask changes neither the loss nor its gradient; the cross-entropy still sees it."""
    torch.manual_seed(4)
    logits = torch.randn(3, classes, 6, 6, requires_grad=True)
    target = torch.randint(0, max(classes, 2), (3, 6, 6))
    target[1] = 0
    kept = logits[[0, 2]], target[[0, 2]]
    torch.testing.assert_close(dice_loss(logits, target, of_empty=False), dice_loss(*kept))
    assert dice_loss(logits, target) > dice_loss(*kept) + 0.1
    loss = MaskLoss(dice_of_empty=False)
    assert loss.unweighted().dice_of_empty is False
    dice = loss(logits, target) - cross_entropy(logits, target)
    torch.testing.assert_close(dice, dice_loss(*kept))
    (gradient,) = torch.autograd.grad(dice_loss(logits, target, of_empty=False), logits)
    assert not gradient[1].any() and gradient[0].any()
    nothing = torch.zeros(2, 6, 6)
    assert dice_loss(logits[:2], nothing, of_empty=False) == 0


def test_area_weight_bounds_the_auxiliary_maps() -> None:
    torch.manual_seed(5)
    maps = [torch.randn(2, 1, 8, 8) - 4 for _ in range(4)]
    features = {name: torch.randn(2, 4, 3, 3) for name in ("early", "middle", "late")}
    target = torch.randint(0, 2, (2, 8, 8))
    for largest in (5.0, 1.0):
        objective = StageTwoObjective(weight=0.0, max_area_weight=largest)
        terms = objective.terms(TrainingOutput(*maps, features), target)
        assert [float(terms[name][1]) for name in ("foreground", "background")] == [largest] * 2


def test_class_weights_scale_their_class() -> None:
    logits, target = torch.randn(1, 1, 4, 4), torch.ones(1, 4, 4)
    plain = cross_entropy(logits, target)
    torch.testing.assert_close(cross_entropy(logits, target, (1.0, 3.0)), 3 * plain)


def test_boundary_loss_grows_with_distance() -> None:
    """A far false region costs more than a near one of the same size."""
    target = torch.zeros(1, 32, 32)
    target[:, 4:12, 4:12] = 1
    plain, bound = MaskLoss(), MaskLoss(boundary=1.0)
    costs = []
    for left in (13, 26):
        logits = torch.full((1, 1, 32, 32), -9.0)
        logits[:, :, 4:12, 4:12] = 9
        logits[:, :, 4:8, left : left + 4] = 9
        costs.append(bound(logits, target) - plain(logits, target))
    assert costs[1] > costs[0] + 0.005


def test_void_in_both_parts_of_stage_two() -> None:
    """Neither foreground nor background is asked for where a pixel is void."""
    torch.manual_seed(3)
    maps = [torch.randn(2, 1, 8, 8, requires_grad=True) for _ in range(4)]
    features = {name: torch.randn(2, 4, 3, 3) for name in ("early", "middle", "late")}
    target = torch.randint(0, 2, (2, 8, 8))
    target[:, 5:] = VOID
    terms = StageTwoObjective(weight=0.0).terms(TrainingOutput(*maps, features), target)
    for name, index in (("mask", 0), ("foreground", 1), ("background", 2)):
        (gradient,) = torch.autograd.grad(terms[name][0], maps[index], retain_graph=True)
        assert not gradient[:, :, 5:].any() and gradient[:, :, :5].any()


def test_validation_leaves_void_out() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, :2] = 1
    logits = torch.where(target[:, None] > 0, 9.0, -9.0)
    logits[0, 0, 3] = 9.0
    assert image_scores(logits, target)[0, 1] < 1
    target[0, 3] = VOID
    assert image_scores(logits, target)[0, 1] == 1
