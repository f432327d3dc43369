"""Dice of one set of pictures, bare and inside processors' screens, with and without ``--picture``.

    python -m benchmarks.screens --data DIR [--split val] [--model edge-polyp ...] --out FOLDER

The screens are the five of ``medisseg evaluate --corruptions``: drawn, with letters and a second
picture. Beside Dice over the whole screen stands how well the picture's place was found
(intersection over union with the place it was put at), and on the bare pictures how many ``auto``
did not leave whole. Leaves ``screens.json`` and ``.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.common import Row, machine, show, write
from medisseg.data.folder import SegmentationFolder
from medisseg.errors import UserError, command
from medisseg.evaluation.corruptions import SCREENS, Change, Screen
from medisseg.evaluation.metrics import overlap_metrics
from medisseg.picture import AUTO, FULL, Picture
from medisseg.predictor import Predictor

BARE = "bare picture"
COLUMNS = ("model", "screen", "picture", "images", "dice", "against_bare", "overlap",
           "least_overlap", "left_whole")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it."""
    args = parser().parse_args(argv)
    samples = SegmentationFolder(args.data, args.split)
    images = min(args.images or len(samples), len(samples))
    if images < 1:
        raise UserError(f"--images is {args.images}; expected 1 or more")
    rows: list[Row] = []
    for model in args.model:
        rows += measure(model, samples, images)
    told = {"data": samples.root.name, "split": args.split}
    print(write(args.out, "screens", machine(), rows, **told))
    show("Pictures on screens", rows, COLUMNS)
    return 0


def measure(model: str, samples: SegmentationFolder, images: int) -> list[Row]:
    """Return one row for the bare pictures and each screen, searched and taken whole."""
    predictor = Predictor(model, "cpu")
    rows: list[Row] = []
    bare = None
    for name, change in {BARE: _unchanged, **SCREENS}.items():
        for choice in (FULL, AUTO):
            print(f"{model}: {name}, {choice}", file=sys.stderr)
            predictor.picture = choice
            row = {"model": model, "screen": name, "picture": choice, "images": images}
            row |= _measure(predictor, samples, images, change)
            bare = row["dice"] if bare is None else bare
            rows.append(row | {"against_bare": round(row["dice"] - bare, 4)})
    return rows


def _unchanged(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return image, mask


def _measure(predictor: Predictor, samples: SegmentationFolder, images: int, change: Change) -> Row:
    dice, overlaps, whole = [], [], 0
    for index in range(images):
        sample = samples[index]
        image, mask = change(sample.image, sample.mask)
        found = predictor(image)
        dice.append(overlap_metrics(found.mask > 0, mask > 0)["dice"])
        place = found.picture or Picture.whole(image.shape)
        true = Picture(*change.place) if isinstance(change, Screen) else Picture.whole(image.shape)
        overlaps.append(place.overlap(true))
        whole += place.fills(image.shape)
    return {
        "dice": round(float(np.mean(dice)), 4),
        "overlap": round(float(np.mean(overlaps)), 4),
        "least_overlap": round(float(np.min(overlaps)), 4),
        "left_whole": whole,
    }


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.screens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--data", required=True, help="data folder with images and masks")
    made.add_argument("--split", default="val", help="list of names, or all (default: val)")
    made.add_argument("--model", nargs="+", default=["edge-polyp", "edge-kvasir"])
    made.add_argument("--images", type=int, help="only so many (default: all)")
    made.add_argument("--out", required=True, help="folder for screens.json and screens.csv")
    return made


if __name__ == "__main__":
    command(main)
