"""What a network is, whichever backend runs it: shared by bundles, builds and engines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.labels import Label

# "auto" tries these from the left when it builds or when it opens an ONNX graph.
BACKENDS = ("tensorrt", "tensorrt-rtx", "torch-tensorrt", "openvino", "onnx", "pytorch")
PRECISIONS = ("fp16", "bf16", "fp32", "int8")


@dataclass(frozen=True)
class ModelInfo:
    """What a network is, whichever backend runs it.

    Attributes:
        convention: How an image becomes the network's input; its ``size`` is the input's size.
        threshold: Probability above which a pixel is foreground (binary networks).
        classes: Number K of logit maps.
        max_batch: Largest batch that one run takes; longer batches are run in parts.
        uncertainty: Whether the network also answers an uncertainty map.
        frame_size: (height, width) of the uint8 frames that a graph with preprocessing inside
            takes; None for the usual graph, which takes preprocessed float32 images.
        frame_color: Channel order of those frames.
        labels: Names and colours of the classes but the background.
    """

    convention: InputConvention
    threshold: float = 0.5
    classes: int = 1
    max_batch: int = 1
    uncertainty: bool = False
    frame_size: tuple[int, int] | None = None
    frame_color: str = "RGB"
    labels: tuple[Label, ...] = ()


def parse_size(text: str) -> tuple[int, int]:
    """Read "256x320" as (height, width).

    Raises:
        UserError: Not HxW.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match:
        raise UserError(f"size is {text!r}; expected HxW in pixels, for example 256x256")
    return int(match[1]), int(match[2])
