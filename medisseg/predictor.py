"""Segment images with a checkpoint or a bundle: model, transforms and predictor are three objects.

The model answers preprocessed batches with logits, the transforms are the checkpoint's
:class:`~medisseg.convention.InputConvention`, and the predictor joins the two: an image of any size
in, a mask of that size out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from medisseg.checkpoint import is_bundle, is_served
from medisseg.convention import InputConvention
from medisseg.device import pick_device
from medisseg.errors import UserError
from medisseg.labels import Label
from medisseg.picture import AUTO, FULL, Picture, parse_picture
from medisseg.picture_search import picture_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Logits = npt.NDArray[np.float32]
ENGINES = "medisseg.engines"
OUTSIDE = 20.0  # logit: what lies outside the picture is background, for certain


class Engine(Protocol):
    """What answers for a predictor: a network here, or an engine of the package export."""

    @property
    def convention(self) -> InputConvention: ...
    @property
    def threshold(self) -> float: ...
    @property
    def classes(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> tuple[Label, ...]: ...

    def infer(self, batch: Logits) -> Logits:
        """Return logits float32 [N, K, h, w] of preprocessed images float32 [N, 3, h, w]."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image.

    Attributes:
        logits: float32 [K, H, W]; one map of the foreground, or one map a class with the
            background first.
        threshold: Probability above which a pixel is foreground; K = 1 only.
        picture: The part of the image that was segmented; None: all of it.
    """

    logits: Logits
    threshold: float = 0.5
    picture: Picture | None = None

    @cached_property
    def mask(self) -> npt.NDArray[np.uint8]:
        """Class indices [H, W]: 0 and 1 for K = 1, else the most probable class."""
        if len(self.logits) == 1:
            # The threshold acts on logits: no sigmoid, no rounding near 0 and 1.
            chosen = self.logits[0] > logit(self.threshold)
        else:
            chosen = self.logits.argmax(0)
        mask: npt.NDArray[np.uint8] = chosen.astype(np.uint8)
        return mask

    @cached_property
    def probability(self) -> npt.NDArray[np.float32]:
        """Foreground probability [H, W] for K = 1, else probabilities [K, H, W]; in [0, 1]."""
        if len(self.logits) == 1:
            values = 0.5 * (1 + np.tanh(0.5 * self.logits[0]))
        else:
            powers = np.exp(self.logits - self.logits.max(0))
            values = powers / powers.sum(0)
        single: npt.NDArray[np.float32] = values.astype(np.float32)
        return single

    @property
    def foreground(self) -> npt.NDArray[np.float32]:
        """Probability [H, W] of anything but background, in [0, 1]."""
        return self.probability if len(self.logits) == 1 else 1 - self.probability[0]


class Predictor:
    """A network with its transforms, ready for images.

    Args:
        source: Checkpoint (path or name such as "edge-polyp"), bundle (a folder or ``.mdsg``
            file that ``medisseg build`` wrote), address of a model on a Triton server
            ("grpc://HOST:8001/NAME"), or a network with ``info``.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        threshold: Probability above which a pixel is foreground; None: the checkpoint's own.
        precision: "fp32", "fp16" or "bf16"; a bundle has its own.
        picture: Which part of an image is segmented: "auto" finds the endoscopic picture on a
            processor's screen (already cropped images stay whole), "full", "x,y,w,h" in pixels, or
            a :class:`~medisseg.picture.Picture`.

    Raises:
        UserError: No such checkpoint, a damaged one, or a device that is not there.

    Example:
        >>> predictor = Predictor("edge-polyp")
        >>> prediction = predictor(image)
        >>> prediction.mask.shape == image.shape[:2]
        True
    """

    picture: str | Picture = FULL

    def __init__(
        self,
        source: str | Path | nn.Module,
        device: str = "auto",
        threshold: float | None = None,
        precision: str = "fp32",
        picture: str | Picture = AUTO,
    ) -> None:
        self.picture = parse_picture(picture) if isinstance(picture, str) else picture
        self.engine = _open(source, device, precision)
        self.convention: InputConvention = self.engine.convention
        self.classes: int = self.engine.classes
        self.labels: tuple[Label, ...] = self.engine.labels
        self.name: str = self.engine.name
        self.threshold = self.engine.threshold if threshold is None else threshold
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold is {self.threshold}; expected a probability within (0, 1)")

    def __call__(self, image: npt.NDArray[np.uint8]) -> Prediction:
        """Segment one image, uint8 RGB [H, W, 3]; the prediction has the image's size."""
        picture = self.find_picture(image)
        logits = self.logits([picture.crop(image)])[0]
        return self.restore(logits, image.shape[:2], picture)

    def find_picture(self, image: npt.NDArray[np.uint8]) -> Picture:
        """Return the part of an image, uint8 RGB [H, W, 3], that is to be segmented.

        Raises:
            UserError: The rectangle that was asked for does not lie inside the image.
        """
        return picture_of(image, self.picture)

    def logits(self, images: Sequence[npt.NDArray[np.uint8]]) -> Logits:
        """Return logits [N, K, h, w] at the network's resolution of images uint8 RGB [H, W, 3]."""
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"image is {image.dtype} {list(image.shape)}; expected uint8 RGB [H, W, 3]"
                )
        batch = np.stack([self.convention.preprocess(image) for image in images])
        logits = self.engine.infer(batch)
        check_finite(logits, self.name)
        return logits

    def restore(
        self, logits: Logits, frame_size: tuple[int, ...], picture: Picture | None = None
    ) -> Prediction:
        """Bring logits [K, h, w] of a picture to the size (height, width) of its image."""
        place = picture or Picture.whole(frame_size)
        inside = self.convention.restore(logits, place.size)
        outside = np.full((len(logits), 1, 1), -OUTSIDE, np.float32)
        outside[0] *= 1 if len(logits) == 1 else -1  # of several classes the first is background
        whole = place.place(inside, (frame_size[0], frame_size[1]), outside)
        return Prediction(whole, self.threshold, place)


