"""Other folders of the same kinds as the cases: other values, names, dialects and orientations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import DISC, OTHER, photo, save
from PIL import Image, ImageDraw

from medisseg.data import annotations
from medisseg.data.folder import SegmentationFolder
from medisseg.data.reading import orient
from medisseg.errors import UserError


def images(root: Path, count: int = 4, folder: str = "images") -> None:
    for k in range(count):
        save(root / folder / f"p{k}.png", photo(k))


def grey(background: int, one: int, two: int, edge: int | None = None) -> np.ndarray:
    mask = np.where(DISC, one, np.where(OTHER, two, background))
    if edge is not None:
        ring = ((np.mgrid[:48, :64] - [[[20]], [[24]]]) ** 2).sum(0) < 230
        mask = np.where(ring & ~DISC, edge, mask)
    return mask.astype(np.uint16 if max(one, two, edge or 0) > 255 else np.uint8)


@pytest.mark.parametrize(
    ("mask", "void"),
    [(grey(0, 2, 2, 255), True), (grey(0, 5, 9, 255), True), (grey(0, 20, 20, 255), True),
     (grey(0, 1, 1, 65535), True), (grey(0, 90, 200), False), (grey(0, 128, 128), False),
     (grey(0, 3000, 700), False), (grey(0, 127, 255), False)],
)  # fmt: skip
def test_values_of_a_folder(tmp_path: Path, mask: np.ndarray, void: bool) -> None:
    images(tmp_path)
    for k in range(4):
        save(tmp_path / "masks" / f"p{k}.png", mask)
    sample = SegmentationFolder(tmp_path)[0]
    assert np.array_equal(sample.mask > 0, DISC | OTHER if not void else (mask != 0) & (mask < 255))
    assert (sample.void is not None) == void


def test_0_1_and_0_255_in_one_folder_are_foreground(tmp_path: Path) -> None:
    images(tmp_path)
    for k in range(4):
        save(tmp_path / "masks" / f"p{k}.png", (DISC * (255 if k % 2 else 1)).astype(np.uint8))
    folder = SegmentationFolder(tmp_path)
    assert all(np.array_equal(sample.mask, DISC) for sample in folder)
    assert "some masks hold 1, others 255" in folder.notes()[0]


def test_palettes_of_another_order_in_every_file(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 180]], np.uint8)
    truth = np.where(DISC, 1, np.where(OTHER, 2, 0))
    images(tmp_path)
    for k, order in enumerate([(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)]):
        place = np.argsort(order)
        picture = Image.fromarray(place[truth].astype(np.uint8), mode="P")
        picture.putpalette(colors[list(order)].tobytes())
        (tmp_path / "masks").mkdir(exist_ok=True)
        picture.save(tmp_path / "masks" / f"p{k}.png")
    for sample in SegmentationFolder(tmp_path, classes=3):
        assert np.array_equal(sample.mask, truth)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [((255, 0, 0, 255), (255, 255, 255, 0)), ((0, 0, 0, 255), (0, 0, 0, 0)),
     ((255, 255, 255, 255), (0, 0, 0, 255)), ((9, 9, 9, 200), (9, 9, 9, 0))],
)  # fmt: skip
def test_transparency(tmp_path: Path, inside: Any, outside: Any) -> None:
    images(tmp_path)
    for k in range(4):
        mask = np.where(DISC[..., None], inside, outside).astype(np.uint8)
        save(tmp_path / "masks" / f"p{k}.png", mask)
    assert np.array_equal(SegmentationFolder(tmp_path)[0].mask, DISC)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("raw", [True, False])
def test_every_orientation(tmp_path: Path, orientation: int, raw: bool) -> None:
    """Masks of the stored pixels or of the picture as it is seen, without EXIF of their own."""
    exif = Image.Exif()
    exif[274] = orientation
    seen = orient(DISC, orientation)
    for k in range(3):
        save(tmp_path / "images" / f"p{k}.jpg", photo(k), exif=exif.tobytes(), quality=95)
        mask = DISC if raw else np.ascontiguousarray(seen)
        save(tmp_path / "masks" / f"p{k}.png", (255 * mask).astype(np.uint8))
    for sample in SegmentationFolder(tmp_path):
        assert np.array_equal(sample.mask, seen)


@pytest.mark.parametrize(
    "names",
    [("p{}_1.png", "p{}_2.png"), ("p{}_mask1.png", "p{}_mask2.png"), ("p{}-mask (1).png",
     "p{}-mask (2).png"), ("p{}/a.png", "p{}/b.png"), ("mask_p{}_0.png", "mask_p{}_1.png")],
)  # fmt: skip
def test_several_masks_are_one(tmp_path: Path, names: tuple[str, str]) -> None:
    images(tmp_path)
    for k in range(4):
        for name, part in zip(names, (DISC, OTHER), strict=True):
            save(tmp_path / "masks" / name.format(k), (255 * part).astype(np.uint8))
    assert np.array_equal(SegmentationFolder(tmp_path)[0].mask, DISC | OTHER)


def test_a_folder_a_case(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"case{k}" / "images" / f"c{k}.png", photo(k))
        save(tmp_path / f"case{k}" / "masks" / "7f.png", (255 * DISC).astype(np.uint8))
        save(tmp_path / f"case{k}" / "masks" / "9a.png", (255 * OTHER).astype(np.uint8))
    folder = SegmentationFolder(tmp_path)
    assert len(folder) == 3 and np.array_equal(folder[1].mask, DISC | OTHER)


def test_two_readers_are_no_parts(tmp_path: Path) -> None:
    images(tmp_path)
    for k in range(4):
        for reader in (1, 2):
            save(tmp_path / "masks" / f"p{k}_reader{reader}.png", (255 * DISC).astype(np.uint8))
    with pytest.raises(UserError, match="p0 has two masks"):
        SegmentationFolder(tmp_path)


SPLITS = {
    "set.csv": "Dateiname;Aufteilung\np0.png;train\np1.png;train\np2.png;valid\np3.png;test\n",
    "train.tsv": "id\tfile\n1\timages/p0.png\n2\timages/p1.png\n",
    "splits.json": json.dumps({"train": ["p0", "p1"], "val": ["p2.png"], "test": ["p3"]}),
    "dataset.json": json.dumps({"training": [{"image": "./images/p0.png", "label": "x"},
                                             {"image": "./images/p1.png", "label": "x"}]}),
    "ImageSets/Main/train.txt": "p0\np1\n",
    "lists/train_list.txt": "P0.PNG masks/p0.png\nP1.PNG masks/p1.png\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_lists_of_other_formats(tmp_path: Path, name: str) -> None:
    images(tmp_path)
    for k in range(4):
        save(tmp_path / "masks" / f"p{k}.png", (255 * DISC).astype(np.uint8))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(SPLITS[name])
    assert SegmentationFolder(tmp_path, "train").names == ("p0", "p1")


@pytest.mark.parametrize("train", ["TrainingSet", "train_images", "trn", "01_Train"])
def test_folders_of_other_names(tmp_path: Path, train: str) -> None:
    for folder in (train, "Test_Data"):
        images(tmp_path / folder, 2)
        for k in range(2):
            save(tmp_path / folder / "masks" / f"p{k}.png", (255 * DISC).astype(np.uint8))
    assert len(SegmentationFolder(tmp_path, "train")) == 2
    assert all("Test_Data" in name for name in SegmentationFolder(tmp_path, "test").names)
    with pytest.raises(UserError, match="no list 'val'"):
        SegmentationFolder(tmp_path, "val")


def test_litter(tmp_path: Path) -> None:
    images(tmp_path)
    for k in range(4):
        save(tmp_path / "masks" / f"p{k}.png", (255 * DISC).astype(np.uint8))
    for name in ("@eaDir/p0.png", "images/.thumbs/p0.png", "images/@eaDir/p1.png", ".git/p.png",
                 "$RECYCLE.BIN/p0.png", "images/~p0.png", "preview.png"):  # fmt: skip
        save(tmp_path / name, photo())
    assert SegmentationFolder(tmp_path).names == ("p0", "p1", "p2", "p3")


BOX = [[10, 8], [40, 8], [40, 30], [10, 30]]


def drawn() -> np.ndarray:
    picture = Image.new("L", (64, 48))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in BOX], fill=1)
    return np.asarray(picture)


def runs() -> list[int]:
    flat = drawn().T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


def compressed(counts: list[int]) -> str:
    """COCO's string of run lengths, as its maskApi.c writes it."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


