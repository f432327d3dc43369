"""What a network answers in training mode."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingOutput(NamedTuple):
    """What a network answers in training mode; all maps are logits [N, K or 1, H, W].

    Stage I has no auxiliary maps (None). ``features`` holds, by placement, what the dispersive
    loss may ask for: "early" (the encoder's deepest feature), "middle" (the bottleneck between
    encoder and decoder) and "late" (the decoder's finest feature). ``others`` holds further logits
    of the mask that deep supervision trains; networks of ours have none.
    """

    logits: Tensor
    foreground: Tensor | None
    background: Tensor | None
    uncertainty: Tensor | None
    features: dict[str, Tensor]
    others: tuple[Tensor, ...] = ()
