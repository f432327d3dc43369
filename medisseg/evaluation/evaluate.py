"""Measure a predictor on labelled images: per image, then averaged, at two resolutions.

"Network" is the protocol of the papers: the mask is resized to the network's input. "Native" is
what a clinic sees: the logits are brought to the image's own size before the threshold. Beside the
pixels, the regions: lesions found and false regions (``medisseg.evaluation.detection``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from medisseg.convention import InputConvention
from medisseg.data.folder import Sample, resize_mask
from medisseg.evaluation import metrics
from medisseg.evaluation.detection import Detection, detect, summarize, sweep
from medisseg.evaluation.volumes import VolumeScores
from medisseg.files import replacing
from medisseg.picture import Picture
from medisseg.predictor import Logits, Prediction, Predictor
from medisseg.schema import Json

# Key in metrics.json -> column per image. Fractions in [0, 1]; hd95 in pixels.
AVERAGES = {
    "miou": "iou",
    "mdsc": "dice",
    "recall": "recall",
    "precision": "precision",
    "hd95": "hd95",
    "boundary_iou": "boundary_iou",
}
# Images beside the labelled ones: key in metrics.json -> what a table calls them.
NEGATIVES, PASTED, PASTED_MUCOSA = "negatives", "pasted", "pasted_mucosa"
OTHERS = {
    NEGATIVES: "without lesion",
    PASTED: "lesions put into these",
    PASTED_MUCOSA: "mucosa put into these",
}


@dataclass(frozen=True)
class Score:
    """One image at one resolution.

    Attributes:
        values: The metrics of :data:`metrics.NAMES`, averaged over the classes that occur.
        classes: Class index to its metrics, for the classes that occur.
        table: Reliability of the probabilities, [bins, 3].
        empty: Whether nothing is predicted although there is something.
    """

    values: dict[str, float]
    classes: dict[int, dict[str, float]]
    table: npt.NDArray[np.float64]
    empty: bool = False


@dataclass(frozen=True)
class Row:
    """One image: its name, its sequence or patient (empty: none), true foreground share, scores,
    its regions at its own size, and at the network's by threshold ([T, 3], see ``sweep``)."""

    name: str
    group: str
    area: float
    network: Score
    native: Score
    detection: Detection
    sweep: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """The scores of every image, in the order of the split."""

    rows: tuple[Row, ...]
    seed: int = 0
    volumes: VolumeScores | None = None

    def summary(self) -> Json:
        """Return what ``metrics.json`` holds: averages with 95 % intervals, and ``native``.

        Of slices of volumes ``volumes``, too: the scores of whole volumes.
        """
        network, native = (self._averages(where) for where in ("network", "native"))
        bounds = network.pop("intervals")
        counted = {"images": len(self.rows), "intervals": bounds, "native": native}
        whole = {} if self.volumes is None else {"volumes": self.volumes.summary()}
        empty = {"empty_predictions": self.empty_predictions()}
        return {**network, **empty, **counted, "detection": self.detection(), **whole}

    def empty_predictions(self) -> Json:
        """Return how many images have foreground but no prediction, at the network's resolution.

        Their precision is 0 here and 1 in the authors' release: ``precision_as_release`` is the
        average by that rule. Dice and IoU are the same under both.
        """
        scores = [row.network for row in self.rows]
        by_release = [1.0 if one.empty else one.values["precision"] for one in scores]
        return {
            "images": sum(one.empty for one in scores),
            "precision_as_release": float(np.mean(by_release)),
        }

    def detection(self) -> Json:
        """Return lesions found and false regions, at the images' own size."""
        return summarize([row.detection for row in self.rows])

    def sweeps(self) -> npt.NDArray[np.int64]:
        """Return lesions, found and false regions of every image by threshold, [N, T, 3]."""
        return np.stack([row.sweep for row in self.rows])

    def _averages(self, where: str) -> Json:
        scores = [getattr(row, where) for row in self.rows]
        columns = {key: [s.values[name] for s in scores] for key, name in AVERAGES.items()}
        tables = np.stack([score.table for score in scores])
        averages: Json = {key: float(np.mean(values)) for key, values in columns.items()}
        averages["calibration_error"] = metrics.calibration_error(tables)
        groups = self.groups()
        averages["intervals"] = metrics.intervals(columns, tables, groups, seed=self.seed)
        return averages

    def groups(self) -> list[str] | None:
        """Return the sequence or patient of each image when the data folder tells every one's."""
        groups = [row.group for row in self.rows]
        return groups if all(groups) and len(set(groups)) > 1 else None

    def classes(self) -> dict[str, Json]:
        """Return averages of each class over the images where it occurs, network resolution."""
        found: dict[int, list[dict[str, float]]] = {}
        for row in self.rows:
            for index, values in row.network.classes.items():
                found.setdefault(index, []).append(values)
        return {
            str(index): {"images": len(rows)}
            | {key: float(np.mean([row[name] for row in rows])) for key, name in AVERAGES.items()}
            for index, rows in sorted(found.items())
        }

    def reliability(self) -> npt.NDArray[np.float64]:
        """Return the reliability table of all images together, network resolution: [bins, 3]."""
        table: npt.NDArray[np.float64] = np.sum([row.network.table for row in self.rows], axis=0)
        return table

    def worst(self, count: int | None = None) -> list[int]:
        """Return the indices of the images with the lowest Dice, worst first, native resolution."""
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i].native.values["dice"])
        return order[:count]


