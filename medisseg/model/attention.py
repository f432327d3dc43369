"""The attention unit at the end of each decoder, by name: CBAT and its rivals."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from medisseg.model.blocks import CBAT

# name -> maker(channels, activation)
ATTENTIONS: dict[str, Callable[[int, str], nn.Module]] = {
    "none": lambda channels, act: nn.Identity(),
    "cbat": CBAT,
}
