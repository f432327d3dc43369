"""Input convention, classes, batch and threshold of a network, for every backend alike."""

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
    """Input convention, classes, batch and threshold of a network, for every backend alike.

    Attributes:
        convention: How an image becomes the network's input; its ``size`` is the input's size.
        threshold: Probability above which a pixel is foreground (binary networks).
        classes: Number K of logit maps.
        max_batch: Largest batch that one run takes; longer batches are run in parts.
        uncertainty: Whether the network has an uncertainty map [N, 1, H, W] as second output.
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


def parse_size(text: str, name: str = "size") -> tuple[int, int]:
    """Read "256x320" as (height, width) in pixels; ``name`` is the option's, for the error.

    Raises:
        UserError: Not HxW.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match:
        raise UserError(f"{name} is {text!r}; expected HxW in pixels, for example 256x256")
    return int(match[1]), int(match[2])
