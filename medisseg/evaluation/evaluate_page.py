"""The page of an evaluation: numbers with intervals, distributions, and the worst cases first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medisseg.colors import GREY, ORANGE, TEAL, css
from medisseg.data.folder import Sample
from medisseg.evaluation.detection import LEAST_AREA, froc
from medisseg.evaluation.evaluate import NEGATIVES, OTHERS, PASTED, Evaluation
from medisseg.evaluation.pictures import COLORS, compare, shrink, side_by_side
from medisseg.evaluation.report import Key, Page
from medisseg.files import replacing
from medisseg.predictor import Prediction
from medisseg.schema import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Predict = Callable[[Sample], Prediction]  # a network's answer to an image, or a stored mask
LABELS = {
    "miou": "mIoU",
    "mdsc": "mDSC (Dice)",
    "recall": "recall",
    "precision": "precision",
    "hd95": "HD95, pixels",
    "boundary_iou": "boundary IoU",
    "calibration_error": "calibration error",
}
PROTOCOL = (
    "Each metric is taken per image and then averaged over the images; an image whose mask and "
    "prediction are both empty scores 1. Network resolution is the papers' protocol (the mask "
    "resized to the network's input), image resolution is the size of the images as stored. "
    "Intervals: bootstrap, 95 %."
)


REGIONS = (
    "",
    "images",
    "lesions found",
    "frames with a false region",
    "false regions a frame",
    "mean false area, % of the frame",
)
REGIONS_TEXT = (
    f"A lesion is found when predicted regions cover a tenth of it. False regions touch no lesion "
    f"and fill at least {100 * LEAST_AREA:g} % of the frame, as the runner shows them; the curve "
    "goes over thresholds, squares mark 0.5."
)
PASTED_TEXT = (
    "The lesions of the labelled images are put into those without, and patches of their mucosa in "
    "the same way: a network that is silent by the look of an image misses the lesions there, one "
    "that answers to the seam shows the mucosa."
)


CLASSES_TEXT = "Over the images where the class occurs, at the network's resolution."
VOLUMES_TEXT = (
    "Slices are put together again and each class is scored once a volume, in 3D at the slices' "
    "own size; the means are over the volumes, and of these over the classes."
)


def region_rows(evaluation: Evaluation, others: Mapping[str, Evaluation]) -> list[list[str]]:
    """Return a line for the labelled images and one for each kind of others."""
    rows = []
    named = {OTHERS[key]: other for key, other in others.items()}
    for name, part in {"labelled": evaluation, **named}.items():
        detection = part.detection()
        least = detection["by_least_area"][f"{LEAST_AREA:g}"]
        share = (
            "" if detection["sensitivity"] is None else f" ({100 * detection['sensitivity']:.1f} %)"
        )
        rows.append(
            [
                name,
                str(detection["images"]),
                f"{detection['found']} of {detection['lesions']}{share}",
                f"{100 * least['frames_with_false_region']:.1f} %",
                f"{least['false_regions_per_frame']:.3f}",
                f"{100 * detection['mean_false_area']:.3f}",
            ]
        )
    return rows


def class_rows(evaluation: Evaluation, about: Json) -> tuple[list[str], list[list[object]]]:
    """Return headers and a line for each class, with its name and colour where it has them."""
    labels = about.get("labels", ())
    rows = []
    for index, values in evaluation.classes().items():
        label = labels[int(index) - 1] if int(index) <= len(labels) else None
        name = Key(label["name"], label["color"]) if label else index
        rows.append([name, int(values["images"]), *(values[k] for k in LABELS if k in values)])
    return ["class", "images", *(t for k, t in LABELS.items() if k != "calibration_error")], rows


def volume_rows(told: Json) -> tuple[list[str], list[list[str]]]:
    """Return headers and a line for each class and for their mean."""
    lines = {**told["classes"], "mean of the classes": {**told, "dice": told["mdsc"]}}
    rows = [
        [name, str(one["volumes"]), f"{one['dice']:.4f}",
         "" if one["hd95"] is None else f"{one['hd95']:.2f}"]
        for name, one in lines.items()
    ]  # fmt: skip
    return ["class", "volumes", "Dice", f"HD95, {told['unit']}"], rows


def write_froc(
    evaluation: Evaluation, path: Path, others: Mapping[str, Evaluation] | None = None
) -> None:
    """Draw lesions found against false regions a frame, as PNG."""
    figure = _froc(evaluation, others or {})
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _froc(evaluation: Evaluation, others: Mapping[str, Evaluation]) -> Figure:
    negatives = others.get(NEGATIVES)
    return froc(evaluation.sweeps(), negatives.sweeps() if negatives else None)


def table_rows(summary: Json) -> list[list[str]]:
    """Return label, network resolution and image resolution, each "value (low to high)"."""
    return [
        [label, _shown(summary, key), _shown(summary["native"], key)]
        for key, label in LABELS.items()
    ]


def _shown(averages: Json, key: str) -> str:
    digits = 1 if key == "hd95" else 3
    low, high = averages["intervals"][key]
    return f"{averages[key]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def write_page(
    evaluation: Evaluation,
    about: Json,
    predict: Predict,
    samples: Sequence[Sample],
    cases: int,
    path: Path,
    others: Mapping[str, Evaluation] | None = None,
) -> None:
    """Write ``index.html``; the network is run again on the ``cases`` images that are shown."""
    summary = evaluation.summary()
    page = Page(
        f"{about['model']} on {about['data']}",
        f"{summary['images']} images of split {about['split']}, {about['architecture']}, "
        f"{about['size']} pixels, threshold {about['threshold']:g}",
    )
    page.tiles({LABELS[key]: f"{summary[key]:.3f}" for key in ("mdsc", "miou")})
    page.table(["", "network resolution", "image resolution"], table_rows(summary))
    page.text(PROTOCOL)
    if groups := evaluation.groups():
        page.text(f"Intervals draw whole sequences or patients: {len(set(groups))} of them.")
    if len(evaluation.classes()) > 1:
        page.heading("Classes").table(*class_rows(evaluation, about), CLASSES_TEXT)
    if evaluation.volumes is not None:
        headers, lines = volume_rows(evaluation.volumes.summary())
        page.heading("Whole volumes").table(headers, lines, VOLUMES_TEXT)
    others = others or {}
    page.heading("Regions").table(REGIONS, region_rows(evaluation, others), REGIONS_TEXT)
    if PASTED in others:
        page.text(PASTED_TEXT)
    page.figure(_froc(evaluation, others))
    page.heading("Distributions").figure(
        distributions(evaluation),
        "Dice of every image; Dice by "
        "the area of the reference; stated probability against the share that came true.",
    )
    page.heading("Worst cases first").keys(COLORS)
    page.text("Left the image, right the same with the prediction compared to the reference.")
    page.images(pictures(evaluation, predict, samples, cases), columns=3)
    page.save(path)


def pictures(
    evaluation: Evaluation, predict: Predict, samples: Sequence[Sample], cases: int
) -> list[tuple[np.ndarray, str]]:
    """Return pictures with captions of the images with the lowest Dice, worst first."""
    shown = []
    for index in evaluation.worst(cases):
        sample, values = samples[index], evaluation.rows[index].native.values
        prediction = predict(sample)
        colored = compare(sample.image, prediction.mask, sample.mask)
        text = f"{sample.name}: Dice {values['dice']:.3f}, IoU {values['iou']:.3f}"
        shown.append((shrink(side_by_side(sample.image, colored), 1024), text))
    return shown


def write_worst(
    evaluation: Evaluation, predict: Predict, samples: Sequence[Sample], path: Path
) -> None:
    """Write the eight worst cases as masks and outlines alone, which any data's licence allows."""
    from PIL import Image

    drawn = []
    for index in evaluation.worst(8):
        sample = samples[index]
        areas = compare(None, predict(sample).mask, sample.mask)
        drawn.append(np.array(Image.fromarray(areas).resize((192, 192), Image.Resampling.BOX)))
    framed = [np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=160) for cell in drawn]
    rows = [np.concatenate(framed[first : first + 4], 1) for first in range(0, len(framed), 4)]
    widest = max(row.shape[1] for row in rows)
    full = [
        np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(full)).save(temporary, format="PNG")


