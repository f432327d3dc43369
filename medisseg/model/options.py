"""What a network is built from: one dataclass, and the table of presets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from medisseg.errors import UserError
from medisseg.model.blocks import ACTIVATIONS
from medisseg.model.encoders import ENCODERS, STRIDES
from medisseg.schema import Json, build


@dataclass(frozen=True)
class NetworkOptions:
    """Options of both stages; the defaults are the paper's network.

    Attributes:
        encoder: "r50", "r18", "efficientnet-lite0", "-lite1" or "-lite2".
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
        levels: How many of the encoder's four features, the coarsest ones, are aggregated and
            decoded: 4 (published), 3 or 2.
        detail: Whether the output block adds the next finer feature to what it enlarges.
        shuffle: The logits' convolution answers this many times finer (pixel shuffle).
        elat_encoder: Whether ELAT also gates every feature of the encoder, in both stages, as the
            paper's text has it; the release gates Stage I's projections alone.
        decoder: "released" (a dense residual stack) or "paper" (Eq. 8: three steps
            F + CBT3x3(CBT1x1(F)) on the joined features).
        fusion: How the output block joins the decoders' maps: "concat" (released) or "sum" (Eq. 9).
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
    levels: int = 4
    detail: bool = False
    shuffle: int = 1
    elat_encoder: bool = False
    decoder: str = "released"
    fusion: str = "concat"

    def __post_init__(self) -> None:
        from medisseg.model.attention import ATTENTIONS, NOT_FOUND

        for name in ("dilations", "aux_widths"):  # JSON and YAML give lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, known in (
            ("encoder", ENCODERS),
            ("stride_in", ("conv1", "conv2")),
            ("activation", ACTIVATIONS[:2]),
            ("attention", tuple(ATTENTIONS)),
            ("decoder", ("released", "paper")),
            ("fusion", ("concat", "sum")),
        ):
            if getattr(self, name) not in known:
                note = f" ({NOT_FOUND})" if name == "attention" else ""
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}{note}"
                )
        for name in ("width", "heads", "decouple_width", "head_width", "dilations", "aux_widths"):
            sizes = getattr(self, name)
            if min(sizes if isinstance(sizes, tuple) else [sizes], default=0) < 1:
                raise UserError(f"{name} is {sizes}; expected at least 1")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is no multiple of heads {self.heads}")
        self._check_levels()

    def _check_levels(self) -> None:
        if self.levels not in (2, 3, 4):
            raise UserError(f"levels is {self.levels}; expected 2, 3 or 4")
        if self.detail and self.levels == 4:
            raise UserError("detail needs levels below 4: a finer feature to add; got levels=4")
        # Logits are made at half the finest decoded stride; no answer may be finer than the input.
        finest = STRIDES[self.encoder][-self.levels]
        known = [s for s in (1, 2, 4, 8) if 2 * s <= finest]
        if self.shuffle not in known:
            said = ", ".join(map(str, known))
            raise UserError(f"shuffle is {self.shuffle}; expected one of {said}")

    def to_dict(self) -> Json:
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
    "edge-lite": NetworkOptions(
        encoder="efficientnet-lite0",
        width=32,
        heads=2,
        dilations=(2, 4, 6),
        decouple_width=96,
        aux_widths=(48, 48, 32, 32),
        head_width=32,
        separable=True,
        head_at_input=False,
        levels=3,
        detail=True,
        shuffle=4,
    ),
}


def make_options(preset: str, changes: Json, others: Iterable[str] = ()) -> NetworkOptions:
    """Return a preset with some options changed.

    ``cbat=False`` is short for ``attention="none"``; ``others`` are names beside the presets, for
    the message.

    Raises:
        UserError: The preset, an option or a value is unknown; the nearest known one is named.
    """
    if preset not in PRESETS:
        raise UserError(f"no network is called {preset!r}{nearest(preset, [*PRESETS, *others])}")
    changes = dict(changes)
    if (cbat := changes.pop("cbat", None)) is not None:
        wanted = "cbat" if cbat else "none"
        if changes.setdefault("attention", wanted) != wanted:
            raise UserError(f"cbat={cbat} contradicts attention={changes['attention']!r}")
    return build(NetworkOptions, {**asdict(PRESETS[preset]), **changes}, "network options")


def nearest(word: str, known: list[str]) -> str:
    """Return "; did you mean ...?" or the list of known words, to end an error's sentence."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
