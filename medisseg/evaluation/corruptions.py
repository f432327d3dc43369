"""How much is left of a result when light, cables, codecs and screens change the picture.

Each corruption is fixed (no draws but noise, seeded by the image), at the image's own size; the
mask follows the geometry, and Dice is taken on the whole changed picture.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medisseg.data import degrade
from medisseg.data.degrade import Pixels
from medisseg.data.folder import Sample
from medisseg.evaluation.detection import Detection, detect, summarize
from medisseg.evaluation.metrics import overlap_metrics
from medisseg.files import replacing
from medisseg.predictor import Predictor
from medisseg.schema import Json

Pair = tuple[Pixels, Pixels]
Change = Callable[[Pixels, Pixels], Pair]


@dataclass(frozen=True)
class Screen:
    """A processor's output: its size, and where the picture stands in it, pixels (x, y, w, h)."""

    size: tuple[int, int]
    place: tuple[int, int, int, int]
    corners: float = 0.0
    round: bool = False
    text: bool = False
    inset: bool = False

    def __call__(self, image: Pixels, mask: Pixels) -> Pair:
        """Return the screen, uint8 RGB, and the mask on it."""
        import cv2

        width, height = self.size
        x, y, across, down = self.place
        inside = np.s_[y : y + down, x : x + across]
        canvas, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
        canvas[inside] = cv2.resize(image, (across, down), interpolation=cv2.INTER_CUBIC)
        labels[inside] = cv2.resize(mask, (across, down), interpolation=cv2.INTER_NEAREST)
        seen = self._aperture(down, across)
        canvas[inside] *= seen[..., None]
        labels[inside] *= seen
        if self.inset:
            small = cv2.resize(image, (across // 5, down // 5), interpolation=cv2.INTER_AREA)
            left = min(20, width - across // 5)
            canvas[-20 - down // 5 : -20, left : left + across // 5] = small
            labels[-20 - down // 5 : -20, left : left + across // 5] = 0
        if self.text:
            lines = (
                "NAME: DOE, J",
                "ID 0047-11",
                "12/06/2024",
                "10:42:17",
                "CVP:4/7  NR",
                "Eh:A5 Cm:1",
            )
            for row, line in enumerate(lines):
                place = 20, round(height * (0.06 + 0.05 * row))
                size = height / 1080
                cv2.putText(
                    canvas, line, place, cv2.FONT_HERSHEY_SIMPLEX, size, (230, 230, 230),
                    max(1, round(2 * size)), cv2.LINE_AA,
                )  # fmt: skip
        return canvas, labels

    def _aperture(self, height: int, width: int) -> Pixels:
        y = np.abs(np.linspace(-1, 1, height))[:, None]
        x = np.abs(np.linspace(-1, 1, width))[None]
        inside = x**2 + y**2 <= 1.25 if self.round else x + y <= 2 - self.corners
        aperture: Pixels = inside.astype(np.uint8)
        return aperture


SCREENS = {
    "full-HD screen, octagon, text, second picture": Screen(
        (1920, 1080), (560, 0, 1350, 1080), corners=0.35, text=True, inset=True
    ),
    "the same with a picture of 720 x 576": Screen(
        (1920, 1080), (1180, 252, 720, 576), corners=0.35, text=True, inset=True
    ),
    "round picture in 1280 x 1024": Screen((1280, 1024), (170, 32, 960, 960), round=True),
    "pillar-boxed full HD": Screen((1920, 1080), (240, 0, 1440, 1080)),
    "PAL with text": Screen((720, 576), (200, 40, 500, 496), corners=0.35, text=True),
}


def corruptions() -> dict[str, Change]:
    """Return every corruption by the name its row has, "clean" first."""
    return {
        "clean": lambda image, mask: (image, mask),
        "JPEG quality 30": _pixels(lambda image: degrade.jpeg(image, 30)),
        "JPEG quality 10": _pixels(lambda image: degrade.jpeg(image, 10)),
        "H.264, quantiser 40": _pixels(lambda image: degrade.h264(image, 40)),
        "noise, sigma 10": _pixels(lambda image: degrade.noise(image, 10, _random(image))),
        "noise, sigma 20": _pixels(lambda image: degrade.noise(image, 20, _random(image))),
        "Gaussian blur, sigma 3 px": _pixels(blur),
        "motion blur, 12 px": _pixels(lambda image: degrade.motion_blur(image, 12, 30)),
        "gamma 0.5": _pixels(lambda image: degrade.gamma(image, 0.5)),
        "gamma 2": _pixels(lambda image: degrade.gamma(image, 2.0)),
        "white balance, red +20 %, blue -20 %": _pixels(
            lambda image: degrade.white_balance(image, np.array([1.2, 1.0, 0.8]))
        ),
        "hue +14 degrees": _pixels(lambda image: hue(image, 14)),
        "hue -14 degrees": _pixels(lambda image: hue(image, -14)),
        "contrast 0.5": _pixels(contrast),
        "rotation 45 degrees": lambda image, mask: (rotate(image, 45), rotate(mask, 45)),
        "rotation 90 degrees": lambda image, mask: (np.rot90(image).copy(), np.rot90(mask).copy()),
        "interlaced, 4 px a field": _pixels(lambda image: degrade.interlace(image, 4)),
        "interlaced, 10 px a field": _pixels(lambda image: degrade.interlace(image, 10)),
        "interlaced, 20 px a field": _pixels(lambda image: degrade.interlace(image, 20)),
        "one field doubled": _pixels(double_field),
        **SCREENS,
    }


def _pixels(change: Callable[[Pixels], Pixels]) -> Change:
    return lambda image, mask: (change(image), mask)


def _random(image: Pixels) -> np.random.Generator:
    """Return a generator that an image always starts in the same state."""
    return np.random.default_rng(int(image.sum(dtype=np.int64)))


def blur(image: Pixels, sigma: float = 3.0) -> Pixels:
    """Blur an image [H, W, 3] with a Gaussian of ``sigma`` pixels."""
    import cv2

    blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return blurred.astype(np.uint8, copy=False)


def hue(image: Pixels, degrees: float) -> Pixels:
    """Turn the hue of an RGB image [H, W, 3] by ``degrees`` of 360."""
    import cv2

    turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int16)
    turned[..., 0] = (turned[..., 0] + round(degrees / 2)) % 180
    return cv2.cvtColor(turned.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)


def contrast(image: Pixels, factor: float = 0.5) -> Pixels:
    """Scale intensities of [H, W, 3] about the image's mean by ``factor``; 1 changes nothing."""
    mean = image.mean()
    drawn: Pixels = np.clip(np.rint(mean + factor * (image - mean)), 0, 255).astype(np.uint8)
    return drawn


def double_field(image: Pixels) -> Pixels:
    """Put every even row of [H, W, 3] in the place of the odd one below it, as a deinterlacer does
    that keeps one field: the mask stays, since a pan moves all of one field alike."""
    doubled = image.copy()
    doubled[1::2] = image[: len(image) // 2 * 2 : 2]
    return doubled


def rotate(picture: Pixels, degrees: float) -> Pixels:
    """Turn about the middle, black outside; a mask [H, W] by nearest neighbour."""
    import cv2

    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    how = cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_LINEAR
    turned = cv2.warpAffine(picture, matrix, (width, height), flags=how)
    return turned.astype(np.uint8, copy=False)


def measure(
    predictor: Predictor,
    samples: Sequence[Sample],
    negatives: Sequence[Sample] = (),
    advance: Callable[[int], object] = lambda images: None,
) -> list[Json]:
    """Return a row for each corruption: Dice, IoU, recall, precision, lesions found, false regions.

    Args:
        predictor: Network with its transforms; several classes count as foreground together.
        samples: Labelled images.
        negatives: Images without lesion, in which false regions are counted.
        advance: Told the number of images after each.
    """
    rows = []
    for name, change in corruptions().items():
        scores, detections = _measure_one(predictor, samples, change, advance)
        columns = {key: float(np.mean([score[key] for score in scores])) for key in COLUMNS}
        detection = summarize(detections)
        row = {
            "corruption": name,
            "images": len(scores),
            **columns,
            "found": detection["sensitivity"],
        }
        if len(negatives):
            silent = summarize(_measure_one(predictor, negatives, change, advance)[1])
            row["false_frames"] = silent["by_least_area"]["0.0005"]["frames_with_false_region"]
        rows.append(row)
    return rows


COLUMNS = ("dice", "iou", "recall", "precision")


def _measure_one(
    predictor: Predictor,
    samples: Sequence[Sample],
    change: Change,
    advance: Callable[[int], object],
) -> tuple[list[dict[str, float]], list[Detection]]:
    scores, detections = [], []
    for index in range(len(samples)):
        sample = samples[index]
        image, mask = change(sample.image, sample.mask)
        found, true = predictor(image).mask > 0, mask > 0
        scores.append(overlap_metrics(found, true))
        detections.append(detect(found, true))
        advance(1)
    return scores, detections


def write_table(rows: Sequence[Json], out: Path) -> None:
    """Write ``corruptions.csv`` and ``corruptions.md`` into a folder."""
    columns = list(rows[0])
    with replacing(out / "corruptions.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: _shown(v, 4) for k, v in row.items()} for row in rows])
    lines = [
        f"| {' | '.join(name.replace('_', ' ') for name in columns)} |",
        "|---" * len(columns) + "|",
    ]
    lines += [f"| {' | '.join(_shown(value, 3) for value in row.values())} |" for row in rows]
    with replacing(out / "corruptions.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _shown(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
