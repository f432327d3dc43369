"""Folders as strangers bring them, tried after all kinds were mended: what gave way, and held."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import DISC, OTHER, photo, png, save
from PIL import Image

from medisseg.cli import main
from medisseg.data.folder import SegmentationFolder
from medisseg.errors import UserError
from medisseg.evaluation.predict import find_jobs

MASK = (255 * DISC).astype(np.uint8)


def pairs(root: Path, count: int = 4, name: str = "p{}.png") -> None:
    for k in range(count):
        save(root / "images" / name.format(k), photo(k))
        save(root / "masks" / name.format(k), MASK)


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(SegmentationFolder(root, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS = [("p0.png", "train"), ("p1.png", "train"), ("p2.png", "val"), ("p3.png", "test")]
SPLITS = {
    "rows.json": json.dumps([{"image": name, "split": part} for name, part in ROWS]),
    "map.json": json.dumps(dict(ROWS)),
    "nested.json": json.dumps({name: {"subset": part, "age": 61} for name, part in ROWS}),
    "metadata.jsonl": "\n".join(json.dumps({"file_name": n, "split": p}) for n, p in ROWS),
    "windows.csv": "path;set\n" + "".join(f"C:\\d\\{n.upper()};{p.upper()}\n" for n, p in ROWS),
    "flags.csv": "image,train,val,test\np0,1,0,0\np1,1,0,0\np2,0,1,0\np3,0,0,1\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_splits_in_rows(tmp_path: Path, name: str) -> None:
    pairs(tmp_path)
    (tmp_path / name).write_text(SPLITS[name])
    found = {part: SegmentationFolder(tmp_path, part).names for part in ("train", "val", "test")}
    assert found == {"train": ("p0", "p1"), "val": ("p2",), "test": ("p3",)}


@pytest.mark.parametrize("title", ["is_train", "train", "in_training"])
@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("True", "False")])
def test_a_column_that_says_yes_or_no(tmp_path: Path, title: str, yes: str, no: str) -> None:
    pairs(tmp_path)
    rows = "".join(f"p{k},{yes if k < 3 else no}\n" for k in range(4))
    (tmp_path / "about.csv").write_text(f"image,{title}\n{rows}")
    assert SegmentationFolder(tmp_path, "train").names == ("p0", "p1", "p2")
    assert SegmentationFolder(tmp_path, "test").names == ("p3",)


def test_splits_that_are_not_understood_are_said(tmp_path: Path) -> None:
    pairs(tmp_path / "a")
    (tmp_path / "a" / "cv.csv").write_text("image,fold\np0,0\np1,1\np2,2\np3,3\n")
    assert "cv.csv has a column 'fold' that is not" in " ".join(
        SegmentationFolder(tmp_path / "a").notes()
    )
    for part in ("entrainement", "essai"):
        pairs(tmp_path / "b" / part, 2)
    reported = " ".join(SegmentationFolder(tmp_path / "b").notes())
    assert "the folders entrainement look like splits, but are not understood" in reported
    (tmp_path / "a" / "cv.csv").write_text("image,patient_sex\np0,m\np1,f\np2,m\np3,f\n")
    assert SegmentationFolder(tmp_path / "a").notes() == []


def test_german_folders_are_splits(tmp_path: Path) -> None:
    for part in ("Trainingsdaten", "Testbilder"):
        pairs(tmp_path / part, 2)
    assert SegmentationFolder(tmp_path, "test").names == ("Testbilder/p0", "Testbilder/p1")


def test_coco_of_roboflow(tmp_path: Path) -> None:
    """A file a split beside its images, and a first category that is the name of the set."""
    for part in ("train", "valid", "test"):
        save(tmp_path / part / f"{part}.jpg", photo())
        reported = {
            "images": [{"id": 0, "file_name": f"{part}.jpg", "height": 48, "width": 64}],
            "categories": [{"id": 0, "name": "polyps", "supercategory": "none"},
                           {"id": 1, "name": "polyp", "supercategory": "polyps"}],
            "annotations": [{"image_id": 0, "category_id": 1, "bbox": [10, 8, 31, 23],
                             "segmentation": [[10, 8, 40, 8, 40, 30, 10, 30]]}],
        }  # fmt: skip
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(reported))
    folder = SegmentationFolder(tmp_path, "val", classes=2)
    assert folder.names == ("valid",) and folder.contents.labels == ("polyp",)
    assert folder[0].mask.sum() == 31 * 23


@pytest.mark.parametrize("bits", [2, 4])
def test_png_of_few_bits_holds_its_own_values(tmp_path: Path, bits: int) -> None:
    """Pillow spreads 0 to 15 over 0 to 255: indices would become others."""
    truth = np.where(DISC, 2, np.where(OTHER, 1, 0)).astype(np.uint8)
    fields = truth.reshape(48, -1, 8 // bits)
    packed = sum(fields[:, :, k] << (8 - bits * (k + 1)) for k in range(8 // bits)).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    pairs(tmp_path)
    for k in range(4):
        (tmp_path / "masks" / f"p{k}.png").write_bytes(png(64, 48, rows, bits))
    for classes in (3, 4):
        assert np.array_equal(SegmentationFolder(tmp_path, classes=classes)[0].mask, truth)


def test_masks_that_begin_with_their_images_name(tmp_path: Path) -> None:
    for k in (1, 12):
        save(tmp_path / "images" / f"{k}.png", photo(k))
        save(tmp_path / "masks" / f"{k}_polyp1.png", MASK)
        save(tmp_path / "masks" / f"{k}_polyp2.png", (255 * OTHER).astype(np.uint8))
    for sample in SegmentationFolder(tmp_path):
        assert np.array_equal(sample.mask, DISC | OTHER)
    os.rename(tmp_path / "masks" / "1_polyp1.png", tmp_path / "masks" / "1_old.png")
    assert "1 has two masks" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("masks/p0.npy", r"masks/p0.npy is of a kind that is not read"),
     ("images/p0.xcf", "p0.xcf is of a kind that is not read"),
     ("masks/q-17.png", "q-17.png the name is no image's (1 such masks)")],
)  # fmt: skip
def test_what_may_be_the_missing_mask_is_named(tmp_path: Path, name: str, message: str) -> None:
    for k in range(2):
        save(tmp_path / "images" / f"p{k}.png", photo(k))
    (tmp_path / "masks").mkdir()
    save(tmp_path / name, MASK, format="png")
    assert message in refusal(tmp_path)


def test_annotations_without_images(tmp_path: Path) -> None:
    (tmp_path / "p0.json").write_text('{"shapes": [], "imagePath": "p0.png", "imageData": "aGk="}')
    assert "annotations such as " in (reported := refusal(tmp_path)) and "p0.json need" in reported


@pytest.mark.parametrize(
    ("inside", "outside"), [((0, 0, 255), (255, 255, 255)), ((253, 231, 37), (68, 1, 84))]
)
def test_colours_on_another_background(tmp_path: Path, inside: Any, outside: Any) -> None:
    pairs(tmp_path)
    for k in range(4):
        save(
            tmp_path / "masks" / f"p{k}.png",
            np.where(DISC[..., None], inside, outside).astype(np.uint8),
        )
    assert np.array_equal(SegmentationFolder(tmp_path)[0].mask, DISC)


MASKS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "p{}.bmp": (MASK, {}), "p{}.jpg": (MASK, {"quality": 60}),
    "p{}.webp": (np.dstack([MASK] * 3), {"lossless": True}),
    "p{}.tif": (DISC, {"compression": "group4"}), "P{}.TIF": ((70000 * DISC).astype(np.int32), {}),
    "p{}.tiff": ((200.5 * DISC + 3.2).astype(np.float32), {}),
    "p{}_mask.png": (np.dstack([MASK, np.full_like(MASK, 255)]), {}),
    "p{}-gt.png": ((254 * DISC).astype(np.uint8), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_format(tmp_path: Path, name: str) -> None:
    pixels, options = MASKS[name]
    for k in range(4):
        save(tmp_path / "images" / f"p{k}.png", photo(k))
        save(tmp_path / "masks" / name.format(k), pixels, **options)
    for sample in SegmentationFolder(tmp_path):
        assert np.array_equal(sample.mask, DISC) and sample.void is None


@pytest.mark.parametrize("form", ["big-endian", "planes", "cmyk", "palette", "wrong suffix"])
def test_images_of_every_format(tmp_path: Path, form: str) -> None:
    import tifffile

    pairs(tmp_path)
    for k in range(4):
        image, path = Image.fromarray(photo(k)), tmp_path / "images" / f"p{k}.tif"
        path.with_suffix(".png").unlink()
        if form == "big-endian":
            tifffile.imwrite(path, photo(k).astype(">u2") * 257, byteorder=">", photometric="rgb")
        elif form == "planes":
            planes = photo(k).transpose(2, 0, 1)
            tifffile.imwrite(path, planes, planarconfig="separate", photometric="rgb")
        elif form == "cmyk":
            image.convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
        elif form == "palette":
            image.quantize(200).save(path.with_suffix(".png"))
        else:
            image.save(path.with_suffix(".png"), "JPEG", quality=95)
    for k, sample in enumerate(SegmentationFolder(tmp_path)):
        apart = np.abs(sample.image.astype(int) - photo(k)).mean()
        assert apart == 0 if form in ("big-endian", "planes") else apart < 5
        assert np.array_equal(sample.mask, DISC)


def test_five_channels_are_refused(tmp_path: Path) -> None:
    import tifffile

    pairs(tmp_path, 1)
    (tmp_path / "images" / "p0.png").unlink()
    tifffile.imwrite(tmp_path / "images" / "p0.tif", np.zeros((48, 64, 5), np.uint8),
                     photometric="minisblack", planarconfig="contig")  # fmt: skip
    assert "has 5 channels; expected 1 (grey) or 3 (RGB)" in refusal(tmp_path)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_in_png_and_tiff(tmp_path: Path, orientation: int) -> None:
    """An image and its mask, both stored turned and both saying so, in other formats than JPEG."""
    exif = Image.Exif()
    exif[274] = orientation
    upright = {3: np.rot90(DISC, 2), 6: np.rot90(DISC, -1), 8: np.rot90(DISC, 1)}[orientation]
    for k in range(3):
        save(tmp_path / "images" / f"p{k}.png", photo(k), exif=exif)
        save(tmp_path / "masks" / f"p{k}.png", MASK, exif=exif)
        save(tmp_path / "images" / f"t{k}.tif", photo(k), tiffinfo={274: orientation})
        save(tmp_path / "masks" / f"t{k}.tif", MASK, tiffinfo={274: orientation})
    for sample in SegmentationFolder(tmp_path):
        assert np.array_equal(sample.mask, upright), sample.name
        assert np.array_equal(sample.image[:, :, 0] > 120, upright), sample.name


BAD = ["empty", "text", "folder", "link", "cut", "comment"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_stops_no_other(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    pairs(data)
    bad = data / "images" / "p1.png"
    raw = bad.read_bytes()
    bad.unlink()
    if kind == "folder":
        bad.mkdir()
    elif kind == "link":
        bad.symlink_to(tmp_path / "nowhere.png")
    elif kind == "comment":  # 100 MB of text in 100 KB
        text = b"zTXta\0\0" + zlib.compress(b"x" * 100_000_000)
        size, check = struct.pack(">I", len(text) - 4), struct.pack(">I", zlib.crc32(text))
        bad.write_bytes(raw[:33] + size + text + check + raw[33:])
    else:
        bad.write_bytes({"empty": b"", "text": b"hello", "cut": raw[:200]}[kind])
    jobs = find_jobs([str(data)], tmp_path / "out")
    assert len(jobs) == (3 if kind == "folder" else 4)
    assert main(["data", str(data)]) == 0
    reported = capsys.readouterr().out
    assert ("1 of 4 cannot be used" in reported) == (kind != "folder")
    assert "3 PNG" in reported


def test_names_in_an_old_encoding_are_refused_by_folder_and_prediction(tmp_path: Path) -> None:
    pairs(tmp_path, name="caf\udce9{}.png")  # the byte E9
    message = r"caf\\udce90\.png is not named in UTF-8; rename it .*convmv"
    with pytest.raises(UserError, match=message.replace(r"\\udce9", "\udce9")):
        SegmentationFolder(tmp_path)
    one = str(tmp_path / "images" / "caf\udce90.png")
    for given in (str(tmp_path), one, str(tmp_path / "images" / "*.png")):
        with pytest.raises(UserError, match="is not named in UTF-8"):
            find_jobs([given], tmp_path / "out")
