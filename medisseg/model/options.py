"""What a network is built from: one dataclass, and the table of presets."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from medisseg.errors import UserError
from medisseg.model.blocks import ACTIVATIONS
from medisseg.model.encoders import ENCODERS


@dataclass(frozen=True)
class NetworkOptions:
    """Options of both stages; the defaults are the paper's network.

    Attributes:
        encoder: "r50", "r18" or "efficientnet-lite0".
        stride_in: Which convolution of an r50 bottleneck strides, "conv2" or "conv1".
        activation: "telu" or "relu", in every CBT, ELAT and attention unit (the ResNet, the
            channel gates and the residual sums keep their ReLU, as published).
        elat: Whether the Stage I head gates its projections with ELAT.
        attention: The unit that ends each decoder: "cbat" or one of its rivals, or "none".
        width: Channels of every decoder map.
        heads: Attention heads of CDFA.
        dilations: Of the 3x3 branches of the multi-receptive-field blocks.
        decouple_width: Hidden channels of the semantic decoupling.
        aux_widths: Channels of the auxiliary head's blocks; upsampling x2 between them.
        head_width: Channels of the Stage I projections and of the last block before the logits.
        separable: Whether 3x3 CBTs are depthwise-separable (the decoupling's stay full).
        head_at_input: Whether the Stage I head joins its maps at the input's size (published) or
            at the finest feature's.
    """

    encoder: str = "r50"
    stride_in: str = "conv2"
    activation: str = "telu"
    elat: bool = True
    attention: str = "cbat"
    width: int = 128
    heads: int = 4
    dilations: tuple[int, ...] = (6, 12, 18)
    decouple_width: int = 512
    aux_widths: tuple[int, ...] = (256, 256, 128, 64, 64)
    head_width: int = 64
    separable: bool = False
    head_at_input: bool = True

    def __post_init__(self) -> None:
        from medisseg.model.attention import ATTENTIONS

        for name in ("dilations", "aux_widths"):  # JSON and YAML give lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, known in (
            ("encoder", ENCODERS),
            ("stride_in", ("conv1", "conv2")),
            ("activation", ACTIVATIONS[:2]),
            ("attention", tuple(ATTENTIONS)),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}"
                )
        if self.width % self.heads:
            raise UserError(f"width {self.width} is no multiple of heads {self.heads}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


PRESETS: dict[str, NetworkOptions] = {
    "medisseg-r50": NetworkOptions(),
    "condseg-r50": NetworkOptions(activation="relu", elat=False, attention="none"),
    "medisseg-r18": NetworkOptions(encoder="r18"),
    "edge": NetworkOptions(
        encoder="efficientnet-lite0",
        width=32,
        heads=2,
        dilations=(2, 4, 6),
        decouple_width=96,
        aux_widths=(48, 48, 32, 32),
        head_width=32,
        head_at_input=False,
    ),
}


def make_options(preset: str, changes: dict[str, Any]) -> NetworkOptions:
    """Return a preset with some options changed.

    ``cbat=False`` is short for ``attention="none"``.

    Raises:
        UserError: The preset, an option or a value is unknown; the nearest known one is named.
    """
    if preset not in PRESETS:
        raise UserError(f"no network is called {preset!r}{nearest(preset, list(PRESETS))}")
    changes = dict(changes)
    if (cbat := changes.pop("cbat", None)) is not None:
        wanted = "cbat" if cbat else "none"
        if changes.setdefault("attention", wanted) != wanted:
            raise UserError(f"cbat={cbat} contradicts attention={changes['attention']!r}")
    known = [field.name for field in fields(NetworkOptions)]
    for name in changes:
        if name not in known:
            raise UserError(f"no network option is called {name!r}{nearest(name, known)}")
    return replace(PRESETS[preset], **changes)


def nearest(word: str, known: list[str]) -> str:
    """Return "; did you mean ...?" or the list of known words, to end an error's sentence."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