def evaluate(
    predictor: Predictor,
    samples: Sequence[Sample],
    groups: Mapping[str, str] | None = None,
    batch: int = 8,
    seed: int = 0,
    advance: Callable[[int], object] = lambda images: None,
    volumes: VolumeScores | None = None,
) -> Evaluation:
    """Score a predictor on labelled samples.

    Args:
        predictor: Network with its transforms.
        samples: uint8 RGB images with class indices, e.g. a :class:`SegmentationFolder`.
        groups: Image name to sequence or patient; intervals then draw whole groups.
        batch: Images per run of the network.
        seed: Of the bootstrap.
        advance: Told the number of images after each batch.
        volumes: Collects slices, and scores the volumes that they are of.

    Raises:
        UserError: An image or mask cannot be used.

    Example:
        >>> evaluate(Predictor("edge-polyp"), SegmentationFolder("kvasir-seg", "val")).summary()
    """
    rows: list[Row] = []
    for part in batches(samples, batch):
        pictures = [predictor.find_picture(sample.image) for sample in part]
        images = [place.crop(sample.image) for place, sample in zip(pictures, part, strict=True)]
        logits = predictor.logits(images)
        for sample, answer, picture in zip(part, logits, pictures, strict=True):
            group = (groups or {}).get(sample.name, "")
            rows.append(score(predictor, sample, answer, group, picture, volumes))
        advance(len(part))
    return Evaluation(tuple(rows), seed, volumes)


class Answers(Protocol):
    """What scoring asks of a predictor."""

    @property
    def convention(self) -> InputConvention: ...
    @property
    def classes(self) -> int: ...
    @property
    def threshold(self) -> float: ...

    def restore(
        self, logits: Logits, frame_size: tuple[int, ...], picture: Picture | None = None
    ) -> Prediction:
        """Bring logits [K, h, w] of a picture to its image's size (height, width)."""


