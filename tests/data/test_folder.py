"""Data folders as people have them, and what is said about those that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medisseg.convention import InputConvention
from medisseg.data.folder import SegmentationFolder, load, resize_mask
from medisseg.data.masks import read_mask
from medisseg.data.reading import read_image
from medisseg.errors import UserError

DISC = ((np.mgrid[:32, :40] - [[[16]], [[20]]]) ** 2).sum(0) < 100


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 40, 3)).astype(np.uint8)


def pair(root: Path, image: str, mask: str, seed: int = 0) -> None:
    write(root / image, photo(seed))
    write(root / mask, (255 * DISC).astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.png", "masks/a.png"),
        ("images/a.jpg", "masks/a.png"),
        ("images/a.tif", "masks/a_mask.bmp"),
        ("images/a.png", "masks/a_segmentation.png"),
        ("Original/a.tif", "Ground Truth/a.tif"),
        ("a.bmp", "a_anno.bmp"),
        ("ISBI2016_ISIC_Part1_Training_Data/a.jpg",
         "ISBI2016_ISIC_Part1_Training_GroundTruth/a_Segmentation.png"),
        ("train/images/a.png", "train/labels/a.png"),
        ("Kvasir-SEG/images/a.jpg", "Kvasir-SEG/masks/a.jpg"),
    ],
)  # fmt: skip
def test_usual_layouts(tmp_path: Path, image: str, mask: str) -> None:
    pair(tmp_path, image, mask)
    sample = SegmentationFolder(tmp_path)[0]
    assert sample.name == "a"
    assert np.array_equal(sample.mask, DISC.astype(np.uint8))
    if not image.endswith("jpg"):
        assert np.array_equal(sample.image, photo())


def test_equal_names_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "test")):
        write(tmp_path / part / "images" / "7.png", photo(number))
        write(tmp_path / part / "masks" / "7.png", np.full((32, 40), 255 * number, np.uint8))
    folder = SegmentationFolder(tmp_path, "test")
    assert folder.names == ("test/7",)
    assert np.array_equal(folder[0].image, photo(1)) and folder[0].mask.all()


def test_a_folder_beside_images_and_masks_is_left_alone(tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png")
    pair(tmp_path, "original-resolution-samples/a.png", "original-resolution-samples/a_mask.png")
    assert SegmentationFolder(tmp_path).names == ("a",)


def test_jpeg_masks_are_thresholded_above_127(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", (255 * DISC).astype(np.uint8), quality=60)
    with Image.open(path) as file:
        assert len(np.unique(np.asarray(file))) > 10  # compression did make grey edges
    assert np.mean(read_mask(path) != DISC) < 0.02
    colored = np.repeat((255 * DISC).astype(np.uint8)[:, :, None], 3, 2)
    assert np.mean(read_mask(write(tmp_path / "b.jpg", colored)) != DISC) < 0.02


@pytest.mark.parametrize(
    "values",
    [
        DISC.astype(np.uint8),
        DISC,
        255 * DISC.astype(np.uint8),
        np.where(DISC, np.arange(40) // 8 + 1, 0).astype(np.uint8),
        np.where(DISC, 300, 0).astype(np.uint16),
        np.where(DISC, 255, np.where(np.roll(DISC, 1) & ~DISC, 90, 0)).astype(np.uint8),
    ],
    ids=["0/1", "bool", "0/255", "instances", "16 bit", "grey edge"],
)
def test_binary_and_instance_masks_become_foreground(tmp_path: Path, values: np.ndarray) -> None:
    assert np.array_equal(read_mask(write(tmp_path / "a.png", values)), DISC)


def test_a_palette_holds_class_indices(tmp_path: Path) -> None:
    indices = np.where(DISC, 2, 0).astype(np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png", classes=3), indices)


@pytest.mark.parametrize(
    ("name", "values", "classes", "message"),
    [
        ("a.png", photo()[:, :, 0], 1, "neither|expected a binary mask"),
        ("a.png", photo(), 1, "colour picture"),
        ("a.png", np.where(DISC, 9, 0).astype(np.uint8), 9, "values 0, 9; expected .* 0 to 8"),
        ("a.jpg", (255 * DISC).astype(np.uint8), 3, "JPEG changes class indices"),
    ],
)
def test_masks_of_other_values_are_refused(
    tmp_path: Path, name: str, values: np.ndarray, classes: int, message: str
) -> None:
    path = write(tmp_path / name, values)
    with pytest.raises(UserError, match=message):
        read_mask(path, classes)


def test_16_bit_and_grey_images_become_uint8_rgb(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)
    found = read_image(write(tmp_path / "a.png", grey))
    assert np.array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, 2))
    twelve = read_image(write(tmp_path / "b.png", (grey >> 4).astype(np.uint16)))
    assert np.array_equal(twelve, found)


def test_missing_masks_are_named(tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png")
    write(tmp_path / "images/b.png", photo())
    with pytest.raises(UserError, match=r"no mask for b \(1 of 2\)"):
        SegmentationFolder(tmp_path)
    assert len(SegmentationFolder(tmp_path, ["a"])) == 1


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "images/a.png", photo())
    write(tmp_path / "masks/a.png", np.zeros((16, 40), np.uint8))
    with pytest.raises(UserError, match=r"a\.png is 40x16 but its image 40x32"):
        SegmentationFolder(tmp_path)[0]


def test_unreadable_files_are_counted(tmp_path: Path) -> None:
    for name in "abc":
        pair(tmp_path, f"images/{name}.png", f"masks/{name}.png")
    for name in "bc":
        whole = (tmp_path / f"images/{name}.png").read_bytes()
        (tmp_path / f"images/{name}.png").write_bytes(whole[: len(whole) // 40])
    with pytest.raises(UserError, match=r"b\.png is not a readable image .* \(and 1 more of 3\)"):
        load(SegmentationFolder(tmp_path), InputConvention(size=(32, 32)))


@pytest.mark.parametrize("make", [False, True])
def test_no_folder_and_no_images(tmp_path: Path, make: bool) -> None:
    root = tmp_path / "data"
    if make:
        root.mkdir()
    with pytest.raises(UserError, match="no images in" if make else "no data folder"):
        SegmentationFolder(root)


def test_load_resizes_images_and_masks_alike(tmp_path: Path) -> None:
    """A bright disc on black: where the resized image is bright, the resized mask is 1."""
    image = np.repeat((255 * DISC).astype(np.uint8)[:, :, None], 3, 2)
    write(tmp_path / "images/a.png", image)
    write(tmp_path / "masks/a.png", (255 * DISC).astype(np.uint8))
    for rule in ("stretch", "letterbox"):
        convention = InputConvention(size=(64, 96), resize=rule)
        images, masks = load(SegmentationFolder(tmp_path), convention)
        assert images.shape == (1, 3, 64, 96) and images.dtype == masks.dtype == np.uint8
        bright = images[0, 0] > 127
        assert np.mean(bright != masks[0]) < 0.01 and bright.sum() > 500


def test_resize_mask_is_nearest_with_half_pixel_centres() -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    doubled = resize_mask(mask, InputConvention(size=(16, 16)))
    assert np.array_equal(doubled, np.kron(mask, np.ones((2, 2), np.uint8)))
    wide = resize_mask(
        np.ones((16, 32), np.uint8), InputConvention(size=(32, 32), resize="letterbox")
    )
    assert np.array_equal(wide.sum(1), [0] * 8 + [32] * 16 + [0] * 8)
