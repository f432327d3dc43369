"""The pictures, the table and the page of ``medisseg explain``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from medisseg.colors import FOUND, GREY, PURPLE, css
from medisseg.data.folder import Sample
from medisseg.evaluation.collapse import project, unit
from medisseg.evaluation.explain import Embeddings, FeatureView
from medisseg.evaluation.pictures import paint, shrink, side_by_side
from medisseg.evaluation.predict import save
from medisseg.evaluation.report import Page
from medisseg.schema import Json
from medisseg.text import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSIDE, OUTSIDE = css(PURPLE), css(GREY)
LABELS = {
    "effective_rank": "effective rank",
    "uniformity": "uniformity",
    "mean_cosine": "mean cosine",
}
READING = (
    "Effective rank: 1 when all variation lies on one line, more when more directions are used. "
    "Uniformity: 0 when every embedding has the same direction, lower when they are spread over "
    "the sphere. Mean cosine: 1 when collapsed. Image: a feature's mean over each image; pixel: "
    "single positions of the map."
)


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` indices spread evenly over ``total``."""
    return sorted({int(i) for i in np.linspace(0, total - 1, max(1, min(count, total)))})


def measures(views: Sequence[FeatureView], found: Sequence[Embeddings]) -> list[Json]:
    """Return each model's name and collapse measures."""
    return [
        {"name": view.name, "architecture": view.info.architecture, **embeddings.measures()}
        for view, embeddings in zip(views, found, strict=True)
    ]


def true_shares(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Return the reference's foreground share of every image, in [0, 1]."""
    return np.array([np.mean(samples[i].mask > 0) for i in range(len(samples))])


def write_maps(
    views: Sequence[FeatureView],
    samples: Sequence[Sample],
    placement: str,
    out: Path,
    advance: Callable[[int], object],
) -> list[tuple[npt.NDArray[np.uint8], str]]:
    """Write a row of pictures for each image (reference, a map for each model) and return them."""
    pictures = []
    for sample in samples:
        reference = paint(sample.image, [(FOUND, sample.mask > 0)], 0.0)
        maps = [heat(sample.image, view.activation_map(sample.image, placement)) for view in views]
        row = side_by_side(reference, *maps)
        save(Image.fromarray(row), out / f"{sample.name}.jpg")
        pictures.append((shrink(row, 1200), sample.name))
        advance(1)
    return pictures


def heat(
    image: npt.NDArray[np.uint8], values: npt.NDArray[np.float32], alpha: float = 0.6
) -> npt.NDArray[np.uint8]:
    """Lay a map [H, W] in [0, 1] over an image [H, W, 3]; where it is 0 the image shows."""
    from matplotlib import colormaps

    tones = colormaps["inferno"](values)[..., :3] * 255
    strength = alpha * np.sqrt(values)[..., None]
    return np.rint(image * (1 - strength) + tones * strength).astype(np.uint8)


def embedding_figure(
    views: Sequence[FeatureView], found: Sequence[Embeddings], shares: npt.NDArray[np.float64]
) -> Figure:
    """Draw, for each model, images and positions on their first two principal axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(views) + 0.8, 8), layout="constrained")
    # One scale for all models: features of one length each, so a collapsed model is a small blob.
    panels = figure.subplots(2, len(views), squeeze=False, sharex="row", sharey="row")
    for column, (view, embeddings) in enumerate(zip(views, found, strict=True)):
        rank = embeddings.measures()
        points = project(unit(embeddings.images))
        dots = panels[0, column].scatter(*points.T, c=shares * 100, s=18, cmap="viridis")
        panels[0, column].set_title(_title(view, "images", rank["image"]), fontsize="medium")
        places = project(unit(embeddings.positions))
        for inside, color, label in ((False, OUTSIDE, "outside"), (True, INSIDE, "inside")):
            chosen = places[embeddings.inside == inside]
            panels[1, column].scatter(
                *chosen.T, s=5, c=color, alpha=0.5, linewidths=0, label=label, rasterized=True
            )
        panels[1, column].set_title(_title(view, "positions", rank["pixel"]), fontsize="medium")
        panels[1, column].legend(title="reference mask", fontsize="small", markerscale=2)
        if column == len(views) - 1:
            figure.colorbar(dots, ax=panels[0, column], label="foreground, % of the image")
    for axes in panels.flat:
        axes.set(xlabel="first principal axis", ylabel="second principal axis")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _title(view: FeatureView, what: str, rank: Mapping[str, float]) -> str:
    numbers = f"effective rank {rank['effective_rank']:.1f}, uniformity {rank['uniformity']:.2f}"
    return f"{view.name}: {what}\n{numbers}"


def table_rows(result: Json) -> list[list[object]]:
    """Return model, granularity and the measures."""
    return [
        [model["name"], granularity, *(f"{model[granularity][key]:.3f}" for key in LABELS)]
        for model in result["models"]
        for granularity in ("image", "pixel")
    ]


def write_page(
    result: Json,
    pictures: Sequence[tuple[npt.NDArray[np.uint8], str]],
    figure: Figure,
    path: Path,
) -> None:
    """Write ``index.html``."""
    names = [model["name"] for model in result["models"]]
    page = Page(
        f"Features of {' and '.join(names)}",
        f"{result['placement']} placement, {result['images']} images of {result['data']}, "
        f"split {result['split']}",
    )
    page.table(["model", "granularity", *LABELS.values()], table_rows(result)).text(READING)
    page.heading("Embeddings").figure(
        figure,
        "Features of length 1 on each model's own principal axes; one scale for all models.",
    )
    page.heading("Maps").text(
        f"From the left: the image with the reference outlined, then {', '.join(names)}. Bright: "
        "where the feature speaks for the predicted region (Grad-CAM)."
    )
    page.images(pictures, columns=2).save(path)


def print_table(result: Json) -> None:
    """Print the collapse measures."""
    from rich.table import Table

    table = Table(title=f"collapse of the {result['placement']} feature, {result['images']} images")
    for column in ("model", "granularity", *LABELS.values()):
        table.add_column(column)
    for row in table_rows(result):
        table.add_row(*map(str, row))
    console().print(table)