def score(
    predictor: Answers,
    sample: Sample,
    logits: npt.NDArray[np.float32],
    group: str = "",
    picture: Picture | None = None,
    volumes: VolumeScores | None = None,
) -> Row:
    """Score one image's logits [K, h, w] at the network's and at the image's own resolution.

    At the network's resolution only the picture that it was given counts. ``volumes`` gets the
    mask of the image's own.
    """
    size = (sample.mask.shape[0], sample.mask.shape[1])
    place = picture or Picture.whole(size)
    convention = predictor.convention
    top, left, height, width = convention.content(place.size)
    inside = np.s_[
        top : top + height, left : left + width
    ]  # the padding of a letterbox is no image
    small = Prediction(logits[:, inside[0], inside[1]], predictor.threshold)
    true = resize_mask(place.crop(sample.mask), convention)[inside]
    small_void, void = None, sample.void
    if void is not None:
        small_void = resize_mask(place.crop(void).astype(np.uint8), convention)[inside] > 0
    network = _score(small, true, predictor.classes, small_void)
    same = (height, width) == size and place.fills(size)
    restored = small if same else predictor.restore(logits, size, place)
    native = network if same else _score(restored, sample.mask, predictor.classes, void)
    if volumes is not None:
        volumes.add(sample.name, restored.mask, sample.mask)
    found = restored.mask > 0
    regions = detect(found if void is None else found & ~void, sample.mask > 0)
    foreground = small.foreground
    curve = sweep(foreground if small_void is None else foreground * ~small_void, true > 0)
    area = float(np.mean(sample.mask > 0))
    return Row(sample.name, group, area, network, native, regions, curve)


def _score(
    prediction: Prediction,
    true: npt.NDArray[np.uint8],
    classes: int,
    void: npt.NDArray[np.bool_] | None = None,
) -> Score:
    """Score a prediction; void pixels are background in both and tell nothing of calibration."""
    predicted = prediction.mask if void is None else np.where(void, 0, prediction.mask)
    found = metrics.class_metrics(predicted, true, classes)
    if classes == 1:
        stated, right = prediction.probability, true > 0
    else:
        stated, right = prediction.probability.max(0), prediction.mask == true
    if void is not None:
        stated, right = stated[~void], right[~void]
    empty = not np.any(predicted) and bool(np.any(true if void is None else true[~void]))
    table = metrics.reliability(stated, right)
    return Score(metrics.mean_over_classes(found), found, table, empty)


def batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield the samples in lists of at most ``size``."""
    for start in range(0, len(samples), size):
        yield [samples[i] for i in range(start, min(start + size, len(samples)))]


def write_results(
    evaluation: Evaluation,
    about: Json,
    out: Path,
    others: Mapping[str, Evaluation] | None = None,
) -> None:
    """Write ``metrics.json``, ``per_image.csv`` and ``evaluation.json`` into a folder; of other
    images (:data:`OTHERS`) their regions under their key, of lesions put in Dice at the images'
    own size, too, and ``KEY.csv``."""
    summary = evaluation.summary()
    for key, other in (others or {}).items():
        dice = {"mdsc": other.summary()["native"]["mdsc"]} if key == PASTED else {}
        summary[key] = other.detection() | dice
        _write_rows(other, out / f"{key}.csv")
    with replacing(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    with replacing(out / "evaluation.json") as temporary:
        metadata: Json = {**about, "classes": evaluation.classes()}
        for index, label in enumerate(about.get("labels", ()), start=1):
            if str(index) in metadata["classes"]:
                metadata["classes"][str(index)]["name"] = label["name"]
        temporary.write_text(json.dumps(metadata, indent=2) + "\n")
    _write_rows(evaluation, out / "per_image.csv")
    if evaluation.volumes is not None:
        with (
            replacing(out / "per_volume.csv") as temporary,
            open(temporary, "w", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["volume", "class", "dice", f"hd95_{evaluation.volumes.unit}"])
            writer.writerows(evaluation.volumes.rows())


def _write_rows(evaluation: Evaluation, path: Path) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        measured = [*metrics.NAMES, "calibration_error"]
        native = [f"native_{name}" for name in measured]
        regions = ["lesions", "found", "false_regions", "false_share"]
        writer.writerow(["image", "group", "true_share", *measured, *native, *regions])
        for row in evaluation.rows:
            numbers = [value for s in (row.network, row.native) for value in _numbers(s)]
            shown = [f"{number:.6f}" for number in (row.area, *numbers)]
            one = row.detection
            counts = [one.lesions, one.found, one.false_regions()]
            false = f"{sum(one.false_areas):.6f}"
            writer.writerow([row.name, row.group, *shown, *counts, false])


def _numbers(score: Score) -> list[float]:
    values = [score.values[name] for name in metrics.NAMES]
    return [*values, metrics.calibration_error(score.table)]
