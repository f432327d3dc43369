"""The demo's result: a table on the terminal, and ``report.html``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisseg.text import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED = 0.7  # validation Dice; a network below had too little time
SHEET = 12  # pictures on the contact sheet, worst first


def print_table(out: Path, result: dict[str, Any]) -> None:
    """Print accuracy, speed and frame counts, and the paths of the files."""
    from rich.table import Table

    table = Table(show_header=False, title="Med-DisSeg demo")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for label, value in rows(result):
        table.add_row(label, value)
    for label, place in (
        ("page", out / "report.html"),
        ("overlay video", result["overlay"]),
        ("engine", result["engine"]),
        ("engine for RTX GPUs", result["rtx_engine"] or "not built: TensorRT for RTX is missing"),
        ("checkpoint", result["checkpoint"]),
    ):
        table.add_row(label, str(place))
    console().print(table)
    if result["dice_val"] < TRAINED:
        print(
            f"validation Dice {result['dice_val']:.2f}: training ends by the clock, too early on a "
            "slow or busy machine; make demo MINUTES=20 gives it more time"
        )


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers of a demo as (label, text)."""
    frames, latency = result["frames"], result["latency_ms"]
    dice = result["dice_video"]
    return [
        ("Dice on the video", "no masks to compare with" if dice is None else f"{dice:.3f}"),
        ("Dice on the validation images", f"{result['dice_val']:.3f}"),
        ("frames a second", f"{result['fps']:.1f} ({result['backend']})"),
        ("latency p50 / p99", f"{latency['p50']:.1f} / {latency['p99']:.1f} ms"),
        (
            "frames in = processed + dropped + failed",
            f"{frames['in']} = {frames['processed']} + {frames['dropped']} + {frames['failed']}",
        ),
    ]


def write_page(out: Path, result: dict[str, Any], data: Path | None) -> None:
    """Write ``out/report.html``: numbers, training curves, worst images first, latency."""
    from medisseg.evaluation.report import Page

    page = Page("Med-DisSeg demo", "Not a medical device: for research and engineering only.")
    page.table(["what", "measured"], rows(result))
    if data:
        page.heading("Training")
        page.figure(curves(out / "train"), "loss and validation Dice by epoch")
        page.heading("Validation images, worst first")
        sheet = contact_sheet(out / "evaluation", data, Path(result["checkpoint"]))
        page.images(sheet, columns=3)
    page.heading("Latency on the video")
    page.figure(histogram(out / "video" / "results.jsonl"), "from decoded frame to drawn frame")
    page.save(out / "report.html")


def curves(folder: Path) -> Figure:
    """Draw the loss and the validation Dice of the stages that were run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    for path in sorted(folder.glob("stage?/curves.csv")):
        with path.open() as file:
            table = list(csv.DictReader(file))
        for axes, column in zip(panels, ("train_loss", "val_dice"), strict=True):
            points = [(int(row["epoch"]), float(row[column])) for row in table if row[column]]
            axes.plot(*zip(*points, strict=True), marker=".", label=path.parent.name)
    for axes, label in zip(panels, ("training loss", "validation Dice"), strict=True):
        axes.set_xlabel("epoch of the stage")
        axes.set_ylabel(label)
        axes.legend()
    return figure


def contact_sheet(
    evaluation: Path, data: Path, checkpoint: Path
) -> list[tuple[np.ndarray[Any, Any], str]]:
    """Return image, truth and prediction of the worst validation images, three pictures each."""
    from medisseg import Predictor
    from medisseg.data.folder import SegmentationFolder

    with (evaluation / "per_image.csv").open() as file:
        worst = sorted(csv.DictReader(file), key=lambda row: float(row["dice"]))[:SHEET]
    folder = SegmentationFolder(data, "val")
    samples = {sample.name: sample for sample in folder}
    predictor = Predictor(checkpoint)
    pictures = []
    for row in worst:
        sample = samples[row["image"]]
        predicted = predictor(sample.image).mask
        pictures += [
            (sample.image, sample.name),
            (np.where(sample.mask > 0, 255, 0).astype(np.uint8), "truth"),
            (
                np.where(predicted > 0, 255, 0).astype(np.uint8),
                f"predicted, Dice {float(row['dice']):.2f}",
            ),
        ]
    return pictures


def histogram(path: Path) -> Figure:
    """Draw a histogram of the latency of all frames in milliseconds, without an upper limit."""
    from matplotlib.figure import Figure

    with path.open() as file:
        latency = [json.loads(line)["latency_ms"] for line in file]
    figure = Figure(figsize=(9, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(latency, bins=60)
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("frames")
    return figure
