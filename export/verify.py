"""Verification of an engine: its answers against the PyTorch network's, on real frames.

Everything is preprocessed through the checkpoint's ``InputConvention``; masks come from logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from export.samples import ReferenceFrame
from medisseg.convention import InputConvention
from medisseg.errors import UserError

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
# A uint8 RGB image [H, W, 3] to logits [1, K, h, w], and the mask [H, W] where the graph gives one.
Answer = Callable[[Image], tuple[Array, Image | None]]
Item = TypeVar("Item")
Batch = TypeVar("Batch", Array, Image)  # preprocessed images, or frames


class Progress(Protocol):
    """A function that shows a progress bar for an iteration."""

    def __call__(self, items: Iterable[Item], text: str, /) -> Iterable[Item]:
        """Return the items, with a bar."""


# Mean Dice between the masks may fall short of 1 by this much; the 99.9th percentile of the
# probability difference may be P999 times as large, in int8 twice that up to P999_INT8:
# edge-kvasir's masks agree to 0.9935 in OpenVINO where that percentile is 0.162. bfloat16 has 8
# bits of mantissa.
TOLERANCES = {"fp32": 0.002, "fp16": 0.002, "bf16": 0.01, "int8": 0.01}
P999, P999_INT8 = 10.0, 0.2


class Diverged(UserError):
    """The engine's answers differ from the network's by more than the tolerance."""


@dataclass(frozen=True)
class Verification:
    """How far an engine's answers are from the network's.

    Attributes:
        max_abs: Largest difference of probability over all pixels.
        p999_abs: 99.9th percentile of that difference.
        dice_agreement: Mean Dice between the engine's and the network's mask.
        pixel_agreement: Share of pixels with the same class.
        images: Number of images.
        source: Where the images come from.
        by: What answered: the engine's name, or the emulation of its precision.
        dice_network: Mean Dice of the network against the truth; None without masks.
        dice_change: Engine's minus network's Dice against the truth.
        dice_own_size: The network's Dice against the truth at the size it was trained at, where the
            engine has another; None otherwise.
    """

    max_abs: float
    p999_abs: float
    dice_agreement: float
    pixel_agreement: float
    images: int
    source: str
    by: str
    dice_network: float | None = None
    dice_change: float | None = None
    dice_own_size: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    def failures(self, tolerance: float, precision: str = "fp32") -> list[str]:
        """Return what is beyond ``tolerance``, in words; empty when all is well."""
        found = []
        most = P999 * tolerance
        if precision == "int8":
            most = max(most, min(2 * most, P999_INT8))
        if not self.dice_agreement >= 1 - tolerance:
            found.append(f"Dice between the masks {self.dice_agreement:.4f} < {1 - tolerance:.4f}")
        if not self.p999_abs <= most:
            found.append(f"p99.9 of probability off by {self.p999_abs:.4f} > {most:.4f}")
        if self.dice_change is not None and not self.dice_change >= -tolerance:
            found.append(f"Dice against truth falls by {-self.dice_change:.4f} > {tolerance:.4f}")
        return found


def probabilities(logits: Array) -> Array:
    """Turn logits [N, K, H, W] into probabilities: sigmoid for one class, softmax for more."""
    values = logits.astype(np.float64)
    if logits.shape[1] == 1:
        values = 1 / (1 + np.exp(-np.clip(values, -60, 60)))
    else:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    single: Array = values.astype(np.float32)
    return single


def masks_of(probability: Array, threshold: float) -> Image:
    """Return class masks uint8 [N, H, W] of probabilities [N, K, H, W].

    One class: 1 above ``threshold``; more: the index of the largest.
    """
    binary = probability.shape[1] == 1
    chosen = probability[:, 0] > threshold if binary else probability.argmax(axis=1)
    masks: Image = chosen.astype(np.uint8)
    return masks


def compare(
    network: Answer,
    engine: Answer,
    frames: Sequence[ReferenceFrame],
    convention: InputConvention,
    threshold: float,
    *,
    source: str,
    by: str,
    progress: Progress = lambda items, _: items,
) -> Verification:
    """Run both on every frame and compare probabilities and masks, image by image.

    Args:
        network, engine: From an image uint8 RGB [H, W, 3] to logits float32 [1, K, h, w] and, where
            the graph thresholds itself, the mask uint8 [H, W], else None.
        frames: Images, with reference masks where there are any.
        convention: How logits are brought back to the size of an image.
        threshold: Probability in (0, 1) above which a pixel is foreground.
        source: Where the images come from, for the record.
        by: Name of the engine, for the record and for errors.
        progress: Shows a bar.

    Raises:
        UserError: The engine's answer has another shape or is not finite.
    """
    differences, agreement, pixels = [], [], []
    truths: list[tuple[float, float]] = []
    for frame in progress(frames, "verifying"):
        (wanted, _), (given, drawn) = network(frame.image), engine(frame.image)
        if wanted.shape != given.shape or not np.isfinite(given).all():
            raise UserError(
                f"{by} answers {list(given.shape)} for {frame.name}, the network "
                f"{list(wanted.shape)}, or not finite; build with --precision fp32"
            )
        both = probabilities(wanted), probabilities(given)
        differences.append(np.abs(both[0] - both[1]).ravel())
        size = (frame.image.shape[0], frame.image.shape[1])
        whole = [_at(convention, logits, size, threshold) for logits in (wanted, given)]
        if drawn is None:
            masks = [masks_of(maps, threshold)[0] for maps in both]
        else:
            masks = whole = [whole[0], drawn]
        agreement.append(_dice(masks[0], masks[1]))
        pixels.append(float((masks[0] == masks[1]).mean()))
        if frame.mask is not None:
            truths.append((_dice(whole[0], frame.mask), _dice(whole[1], frame.mask)))
    every = np.concatenate(differences)
    against = np.mean(truths, axis=0) if truths else None
    return Verification(
        max_abs=float(every.max()),
        p999_abs=float(np.quantile(every, 0.999)),
        dice_agreement=float(np.mean(agreement)),
        pixel_agreement=float(np.mean(pixels)),
        images=len(frames),
        source=source,
        by=by,
        dice_network=None if against is None else float(against[0]),
        dice_change=None if against is None else float(against[1] - against[0]),
    )


def dice_against_truth(
    answer: Answer, frames: Sequence[ReferenceFrame], convention: InputConvention, threshold: float
) -> float | None:
    """Return the mean Dice against the reference masks at the images' size; None without masks."""
    scores = [
        _dice(_at(convention, answer(x.image)[0], x.image.shape[:2], threshold), x.mask)
        for x in frames
        if x.mask is not None
    ]
    return float(np.mean(scores)) if scores else None


