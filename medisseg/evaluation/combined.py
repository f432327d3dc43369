"""Several networks, or several views of an image, as one predictor: their mean probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medisseg.errors import UserError
from medisseg.predictor import Logits, Predictor, check_finite

# Axes of a batch [N, C, h, w] that are turned round, and back in the answer.
AS_IT_IS: tuple[tuple[int, ...], ...] = ((),)
FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
VIEWS = {"none": AS_IT_IS, "flips": FLIPS}
LEAST = 1e-7  # probability, so that its logit is finite


class CombinedPredictor(Predictor):
    """The mean of the probabilities of several predictors over several views.

    Args:
        members: Of one number of classes and one input size; each sees an image through its own
            convention.
        views: Of :data:`VIEWS`: "none", or "flips" (as it is, mirrored, upside down, and both).
        threshold: Probability above which a pixel is foreground; None: the members' mean.

    Raises:
        UserError: The members do not go together.
    """

    def __init__(
        self, members: Sequence[Predictor], views: str = "none", threshold: float | None = None
    ) -> None:
        first = members[0]
        for other in members[1:]:
            same = other.classes == first.classes
            sizes = [(m.convention.size, m.convention.resize) for m in (first, other)]
            if not same or sizes[0] != sizes[1]:
                raise UserError(
                    f"{first.name} and {other.name} cannot be averaged: {first.classes} and "
                    f"{other.classes} classes, inputs {sizes[0]} and {sizes[1]}; expected the same"
                )
        self.members, self.views = tuple(members), VIEWS[views]
        self.engine, self.convention = first.engine, first.convention
        self.classes, self.labels, self.picture = first.classes, first.labels, first.picture
        count = f"{len(members)} networks" if len(members) > 1 else first.name
        self.name = count if views == "none" else f"{count}, mean of {len(self.views)} {views}"
        own = float(np.mean([member.threshold for member in members]))
        self.threshold = own if threshold is None else threshold

    def logits(self, images: Sequence[npt.NDArray[np.uint8]]) -> Logits:
        """Return the logits [N, K, h, w] of the mean probability."""
        total: npt.NDArray[np.float64] | None = None
        for member in self.members:
            batch = np.stack([member.convention.preprocess(image) for image in images])
            for axes in self.views:
                answer = member.engine.infer(np.ascontiguousarray(np.flip(batch, axes)))
                check_finite(answer, member.name)
                part = probabilities(np.flip(answer, axes))
                total = part if total is None else total + part
        assert total is not None
        mean = np.clip(total / (len(self.members) * len(self.views)), LEAST, 1 - LEAST)
        odds = np.log(mean) - np.log1p(-mean) if self.classes == 1 else np.log(mean)
        return odds.astype(np.float32)


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return probabilities [N, K, h, w] of logits: sigmoid for K = 1, else softmax over K."""
    values = logits.astype(np.float64)
    if values.shape[1] == 1:
        return 0.5 * (1 + np.tanh(0.5 * values))
    powers = np.exp(values - values.max(1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return shares