def coco(segmentation: Any) -> dict[str, Any]:
    item = {"image_id": 1, "category_id": 3, "segmentation": segmentation, "bbox": [10, 8, 31, 23]}
    return {"images": [{"id": 1, "file_name": "p0.png", "height": 48, "width": 64}],
            "annotations": [item], "categories": [{"id": 3, "name": "polyp"}]}  # fmt: skip


def via(region: dict[str, Any]) -> dict[str, Any]:
    item = {"shape_attributes": region, "region_attributes": {"type": "polyp"}}
    return {"p0.png123": {"filename": "p0.png", "size": 123, "regions": [item]}}


def cvat(inside: str) -> str:
    return ('<annotations><image id="0" name="p0.png" width="64" height="48">'
            f"{inside}</image></annotations>")  # fmt: skip


ROWS = ",".join(map(str, [0, 31 * 23]))
DIALECTS: dict[str, tuple[str, Any]] = {
    "coco polygon": ("instances.json", coco([[v for point in BOX for v in point]])),
    "coco runs": ("instances.json", coco({"size": [48, 64], "counts": runs()})),
    "coco string": ("instances.json", coco({"size": [48, 64], "counts": compressed(runs())})),
    "coco box": ("instances.json", coco([])),
    "labelme rectangle": ("p0.json", {"shapes": [{"label": "polyp", "shape_type": "rectangle",
        "points": [BOX[0], BOX[2]]}], "imagePath": "..\\images\\p0.png"}),
    "via polygon": ("via.json", via({"name": "polygon", "all_points_x": [p[0] for p in BOX],
        "all_points_y": [p[1] for p in BOX]})),
    "via project": ("via.json", {"_via_img_metadata": via({"name": "rect", "x": 10, "y": 8,
        "width": 30, "height": 22})}),
    "via table": ("via.csv", "filename,file_size,file_attributes,region_count,region_id,"
        "region_shape_attributes,region_attributes\np0.png,123,{},1,0,"
        '"{""name"":""rect"",""x"":10,""y"":8,""width"":30,""height"":22}","{""type"":""polyp""}"\n'),
    "yolo box": ("labels/p0.txt", f"0 {25.5 / 64} {19.5 / 48} {31 / 64} {23 / 48}\n"),
    "yolo box of a prediction": ("labels/p0.txt", f"0 {25.5 / 64} {19.5 / 48} {31 / 64} "
        f"{23 / 48} 9.1e-01\n"),
    "yolo polygon": ("labels/p0.txt", "0 " + " ".join(f"{x / 64} {y / 48}" for x, y in BOX)),
    "cvat polygon": ("annotations.xml",
        cvat('<polygon label="polyp" points="10,8;40,8;40,30;10,30"/>')),
    "cvat mask": ("annotations.xml", cvat(f'<mask label="polyp" rle="{ROWS}" left="10" top="8" '
        'width="31" height="23"/>')),
    "supervisely": ("ann/p0.png.json", {"size": {"height": 48, "width": 64}, "objects": [
        {"classTitle": "polyp", "points": {"exterior": BOX, "interior": []}}]}),
    "pascal box": ("p0.xml", "<annotation><filename>p0.png</filename><object><name>polyp</name>"
        "<bndbox><xmin>10</xmin><ymin>8</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>"
        "</annotation>"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_of_annotations(tmp_path: Path, dialect: str) -> None:
    name, content = DIALECTS[dialect]
    save(tmp_path / "images" / "p0.png", photo())
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    if dialect.startswith("yolo"):
        (tmp_path / "data.yaml").write_text("names: {0: polyp}\n")
    folder = SegmentationFolder(tmp_path)
    assert np.array_equal(folder[0].mask, drawn()), dialect
    assert folder.contents.labels == ("polyp",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("i.json", coco({"size": [48, 64], "counts": [10**9]}), "cover 1000000000 pixels"),
     ("i.json", coco({"size": [60000, 60000], "counts": [3600000000]}), "within an image of 64x48"),
     ("i.json", coco({"size": [48, 64], "counts": [2**63 - 1, 2**63 - 1, 3074]}), "runs of a"),
     ("i.json", coco({"size": [48, 64], "counts": [10**30]}), "runs of a 'polyp' cover 1000000"),
     ("i.json", coco({"size": [48, float("inf")], "counts": [1]}), "COCO, but is damaged"),
     ("i.json", '{"images": [], "annotations": ' + "[" * 100_000, "nested too deeply"),
     ("v.csv", "filename,region_shape_attributes,region_attributes\np0.png," + "9" * 200_000 + ",",
      "VIA table, but is damaged"),
     ("data.yaml", "names: " + "[" * 20_000, "nested more than 100 levels"),
     ("data.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{n}: &{n} [" + ",".join([f"*{b}"] * 9)
      + "]\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)), "more than 100000 values"),
     ("p0.json", {"shapes": [{"label": 1}], "imagePath": "p0.png"}, "LabelMe, but is damaged"),
     ("a.xml", '<!DOCTYPE x [<!ENTITY a "b">]><annotations/>', "defines entities")],
)  # fmt: skip
def test_annotations_are_not_believed(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    save(tmp_path / "images" / "p0.png", photo())
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        list(SegmentationFolder(tmp_path))
    assert "\n" not in str(caught.value)


def test_compressed_runs_are_read_back() -> None:
    counts = [5, 9, 700, 3, 40, 1, 6]
    assert annotations._uncompressed(compressed(counts)) == counts


def test_a_long_number_is_no_work(tmp_path: Path) -> None:
    """A pattern that tries every way to split digits takes hours for a million of them."""
    save(tmp_path / "images" / "p0.png", photo())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "p0.txt").write_text("0 0.5 0.5 0.5 " + "1" * 1_000_000 + "x\n")
    with pytest.raises(UserError, match="no mask for p0"):
        SegmentationFolder(tmp_path)


@pytest.mark.parametrize("names", ["polyp", "1", "[polyp]", "{0: polyp, x: y}", "null"])
def test_names_of_yolo_in_any_form(tmp_path: Path, names: str) -> None:
    save(tmp_path / "images" / "p0.png", photo())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "p0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    folder = SegmentationFolder(tmp_path)
    assert folder[0].mask.sum() == 32 * 24
    assert folder.contents.labels[0] == ("polyp" if names[0] in "[{" else "0")
