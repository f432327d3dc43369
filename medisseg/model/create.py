"""A network by its name: the presets of ours and the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from medisseg.checkpoint import new_checkpoint
from medisseg.errors import UserError
from medisseg.model.baselines import BASELINES, create_baseline
from medisseg.model.foreign import create_foreign, is_foreign
from medisseg.model.network import Network, StageOne, StageTwo
from medisseg.model.options import make_options
from medisseg.model.pretrained import load_encoder_weights, stride_rule


def create_model(
    architecture: str,
    stage: int = 2,
    classes: int = 1,
    encoder_weights: str | Path | None = None,
    **options: Any,
) -> Network:
    """Build a network by its preset's name.

    Args:
        architecture: "medisseg-r50", "condseg-r50", "medisseg-r18", "edge" or "edge-lite"; or a
            baseline (one stage, the option ``width`` alone): "unet", "unetpp", "attention-unet",
            "dynunet" or "unet-r50"; or any class, see :mod:`medisseg.model.foreign`.
        stage: 1 (encoder and light head) or 2 (the full network).
        classes: Number of logit maps: 1 for binary masks, else one a class, background included.
        encoder_weights: "imagenet" (packaged, or torchvision's file in the hub's cache), the path
            of a weights file, or None.
        **options: Fields of :class:`~medisseg.model.options.NetworkOptions`, or ``cbat=False``.

    Returns:
        The network, with ``model.info`` describing it (no metrics yet).

    Raises:
        UserError: A name or a value is unknown, or the weights do not fit.

    Example:
        >>> model = create_model("edge", encoder_weights="imagenet", attention="se").eval()
    """
    if stage not in (1, 2):
        raise UserError(f"stage is {stage!r}; expected 1 or 2")
    if classes < 1:
        raise UserError(f"classes is {classes}; expected 1 for binary masks, or more")
    if is_foreign(architecture):
        foreign = create_foreign(architecture, stage, classes, encoder_weights, **options)
        return cast(Network, foreign)
    if architecture in BASELINES:
        baseline = create_baseline(architecture, stage, classes, encoder_weights, **options)
        return cast(Network, baseline)
    if encoder_weights is not None:
        options.setdefault("stride_in", stride_rule(encoder_weights))
    settings = make_options(architecture, options, others=BASELINES)
    model = (StageOne if stage == 1 else StageTwo)(settings, classes)
    if encoder_weights is not None:
        load_encoder_weights(model.encoder, settings.encoder, encoder_weights)
    model.info = new_checkpoint(architecture, stage, classes, settings.to_dict())
    return model
