"""Several systems on the same images: a table with paired tests, and pictures side by side.

The paper's Fig. 6 and the p values that its tables lack. Differences are from the first system, per
image, with a Wilcoxon signed-rank test and a bootstrap interval (``metrics.paired_test``).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.colors import FOUND
from medisseg.data.folder import Sample
from medisseg.evaluation.evaluate import Evaluation
from medisseg.evaluation.metrics import paired_test
from medisseg.evaluation.pictures import COLORS, compare, paint, shrink
from medisseg.evaluation.report import Page
from medisseg.files import replacing
from medisseg.predictor import Prediction, Predictor
from medisseg.schema import Json

METRICS = {"mdsc": "dice", "miou": "iou", "hd95": "hd95"}
SIDE = 192  # pixels of a picture's longer side


@dataclass(frozen=True)
class System:
    """One system's scores, and how it answers an image."""

    label: str
    evaluation: Evaluation
    predict: Callable[[Sample], Prediction]
    native: bool = False  # scored at the images' own size, not at the network's resolution

    def values(self, metric: str) -> list[float]:
        """Return a metric of every image."""
        rows = self.evaluation.rows
        return [(row.native if self.native else row.network).values[metric] for row in rows]


def protocol(resolution: str, groups: Sequence[str] | None) -> str:
    """Say how the table's figures came about: at what size, and what p takes as independent."""
    units = "images" if groups is None else f"{len(set(groups))} sequences or patients, drawn whole"
    return (
        f"Per image, then averaged, at {resolution}. Differences are from the first row, with "
        "their bootstrap 95 % interval and the p value of a Wilcoxon signed-rank test; both take "
        f"as independent the {units}."
    )


def answering(predictor: Predictor) -> Callable[[Sample], Prediction]:
    """Return a function from a sample to a predictor's answer."""
    return lambda sample: predictor(sample.image)


def table(systems: Sequence[System]) -> list[Json]:
    """Return a row a system: means, and per metric the paired test against the first system."""
    rows, groups = [], systems[0].evaluation.groups()
    for system in systems:
        row: Json = {"system": system.label, "images": len(system.evaluation.rows)}
        for key, metric in METRICS.items():
            values = system.values(metric)
            row[key] = float(np.mean(values))
            if system is not systems[0]:
                first = systems[0].values(metric)
                row[f"{key}_test"] = paired_test(first, values, groups=groups)
        rows.append(row)
    return rows


def shown(rows: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """Return the table's headers and cells as text."""
    headers = ["system", "mDSC", "difference", "p", "mIoU", "difference", "p", "HD95, pixels"]
    cells = []
    for row in rows:
        line = [row["system"]]
        for key in ("mdsc", "miou"):
            test = row.get(f"{key}_test")
            line.append(f"{row[key]:.3f}")
            line += ["–", "–"] if test is None else [_difference(test), f"{test['p_value']:.2g}"]
        cells.append([*line, f"{row['hd95']:.1f}"])
    return headers, cells


def _difference(test: Mapping[str, float]) -> str:
    return f"{test['difference']:+.3f} ({test['low']:+.3f} to {test['high']:+.3f})"


def most_different(systems: Sequence[System], count: int) -> list[int]:
    """Return the images on which the systems' Dice differs most, those first."""
    dice = np.array([system.values("dice") for system in systems])
    spread = dice.max(0) - dice.min(0)
    worst: list[int] = np.lexsort((np.arange(len(spread)), -spread))[:count].tolist()
    return worst


def side_by_side(systems: Sequence[System], sample: Sample) -> npt.NDArray[np.uint8]:
    """Return image, reference and every system's mask against it, uint8 RGB [H, n W, 3]."""
    truth = paint(sample.image, [(FOUND, sample.mask > 0)], 0.45)
    parts = [sample.image, truth]
    parts += [compare(sample.image, system.predict(sample).mask, sample.mask) for system in systems]
    small = [shrink(part, SIDE) for part in parts]
    gap = np.full((small[0].shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([piece for part in small for piece in (part, gap)][:-1], 1)


def write(
    systems: Sequence[System],
    samples: Sequence[Sample],
    about: Json,
    cases: int,
    out: Path,
) -> None:
    """Write ``compare.json``, ``per_image.csv``, ``side_by_side.png`` and ``index.html``."""
    from PIL import Image

    rows = table(systems)
    with replacing(out / "compare.json") as temporary:
        temporary.write_text(json.dumps({**about, "systems": rows}, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(f"{s.label} {m}" for s in systems for m in ("dice", "iou"))])
    columns = [system.values(metric) for system in systems for metric in ("dice", "iou")]
    names = [row.name for row in systems[0].evaluation.rows]
    for name, *values in zip(names, *columns, strict=True):
        writer.writerow([name, *(f"{value:.6f}" for value in values)])
    with replacing(out / "per_image.csv") as temporary:
        temporary.write_text(text.getvalue())
    chosen = most_different(systems, cases)
    pictures = [side_by_side(systems, samples[index]) for index in chosen]
    with replacing(out / "side_by_side.png") as temporary:
        Image.fromarray(stack(pictures[:8])).save(temporary, format="PNG")
    page = Page(f"{len(systems)} systems on {about['data']}", f"split {about['split']}")
    page.table(*shown(rows), protocol(about["resolution"], systems[0].evaluation.groups()))
    page.heading("Images on which they differ most").keys(COLORS)
    page.text(f"From the left: image, reference, {', '.join(s.label for s in systems)}.")
    captions = [
        f"{names[i]}: Dice " + ", ".join(f"{s.values('dice')[i]:.3f}" for s in systems)
        for i in chosen
    ]
    page.images(zip(pictures, captions, strict=True), columns=1)
    page.save(out / "index.html")


def stack(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Stack pictures uint8 RGB [h, w, 3] of several sizes from top to bottom, on white."""
    widest = max(picture.shape[1] for picture in pictures)
    rows = [
        np.pad(picture, ((0, 4), (0, widest - picture.shape[1]), (0, 0)), constant_values=255)
        for picture in pictures
    ]
    return np.concatenate(rows)
