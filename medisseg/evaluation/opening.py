"""The predictor that a command's checkpoints, bundles and views name, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence

import medisseg.predictor
from medisseg.evaluation.names import labels
from medisseg.predictor import Predictor


def open_predictor(
    checkpoints: Sequence[str],
    device: str = "auto",
    threshold: float | None = None,
    precision: str = "fp32",
    views: str = "none",
    picture: str = "full",
) -> Predictor:
    """Return the predictor of one checkpoint, or of several and several views together."""
    open_one = medisseg.predictor.Predictor
    members = [
        open_one(checkpoint, device, threshold, precision, picture) for checkpoint in checkpoints
    ]
    if len(members) == 1 and views == "none":
        return members[0]
    from medisseg.evaluation.combined import CombinedPredictor

    return CombinedPredictor(members, views, threshold)


def combined_label(checkpoints: Sequence[str], views: str = "none") -> str:
    """Return what tables call it: ``a + b, flips``."""
    joined = " + ".join(labels(checkpoints))
    return joined if views == "none" else f"{joined}, {views}"