def _at(
    convention: InputConvention, logits: Array, size: tuple[int, int], threshold: float
) -> Image:
    """Return the mask uint8 [H, W] at an image's ``size`` of logits [1, K, h, w]."""
    mask: Image = masks_of(probabilities(convention.restore(logits[0], size)[None]), threshold)[0]
    return mask


def _dice(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    """Return the Dice of two class masks, averaged over the classes that occur in either."""
    from medisseg.evaluation.metrics import dice

    classes = np.union1d(np.unique(first), np.unique(second))
    scores = [dice(first == k, second == k) for k in classes if k]
    return float(np.mean(scores)) if scores else 1.0


def extremes(size: tuple[int, int]) -> dict[str, Image]:
    """Return black, white and saturated red images uint8 RGB [H, W, 3], by name."""
    black = np.zeros((*size, 3), np.uint8)
    red = black.copy()
    red[..., 0] = 255
    return {"all 0": black, "all 255": black + np.uint8(255), "saturated red": red}


def check_extremes(engine: Answer, size: tuple[int, int], by: str) -> None:
    """Run an engine on the images of :func:`extremes` at ``size`` (height, width).

    Raises:
        UserError: A logit is not finite.
    """
    for name, image in extremes(size).items():
        if not np.isfinite(engine(image)[0]).all():
            raise UserError(
                f"{by} answers NaN or infinity for an image {name}: a layer overflows; "
                "build with --precision bf16 or fp32"
            )


def check_batch(infer: Callable[[Batch], Array], batch: Batch, tolerance: float, by: str) -> None:
    """Raise Diverged when images answer otherwise in one batch than one by one.

    Args:
        infer: From preprocessed images, or whole frames, to logits.
        batch: As many images as the engine takes at once, all different.
        tolerance: See :meth:`Verification.failures`; of the 99.9th percentile.
        by: What answers.
    """
    together = probabilities(infer(batch))
    for i, image in enumerate(batch):
        alone = probabilities(infer(image[None]))[0]
        off = float(np.quantile(np.abs(together[i] - alone), 0.999))
        if not off <= P999 * tolerance:
            raise Diverged(
                f"{by}: image {i} of a batch of {len(batch)} answers otherwise than alone "
                f"(p99.9 of probability off by {off:.4f}); build with --batch 1:1:1"
            )


def answer_with(infer: Callable[[Array], Array], convention: InputConvention) -> Answer:
    """Return a function from one image uint8 RGB [H, W, 3] to logits, and None for the mask.

    ``infer`` takes preprocessed images float32 [N, 3, h, w].
    """
    return lambda image: (infer(convention.preprocess(image)[None]), None)
