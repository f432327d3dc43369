"""Folders as people bring them: ``shared/cases/data``, each with its right value or its one line.

The cases are small and synthetic; ``plain`` holds the masks that most of them store in another way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.config import load_config
from medisseg.data.folder import SegmentationFolder, find_contents
from medisseg.data.reading import orient
from medisseg.errors import UserError
from medisseg.evaluation.predict import find_jobs
from medisseg.training.batches import choose_names, open_folders

# Stored in another way than in ``plain``, the same masks.
SAME = (
    "plain", "bool-1bit", "drive-gif", "etis", "float01-tif", "gif-images", "ipynb-checkpoints",
    "isic2018", "jp2", "jpeg-png-noise", "list-of-pairs", "list-with-header", "macos",
    "mask-off-by-one", "mmseg", "one-colour-red", "one-image", "palette-quantized", "readme-txt",
    "rgba-alpha", "rgba-colour", "sixteen-bit-65535", "three-images", "two-images", "unicode-nfd",
    "voc", "void-255",
)  # fmt: skip
# Share of the first image that is foreground, counted in its stored values.
SHARES = {
    "busi": 0.0981, "several-masks": 0.0981, "classes-0-127-255": 0.0981, "classes-3": 0.0981,
    "classes-palette": 0.0981, "neopolyp-colours": 0.0981, "instances-above-127": 0.0980,
    "instances-above-127-small": 0.0980, "sixteen-bit-ids": 0.0980, "ids-small-above-127": 0.0150,
    "inverted": 0.9601, "empty-masks": 0.0,
}  # fmt: skip
REFUSED = {
    "image-float-range": r"p0\.tif spans 1\.002e\+04 to 6\.04e\+04 and .*p1\.tif spans -0\.6863",
    "mask-transposed": r"p0\.png is 96x128 but its image 128x96",
    "negatives-unmasked": r"no mask for p6, p7 \(2 of 8\).*unmasked=negative",
    "same-stem": r"two images named p0: .*p0\.jpg and .*p0\.png",
    "truncated-jpeg": r"p1\.jpg is not a readable image",
    "two-mask-folders": r"p0 has two masks, .*masks_reader1/p0\.png and .*masks_reader2/p0\.png",
}
SPLITS = {
    "csv-splits": {"train": 9, "val": 3},
    "list-of-pairs": {"train": 3, "val": 1},
    "list-with-header": {"train": 3, "val": 1},
    "mmseg": {"train": 3, "val": 1},
    "voc": {"train": 3, "val": 1},
    "yolo-seg": {"train": 3, "val": 1},
    "pranet": {"train": 4, "test": 12},
}


@pytest.fixture
def cases(shared: Path) -> Path:
    return shared / "cases" / "data"


def plain_masks(cases: Path) -> list[np.ndarray]:
    files = [cases / "plain" / "masks" / f"p{i}.png" for i in range(12)]
    return [np.asarray(Image.open(file)) > 0 for file in files]


@pytest.mark.parametrize("name", SAME)
def test_masks_stored_in_another_way(cases: Path, name: str) -> None:
    folder = SegmentationFolder(cases / name)
    for sample, truth in zip(folder, plain_masks(cases), strict=False):
        assert sample.image.shape[:2] == sample.mask.shape
        assert np.array_equal(sample.mask, truth), sample.name


@pytest.mark.parametrize("name", ["coco", "labelme", "yolo-seg"])
def test_polygons_become_the_masks_that_they_outline(cases: Path, name: str) -> None:
    """The cases' polygons are coarser than the masks: 98 % of Dice is what they keep."""
    for sample, truth in zip(SegmentationFolder(cases / name), plain_masks(cases), strict=False):
        both = 2 * np.sum(sample.mask.astype(bool) & truth) / (sample.mask.sum() + truth.sum())
        assert both > 0.98


@pytest.mark.parametrize("name", SHARES)
def test_share_of_foreground(cases: Path, name: str) -> None:
    assert SegmentationFolder(cases / name)[0].mask.mean() == pytest.approx(SHARES[name], abs=1e-4)


@pytest.mark.parametrize("name", ["void-255", "voc"])
def test_255_beside_small_indices_is_void(cases: Path, name: str) -> None:
    void = SegmentationFolder(cases / name)[0].void
    assert void is not None and void.sum() == 72