def check_finite(logits: Logits, name: str) -> None:
    """Refuse an answer that is no number.

    Raises:
        UserError: NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            f"{name} answered NaN or infinity; its weights are damaged, or its precision "
            "is too low: try --precision fp32"
        )


@dataclass(frozen=True)
class TorchNetwork:
    """A PyTorch network behind the interface of an engine."""

    run: Callable[[Tensor], Tensor]
    convention: InputConvention
    threshold: float
    classes: int
    name: str
    device: str
    precision: str
    labels: tuple[Label, ...] = ()

    def infer(self, batch: npt.NDArray[np.float32]) -> Logits:
        """Return logits float32 [N, K, h, w] of preprocessed images float32 [N, 3, h, w]."""
        import torch

        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        images = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with (
            torch.inference_mode(),
            torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None),
        ):
            logits: Logits = self.run(images).float().cpu().numpy()
        return logits


def logit(probability: float) -> float:
    """Return log(p / (1 - p))."""
    return math.log(probability / (1 - probability))


def _open(source: str | Path | nn.Module, device: str, precision: str) -> Engine:
    if is_bundle(source) or is_served(source):
        return _bundle_loader()(source, device=device)
    if precision not in ("fp32", "fp16", "bf16"):
        raise UserError(f"precision is {precision!r}; expected fp32, fp16 or bf16")
    import torch

    from medisseg.model.inference import for_inference
    from medisseg.model.loading import load_checkpoint

    place = pick_device(device)
    if isinstance(source, str | Path):
        model: Any = load_checkpoint(source, device=place)
    else:
        model = source.to(place).eval()
    network: Any = for_inference(model, portable=place == "cpu")
    network = network.to(place, memory_format=torch.channels_last)
    info = model.info
    name = f"{info.architecture} in PyTorch {precision} on {place}"
    return TorchNetwork(
        network, info.convention, info.threshold, info.classes, name, place, precision, info.labels
    )


def _bundle_loader() -> Callable[..., Engine]:
    """Find who opens bundles; this package does not import upwards."""
    found = [point for point in metadata.entry_points(group=ENGINES) if point.name == "bundle"]
    if not found:
        raise UserError(
            "bundles are opened by the installed package, and it is not installed; "
            "run: pip install -e . (a checkpoint works without)"
        )
    loader: Callable[..., Engine] = found[0].load()
    return loader
