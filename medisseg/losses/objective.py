"""The sums that the two stages minimise (Med-DisSeg, objective), on logits throughout.

What differs from the release, and why: the complementary term takes its softmax over logits, not
over sigmoids (which spans 0.289 to 0.333 and hardly supervises); the background target is the
complement of the mask; the area weights are detached, bounded and of the batch's mean, so that no
gradient flows through them, they do not depend on the batch's size, and an image predicted empty
does not weigh 1e15.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.losses.dispersive import DispersiveOptions, DispersiveTerm
from medisseg.losses.mask import VOID, MaskLoss, cross_entropy, indices
from medisseg.model.output import TrainingOutput

Parts = dict[str, Tensor]
Terms = dict[str, tuple[Tensor, float | Tensor]]  # name -> (value, its weight in the sum)


class StageOneObjective(nn.Module):
    """L_mask(view 1) + L_mask(view 2) + L_cons + weight * L_disp(view 1).

    View 2 is view 1 after strong photometric change; one mask is true of both.

    Args:
        weight: lambda_1 of the dispersive term; 0 leaves it out.
        dispersive: What is dispersed and how.
        consistency: Weight of the consistency term.
        mask: L_mask.

    Example:
        >>> objective = StageOneObjective()
        >>> total, parts = objective(model(view1), model(view2), mask)
    """

    def __init__(
        self,
        weight: float = 0.2,
        dispersive: DispersiveOptions | None = None,
        consistency: float = 1.0,
        mask: MaskLoss | None = None,
    ) -> None:
        super().__init__()
        self.mask = mask or MaskLoss()
        self.weight, self.consistency = weight, consistency
        self.disperse = DispersiveTerm(dispersive)

    def forward(
        self, view1: TrainingOutput, view2: TrainingOutput, target: Tensor
    ) -> tuple[Tensor, Parts]:
        """Return the total and its parts (detached, unweighted); target [N, H, W] indices."""
        return weighted_sum(self.terms(view1, view2, target))

    def terms(self, view1: TrainingOutput, view2: TrainingOutput, target: Tensor) -> Terms:
        """Return every term of the sum, by name, with its weight; target [N, H, W] indices."""
        terms: Terms = {
            "mask": (self.mask(view1.logits, target) + self.mask(view2.logits, target), 1.0),
            "consistency": (consistency_loss(view1.logits, view2.logits), self.consistency),
        }
        if self.weight:
            terms["dispersive"] = self.disperse(view1.features), self.weight
        return terms


class StageTwoObjective(nn.Module):
    """L_mask + b1 * L_fg + b2 * L_bg + L_compl + weight * L_disp.

    Args:
        weight: lambda_2 of the dispersive term; 0 leaves it out.
        dispersive: What is dispersed and how.
        max_area_weight: Bound of b1 and b2.
        mask: L_mask, of the foreground's and the background's map too.

    Example:
        >>> total, parts = StageTwoObjective()(model(image), mask)
    """

    def __init__(
        self,
        weight: float = 0.6,
        dispersive: DispersiveOptions | None = None,
        max_area_weight: float = 5.0,
        mask: MaskLoss | None = None,
    ) -> None:
        super().__init__()
        self.mask = mask or MaskLoss()
        self.region = self.mask.unweighted()
        self.weight, self.max_area_weight = weight, max_area_weight
        self.disperse = DispersiveTerm(dispersive)

    def forward(self, output: TrainingOutput, target: Tensor) -> tuple[Tensor, Parts]:
        """Return the total and its parts (detached, unweighted); target [N, H, W] indices."""
        return weighted_sum(self.terms(output, target))

    def terms(self, output: TrainingOutput, target: Tensor) -> Terms:
        """Return every term of the sum, by name, with its weight; target [N, H, W] indices."""
        terms: Terms = {"mask": (self.mask(output.logits, target), 1.0)}
        if output.others:
            further = [self.mask(logits, target) for logits in output.others]
            terms["deep_supervision"] = torch.stack(further).sum(), 1.0
        if not output.features:  # a baseline: nothing to decouple or to disperse
            return terms
        foreground, background, uncertainty = output[1:4]
        if foreground is None or background is None or uncertainty is None:
            raise ValueError("the output has no auxiliary maps; expected one of stage 2, training")
        bound, target = self.max_area_weight, indices(target).long()
        inside = torch.where(target == VOID, VOID, (target > 0).long())
        outside = torch.where(target == VOID, VOID, (target == 0).long())
        terms |= {
            "foreground": (self.region(foreground, inside), area_weight(foreground, bound)),
            "background": (self.region(background, outside), area_weight(background, bound)),
            "complementary": (complementary_loss(foreground, background, uncertainty), 1.0),
        }
        if self.weight:
            terms["dispersive"] = self.disperse(output.features), self.weight
        return terms


def weighted_sum(terms: Terms) -> tuple[Tensor, Parts]:
    """Return the sum of the weighted terms, and the unweighted terms, detached."""
    total = torch.stack([value * weight for value, weight in terms.values()]).sum()
    return total, {name: value.detach() for name, (value, _) in terms.items()}


def gradient_shares(terms: Terms, feature: Tensor) -> dict[str, float]:
    """Return each weighted term's share of the gradients' norms at ``feature``; they add up to 1.

    A term that should move the encoder and has a share of 0 is dead; one near 1 swamps the rest.

    Args:
        terms: Of one step, before its backward pass.
        feature: The encoder's deepest feature [N, C, h, w], which every term depends on.
    """
    norms = {}
    for name, (value, weight) in terms.items():
        term = value * weight
        found = torch.autograd.grad(term, feature, retain_graph=True, allow_unused=True)[0]
        norms[name] = 0.0 if found is None else float(found.float().norm())
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}


def consistency_loss(logits1: Tensor, logits2: Tensor) -> Tensor:
    """Each view's cross-entropy against the other's hard mask, summed; logits [N, K, H, W]."""
    return cross_entropy(logits1, hard_mask(logits2)) + cross_entropy(logits2, hard_mask(logits1))


def hard_mask(logits: Tensor) -> Tensor:
    """[N, K, H, W] -> class indices [N, H, W]: probability above 0.5, or the largest of K."""
    if logits.shape[1] == 1:
        return (logits.detach()[:, 0] > 0).long()
    return logits.detach().argmax(1)


def complementary_loss(foreground: Tensor, background: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean over pixels of the pairwise products of the three maps' softmax; logits [N, 1, H, W]."""
    maps = torch.cat([foreground, background, uncertainty], 1).float()
    fg, bg, uc = F.softmax(maps, 1).unbind(1)
    return (fg * bg + fg * uc + bg * uc).mean()


def area_weight(logits: Tensor, largest: float) -> Tensor:
    """1 / tanh(mean probability of the joint batch), at most ``largest``, without gradient.

    Logits [N, 1, H, W] of this process; the mean is over all of them.
    """
    mean = torch.sigmoid(logits.detach().float()).mean()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean = mean / torch.distributed.get_world_size()
    return (1 / torch.tanh(mean.clamp(min=1e-6))).clamp(max=largest)