def distributions(evaluation: Evaluation) -> Figure:
    """Draw Dice as a histogram and by area, and the reliability of the probabilities."""
    from matplotlib.figure import Figure

    dice = np.array([row.network.values["dice"] for row in evaluation.rows])
    area = np.array([row.area for row in evaluation.rows]) * 100
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    histogram, by_area, reliability = figure.subplots(1, 3)
    histogram.hist(dice, bins=np.linspace(0, 1, 26), color=css(TEAL))
    histogram.axvline(dice.mean(), color=css(ORANGE), label=f"mean {dice.mean():.3f}")
    histogram.axvline(
        np.median(dice), color=css(ORANGE), ls=":", label=f"median {np.median(dice):.3f}"
    )
    histogram.set(xlabel="Dice", ylabel="images")
    histogram.legend(fontsize="small")
    histogram.yaxis.get_major_locator().set_params(integer=True)
    by_area.scatter(area, dice, s=12, color=css(TEAL), alpha=0.6, linewidths=0)
    by_area.set(
        xlabel="foreground in the reference, % of the image", ylabel="Dice", ylim=(-0.03, 1.03)
    )
    if (area > 0).all():
        by_area.set_xscale("log")
        by_area.xaxis.set_major_formatter("{x:g}")
    count, stated, true = evaluation.reliability().T
    seen = count > 0
    reliability.plot([0, 1], [0, 1], color=css(GREY), lw=1, ls=":")
    reliability.plot(
        stated[seen] / count[seen], true[seen] / count[seen], "o-", ms=4, color=css(TEAL)
    )
    reliability.set(xlabel="stated probability", ylabel="share that came true")
    for axes in (histogram, by_area, reliability):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
