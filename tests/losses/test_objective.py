"""The objectives by value, and the traps of the published ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medisseg.losses.mask import cross_entropy, dice_loss, mask_loss
from medisseg.losses.objective import (
    StageOneObjective,
    StageTwoObjective,
    area_weight,
    complementary_loss,
    consistency_loss,
    gradient_shares,
    hard_mask,
    weighted_sum,
)
from medisseg.model.create import create_model
from medisseg.model.output import TrainingOutput


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(8)


def output(classes: int = 1, side: int = 8, stage: int = 2) -> TrainingOutput:
    maps = [torch.randn(2, k, side, side, requires_grad=True) for k in (classes, 1, 1, 1)]
    features = {name: torch.randn(2, 4, 3, 3) for name in ("early", "middle", "late")}
    if stage == 1:
        return TrainingOutput(maps[0], None, None, None, features)
    return TrainingOutput(*maps, features)


def test_binary_terms_are_their_formulas() -> None:
    logits, target = torch.randn(3, 1, 5, 7), torch.rand(3, 5, 7) > 0.6
    p, t = torch.sigmoid(logits[:, 0]), target.float()
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    torch.testing.assert_close(cross_entropy(logits, target), entropy)
    dice = [(2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)]
    torch.testing.assert_close(dice_loss(logits, target), 1 - torch.stack(dice).mean())
    torch.testing.assert_close(mask_loss(logits, target[:, None]), entropy + 1 - sum(dice) / 3)


def test_multi_class_terms_leave_the_background_out_of_dice() -> None:
    logits, target = torch.randn(2, 3, 6, 4), torch.randint(0, 3, (2, 6, 4))
    p = logits.softmax(1)
    entropy = -p.log().gather(1, target[:, None]).mean()
    torch.testing.assert_close(cross_entropy(logits, target), entropy)
    dice = [
        (2 * (p[n, k] * (target[n] == k)).sum() + 1) / (p[n, k].sum() + (target[n] == k).sum() + 1)
        for n in range(2)
        for k in (1, 2)
    ]
    torch.testing.assert_close(dice_loss(logits, target), 1 - torch.stack(dice).mean())


def test_dice_is_finite_and_right_on_empty_masks() -> None:
    empty = torch.zeros(1, 4, 4)
    assert dice_loss(torch.full((1, 1, 4, 4), -50.0), empty) < 1e-6
    logits = torch.full((1, 1, 4, 4), 50.0, requires_grad=True)
    loss = mask_loss(logits, empty)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and loss > 50


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(1, 1, 300, 300)
    full, half = (mask_loss(logits.to(d), torch.ones(1, 300, 300)) for d in (None, torch.float16))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-3, atol=1e-3)


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        mask_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))


def test_complementary_term_takes_its_softmax_over_logits() -> None:
    # Certain maps cost nothing, maps in doubt a third; over sigmoids it spans 0.289 to 0.333.
    far, low = torch.full((1, 1, 2, 2), 30.0), torch.full((1, 1, 2, 2), -30.0)
    assert complementary_loss(far, low, low) < 1e-6
    torch.testing.assert_close(complementary_loss(low, low, low), torch.tensor(1 / 3))
    maps = [torch.sigmoid(m) for m in (far, low, low)]
    assert complementary_loss(*maps) > 0.288


def test_area_weight_is_of_the_mean_detached_and_bounded() -> None:
    logits = torch.randn(4, 1, 6, 6, requires_grad=True)
    weight = area_weight(logits, 5.0)
    assert not weight.requires_grad
    mean = torch.sigmoid(logits).mean().item()
    assert weight.item() == pytest.approx(1 / math.tanh(mean), rel=1e-5)
    assert area_weight(torch.cat([logits, logits]), 5.0) == pytest.approx(weight.item(), rel=1e-5)
    assert area_weight(torch.full((2, 1, 4, 4), -40.0), 5.0) == 5.0


def test_consistency_is_each_view_against_the_others_hard_mask() -> None:
    a, b = (torch.randn(2, 1, 5, 5, requires_grad=True) for _ in range(2))
    hard = [(torch.sigmoid(v) > 0.5).float() for v in (a, b)]
    expected = F.binary_cross_entropy(torch.sigmoid(a), hard[1]) + F.binary_cross_entropy(
        torch.sigmoid(b), hard[0]
    )
    torch.testing.assert_close(consistency_loss(a, b), expected)
    assert torch.equal(hard_mask(torch.randn(2, 3, 4, 4)).unique(), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("classes", [1, 4])
def test_stage_two_is_the_sum_it_says(classes: int) -> None:
    out, target = output(classes), torch.randint(0, max(classes, 2), (2, 8, 8))
    total, parts = StageTwoObjective(0.6)(out, target)
    weights = [area_weight(m, 5.0) for m in (out.foreground, out.background)]
    torch.testing.assert_close(parts["foreground"], mask_loss(out.foreground, target > 0).detach())
    torch.testing.assert_close(parts["background"], mask_loss(out.background, target == 0).detach())
    expected = (
        parts["mask"]
        + weights[0] * parts["foreground"]
        + weights[1] * parts["background"]
        + parts["complementary"]
        + 0.6 * parts["dispersive"]
    )
    torch.testing.assert_close(total.detach(), expected)
    total.backward()
    assert all(m.grad.abs().max() > 0 for m in out[:4])
    assert not any(value.requires_grad for value in parts.values())
    assert "dispersive" not in StageTwoObjective(0.0)(out, target)[1]


def test_stage_one_is_the_sum_it_says() -> None:
    one, two, target = output(stage=1), output(stage=1), torch.randint(0, 2, (2, 8, 8))
    total, parts = StageOneObjective(0.2, consistency=0.5)(one, two, target)
    masks = mask_loss(one.logits, target) + mask_loss(two.logits, target)
    expected = masks + 0.5 * parts["consistency"] + 0.2 * parts["dispersive"]
    torch.testing.assert_close(total, expected)
    with pytest.raises(ValueError, match="stage 2"):
        StageTwoObjective()(one, target)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_few_steps_bring_the_loss_of_a_batch_down(stage: int) -> None:
    model = create_model("edge", stage=stage, encoder_weights="imagenet").train()
    x = torch.randn(2, 3, 64, 64)
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, 16:48, 20:44] = 1
    x += 2 * target[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    masks: list[Tensor] = []
    for _ in range(12):
        if stage == 1:
            total, parts = StageOneObjective()(model(x), model(x), target)
        else:
            total, parts = StageTwoObjective()(model(x), target)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        masks.append(parts["mask"])
    assert masks[-1] < 0.9 * masks[0]


def test_shares_of_the_gradient_are_of_the_weighted_terms() -> None:
    feature = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
    terms = {
        "mask": (feature.sum() * 3, 1.0),  # gradient 3 everywhere
        "dispersive": (feature.sum(), torch.tensor(1.0)),
        "other": (torch.ones((), requires_grad=True) * 2, 5.0),  # not of the feature
    }
    shares = gradient_shares(terms, feature)
    assert shares == pytest.approx({"mask": 0.75, "dispersive": 0.25, "other": 0.0})
    total, parts = weighted_sum(terms)
    assert total.item() == pytest.approx(21 + 7 + 10)
    assert {name: value.item() for name, value in parts.items()} == {
        "mask": 21, "dispersive": 7, "other": 2,
    }  # fmt: skip
    total.backward()  # the terms' graph is still there
    assert feature.grad.tolist() == [[[[4.0, 4.0]]]]