@pytest.mark.parametrize("name", ["classes-3", "classes-palette", "classes-0-127-255"])
def test_three_classes(cases: Path, name: str) -> None:
    sample = SegmentationFolder(cases / name, classes=3)[0]
    assert np.bincount(sample.mask.ravel()).tolist() == [11082, 350, 856]


def test_colours_are_classes_red_first(cases: Path) -> None:
    folder = SegmentationFolder(cases / "neopolyp-colours", classes=3)
    red = np.asarray(Image.open(cases / "neopolyp-colours/masks/p0.png"))[:, :, 0] == 255
    assert np.array_equal(folder[0].mask == 1, red)
    assert np.bincount(folder[0].mask.ravel()).tolist() == [11082, 350, 856]
    assert "#ff0000, #00ff00" in folder.convention.notes[0]


def test_probabilities_are_cut_at_one_half(cases: Path) -> None:
    stored = np.asarray(Image.open(cases / "probability-tif/masks/p0.tif"))
    assert np.array_equal(SegmentationFolder(cases / "probability-tif")[0].mask, stored > 0.5)


@pytest.mark.parametrize(
    ("name", "orientation", "mask_is_seen"),
    [("exif-180-raw", 3, False), ("exif-180-seen", 3, True), ("exif-90-raw", 6, False),
     ("exif-90-seen", 6, True), ("exif-both", 6, False)],
)  # fmt: skip
def test_masks_lie_on_their_images(
    cases: Path, name: str, orientation: int, mask_is_seen: bool
) -> None:
    """All five show what ``plain`` shows, turned: the mask must be turned as the image is."""
    folder = SegmentationFolder(cases / name)
    for sample, truth in zip(folder, plain_masks(cases), strict=False):
        assert np.array_equal(sample.mask, orient(truth, orientation))
        stored = SegmentationFolder(cases / "plain")[int(sample.name[1:])].image
        seen = orient(stored, orientation).astype(int)
        assert sample.image.shape == seen.shape
        assert np.abs(sample.image - seen).mean() < 6  # another JPEG of the same picture


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(cases: Path, name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        list(SegmentationFolder(cases / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SPLITS)
def test_splits_that_are_there_are_taken(cases: Path, name: str) -> None:
    found = {part: len(SegmentationFolder(cases / name, part)) for part in SPLITS[name]}
    assert found == SPLITS[name]


def test_nothing_is_drawn_over_folders_of_a_split(cases: Path) -> None:
    with pytest.raises(UserError, match=r"no list 'val'.*train \(folders TrainDataset\)"):
        SegmentationFolder(cases / "pranet", "val")
    assert len(SegmentationFolder(cases / "pranet", "CVC-300")) == 4


def test_a_readme_is_no_list(cases: Path) -> None:
    assert len(SegmentationFolder(cases / "readme-txt", "train")) == 10


def test_unmasked_images_by_choice(cases: Path) -> None:
    root = cases / "negatives-unmasked"
    negative = SegmentationFolder(root, unmasked="negative")
    assert len(negative) == 8 and not negative[7].mask.any()
    assert len(SegmentationFolder(root, unmasked="skip")) == 6


@pytest.mark.parametrize("name", ["voc", "isic2018"])
def test_what_is_left_out_is_said(cases: Path, name: str) -> None:
    left = find_contents(cases / name).left_out
    wanted = {"voc": "SegmentationObject", "isic2018": "attribute"}[name]
    assert left and all(wanted in str(path) for path in left)


@pytest.mark.parametrize(
    ("name", "count"),
    [("macos", 4), ("ipynb-checkpoints", 4), ("pranet", 16), ("busi", 4), ("plain", 12),
     ("isic2018", 4), ("voc", 4), ("mmseg", 4)],
)  # fmt: skip
def test_predict_finds_what_training_finds(cases: Path, name: str, count: int) -> None:
    found = [job.image for job in find_jobs([str(cases / name)], Path("out"))]
    assert found == list(SegmentationFolder(cases / name).images().values())
    assert len(found) == count


def test_no_test_image_is_trained_on(cases: Path) -> None:
    for name in ("demo", "edge"):
        config = load_config(name, [f"data={cases / 'pranet'}"])
        parts, warnings = choose_names(config, open_folders(config))
        names = parts["train"][0] + parts["validation"][0]
        assert len(names) == 4 and not any(name.startswith("TestDataset") for name in names)
    assert "without 'val'" in warnings[0]
