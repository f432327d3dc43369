"""Annotation files of COCO, LabelMe, YOLO, CVAT, VIA, Supervisely and Pascal VOC (boxes).

Which tool wrote a file is told from what is in it. Nothing of a file is executed or believed:
what does not fit is one line that names the file.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medisseg.data.layout import natural, walk
from medisseg.data.names import Names, read_text
from medisseg.data.reading import BadFile
from medisseg.data.shapes import Drawing, Shape, class_labels
from medisseg.errors import UserError
from medisseg.schema import Json
from medisseg.untrusted import Excessive, parse_json, read_yaml

Parsed = Any  # of a file, as json or ElementTree read it: not checked yet
LARGEST = 500_000_000  # bytes of one file
CLASS_FILES = ("classes.txt", "labels.txt", "obj.names", "class_names.txt")
# What a reader meets in a file that is not as its tool writes it.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, csv.Error)
Found = Iterator[tuple[str, Drawing]]


@dataclass
class Annotations:
    """What annotation files say about the images of a folder.

    Attributes:
        drawings: The regions of an image, by its name.
        labels: In the order of their classes.
        tools: Files by the tool that wrote them.
        boxes: Shapes that are boxes, whose mask is the whole rectangle.
        skipped: Points and lines, which have no area.
        unknown: Annotated images that are not there.
    """

    drawings: dict[str, Drawing] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    tools: dict[str, int] = field(default_factory=dict)
    boxes: int = 0
    skipped: int = 0
    unknown: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return what was understood, in words."""
        if not self.tools:
            return []
        tools = ", ".join(f"{tool} ({number} files)" for tool, number in self.tools.items())
        found = [f"masks are drawn from {tools}, labels: {', '.join(self.labels) or 'none'}"]
        if self.boxes:
            found.append(f"{self.boxes} regions are boxes: their mask is the whole rectangle")
        if self.skipped:
            found.append(f"{self.skipped} points or lines have no area and are left out")
        if self.unknown:
            found.append(
                f"{len(self.unknown)} annotated images are not there, e.g. {self.unknown[0]}"
            )
        return found


def find_annotations(root: Path, images: Mapping[str, Path]) -> Annotations:
    """Return what the annotation files below a folder draw on its images.

    Raises:
        BadFile: A file that a tool wrote is damaged.
    """
    names = Names(root, images)
    found = Annotations()
    known: list[str] = []
    classes = None
    for path in walk(root):
        if path.name.lower() in CLASS_FILES:
            classes = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            continue
        tool, content = _tool(path, names)
        if tool is None:
            continue
        try:
            known += _known_labels(tool, content)
            drawn = list(READERS[tool](content, path))
        except DAMAGED as error:
            raise BadFile(
                f"{path} looks like a file of {tool}, but is damaged: {error!r}"
            ) from error
        found.tools[tool] = found.tools.get(tool, 0) + 1
        for image, drawing in drawn:
            _take(found, names, image, drawing)
    if "YOLO" in found.tools:
        known = classes or _yolo_names(root)
        found.drawings = {n: _named(d, known) for n, d in found.drawings.items()}
        missing = [n for n in images if n not in found.drawings]
        found.drawings |= {n: Drawing((), root, shares=True) for n in missing}
    found.labels = class_labels(
        list(found.drawings.values()), list(dict.fromkeys(classes or known))
    )
    return found


def _take(found: Annotations, names: Names, image: str, drawing: Drawing) -> None:
    """Add an image's shapes, wherever the tool believes the image to be."""
    folder = drawing.source.parent.relative_to(names.root).as_posix()
    name = names.find(f"{folder}/{image}") or names.find(image) or names.find(drawing.source.stem)
    if name is None:
        found.unknown.append(image)
        return
    kept = tuple(shape for shape in drawing.shapes if shape.kind != "skipped")
    found.skipped += len(drawing.shapes) - len(kept)
    found.boxes += sum(shape.kind == "box" for shape in kept)
    before = found.drawings[name].shapes if name in found.drawings else ()
    found.drawings[name] = Drawing((*before, *kept), drawing.source, drawing.size, drawing.shares)


def _tool(path: Path, names: Names) -> tuple[str | None, Parsed]:
    """Return the tool that wrote a file, and the file's content."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            content = parse_json(read_text(path, LARGEST), path)
            return _json_tool(content), content
        if suffix == ".xml":
            return _xml_tool(path)
        if suffix == ".csv":
            text = read_text(path, LARGEST)
            return ("VIA table" if "region_shape_attributes" in text[:500] else None), text
        if suffix == ".txt" and names.find(path.stem) is not None:
            text = read_text(path)
            return ("YOLO" if _is_yolo(text) else None), text
        if suffix == ".txt" and path.stem.lower() not in ("train", "val", "test"):
            folder = path.parent.relative_to(names.root).as_posix()
            inside = re.sub(r"(^|/)labels(/|$)", r"\1images\2", folder)
            if names.find(f"{inside}/{path.stem}") is not None:
                text = read_text(path)
                return ("YOLO" if _is_yolo(text) else None), text
    except ValueError:
        return None, None  # no annotation file, or none of these
    return None, None


def _json_tool(content: Parsed) -> str | None:
    if isinstance(content, dict):
        if "annotations" in content and "images" in content:
            return "COCO"
        if "shapes" in content and "imagePath" in content:
            return "LabelMe"
        if "objects" in content and "size" in content:
            return "Supervisely"
        if "_via_img_metadata" in content:
            return "VIA"
        first = next(iter(content.values()), None)
        if isinstance(first, dict) and "regions" in first and "filename" in first:
            return "VIA"
    return None


def _xml_tool(path: Path) -> tuple[str | None, Parsed]:
    from xml.etree import ElementTree

    text = read_text(path, LARGEST)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise BadFile(f"{path} defines entities; expected plain XML as CVAT writes it")
    try:
        content = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None, None
    if content.tag == "annotations":
        return "CVAT", content
    return ("Pascal VOC", content) if content.tag == "annotation" else (None, None)


def _known_labels(tool: str, content: Parsed) -> list[str]:
    if tool == "COCO":
        kinds = sorted(content.get("categories", []), key=lambda kind: kind["id"])
        used = {item.get("category_id") for item in content["annotations"]}
        # Roboflow writes the set's name as the first category, above all others.
        above = {kind.get("supercategory") for kind in kinds if kind["id"] in used}
        return [str(k["name"]) for k in kinds if k["id"] in used or k["name"] not in above]
    if tool == "CVAT":
        return [str(label.findtext("name")) for label in content.iter("label")]
    return []


# COCO


def _coco(content: Parsed, path: Path) -> Found:
    labels = {kind["id"]: str(kind["name"]) for kind in content.get("categories", [])}
    shapes: dict[object, list[Shape]] = {image["id"]: [] for image in content["images"]}
    sizes = {i["id"]: _size(i.get("height"), i.get("width")) for i in content["images"]}
    for item in content["annotations"]:
        label = labels.get(item.get("category_id"), str(item.get("category_id")))
        if item["image_id"] in shapes:
            shapes[item["image_id"]] += _coco_shapes(item, label)
    for image in content["images"]:
        found = Drawing(tuple(shapes[image["id"]]), path, sizes[image["id"]])
        yield str(image["file_name"]), found


def _coco_shapes(item: Json, label: str) -> list[Shape]:
    drawn = item.get("segmentation")
    if isinstance(drawn, dict):
        rows, columns = (int(side) for side in drawn["size"])
        counts = drawn["counts"]
        runs = _uncompressed(counts) if isinstance(counts, str) else [int(n) for n in counts]
        return [Shape(label, "runs", runs=tuple(runs), box=(0, 0, columns, rows))]
    if drawn:
        rings = drawn if isinstance(drawn[0], list) else [drawn]
        return [Shape(label, "polygon", _flat(ring)) for ring in rings if len(ring) >= 6]
    left, top, width, height = (float(value) for value in item["bbox"])
    return [Shape(label, "box", ((left, top), (left + width, top + height)), edges=True)]


def _uncompressed(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed string: 5 bits a character, differences."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[position]) - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            position, shift = position + 1, shift + 5
            if not more and bits & 16:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _flat(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in zip(values[::2], values[1::2], strict=True))


def _size(height: Parsed, width: Parsed) -> tuple[int, int] | None:
    return (int(height), int(width)) if height and width else None


# LabelMe


def _labelme(content: Parsed, path: Path) -> Found:
    shapes = [_labelme_shape(item) for item in content["shapes"]]
    size = _size(content.get("imageHeight"), content.get("imageWidth"))
    image = str(content["imagePath"]).replace("\\", "/").rsplit("/", 1)[-1]
    yield image, Drawing(tuple(shapes), path, size)


def _labelme_shape(item: Json) -> Shape:
    label, kind = str(item["label"]), item.get("shape_type") or "polygon"
    points = tuple((float(x), float(y)) for x, y in item["points"])
    if kind == "polygon" and len(points) >= 3:
        return Shape(label, "polygon", points)
    if kind == "rectangle":
        return Shape(label, "box", points)
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = ((x - edge_x) ** 2 + (y - edge_y) ** 2) ** 0.5
        return Shape(label, "ellipse", ((x, y), (radius, radius)))
    if kind == "mask":
        return _labelme_mask(item, label, points)
    return Shape(label, "skipped")


def _labelme_mask(item: Json, label: str, points: Parsed) -> Shape:
    """Return LabelMe's mask: a PNG in base64 that fills the box of its two points."""
    import base64

    import numpy as np
    from PIL import Image

    from medisseg.data.reading import check_size

    with Image.open(io.BytesIO(base64.b64decode(item["mask"]))) as file:
        check_size("a mask of LabelMe", (file.height, file.width))
        inside = np.asarray(file).reshape(-1).astype(bool)
        box = (int(points[0][0]), int(points[0][1]), file.width, file.height)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside]).astype(np.int8))).tolist()
    runs = np.diff([0, *edges, inside.size]).tolist()
    return Shape(label, "runs", runs=tuple(runs), box=box, by_rows=True)


# YOLO

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.I)


def _is_yolo(text: str) -> bool:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return all(
        len(line) >= 5
        and line[0].isdecimal()
        and len(line[0]) < 7
        and all(NUMBER.fullmatch(value) for value in line[1:])
        and max(abs(float(value)) for value in line[1:]) <= 1.5
        for line in lines
    )


def _yolo(text: Parsed, path: Path) -> Found:
    shapes = []
    for line in text.splitlines():
        values = line.split()
        if not values:
            continue
        numbers = [float(value) for value in values[1:]]
        if len(numbers) in (4, 5):  # a box, of a prediction with its confidence
            x, y, width, height = numbers[:4]
            corners = ((x - width / 2, y - height / 2), (x + width / 2, y + height / 2))
            shapes.append(Shape(values[0], "box", corners, edges=True))
        else:
            shapes.append(Shape(values[0], "polygon", _flat(numbers[: len(numbers) // 2 * 2])))
    folder = re.sub(r"(^|/)labels(/|$)", r"\1images\2", path.parent.as_posix())
    yield f"{folder}/{path.stem}", Drawing(tuple(shapes), path, shares=True)


def _yolo_names(root: Path) -> list[str]:
    """Return the labels of ``data.yaml``, by their index."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = read_yaml(path)
        except Excessive:
            raise
        except UserError:
            continue  # not YAML
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=lambda key: natural(str(key)))]
        if names and isinstance(names, list):
            return [str(name) for name in names]
    return []


def _named(drawing: Drawing, names: Sequence[str]) -> Drawing:
    shapes = []
    for shape in drawing.shapes:
        index = int(shape.label)
        label = names[index] if index < len(names) else shape.label
        shapes.append(dataclasses.replace(shape, label=label))
    return Drawing(tuple(shapes), drawing.source, drawing.size, drawing.shares)


# CVAT, Pascal VOC


def _cvat(content: Parsed, path: Path) -> Found:
    for image in content.iter("image"):
        shapes = [_cvat_shape(item) for item in image if item.tag in CVAT_KINDS]
        size = _size(image.get("height"), image.get("width"))
        yield str(image.get("name")), Drawing(tuple(shapes), path, size)


CVAT_KINDS = ("polygon", "box", "ellipse", "mask", "polyline", "points")


def _cvat_shape(item: Parsed) -> Shape:
    label = str(item.get("label"))

    def number(*keys: str) -> tuple[float, ...]:
        return tuple(float(item.get(key)) for key in keys)

    if item.tag == "polygon":
        pairs = [pair.split(",") for pair in item.get("points").split(";") if pair]
        return Shape(label, "polygon", tuple((float(x), float(y)) for x, y in pairs))
    if item.tag == "box":
        left, top, right, bottom = number("xtl", "ytl", "xbr", "ybr")
        return Shape(label, "box", ((left, top), (right, bottom)))
    if item.tag == "ellipse":
        centre, radii = number("cx", "cy"), number("rx", "ry")
        return Shape(label, "ellipse", ((centre[0], centre[1]), (radii[0], radii[1])))
    if item.tag == "mask":
        runs = tuple(int(value) for value in item.get("rle").split(","))
        keys = ("left", "top", "width", "height")
        x, y, across, down = (int(value) for value in number(*keys))
        return Shape(label, "runs", runs=runs, box=(x, y, across, down), by_rows=True)
    return Shape(label, "skipped")


def _pascal(content: Parsed, path: Path) -> Found:
    shapes = []
    for item in content.iter("object"):
        box = item.find("bndbox")
        ends = [float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
        shapes.append(
            Shape(str(item.findtext("name")), "box", ((ends[0], ends[1]), (ends[2], ends[3])))
        )
    size = _size(content.findtext("size/height"), content.findtext("size/width"))
    yield content.findtext("filename") or path.stem, Drawing(tuple(shapes), path, size)


# VIA, Supervisely


def _via(content: Parsed, path: Path) -> Found:
    for item in content.get("_via_img_metadata", content).values():
        regions = item["regions"]
        every = regions.values() if isinstance(regions, dict) else regions
        shapes = [_via_shape(r["shape_attributes"], r.get("region_attributes")) for r in every]
        yield str(item["filename"]), Drawing(tuple(shapes), path)


def _via_table(text: Parsed, path: Path) -> Found:
    shapes: dict[str, list[Shape]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        image = next(row[key] for key in ("filename", "#filename") if key in row)
        shape: Parsed = parse_json(row["region_shape_attributes"] or "{}", path)
        shapes.setdefault(image, [])
        if shape:
            attributes = parse_json(row["region_attributes"] or "{}", path)
            shapes[image].append(_via_shape(shape, attributes))
    for image, found in shapes.items():
        yield image, Drawing(tuple(found), path)


def _via_shape(shape: Json, attributes: Parsed) -> Shape:
    values = [value for value in (attributes or {}).values() if isinstance(value, str) and value]
    label, kind = (values[0] if values else "region"), shape.get("name")
    if kind == "polygon":
        xs, ys = shape["all_points_x"], shape["all_points_y"]
        points = tuple((float(x), float(y)) for x, y in zip(xs, ys, strict=True))
        return Shape(label, "polygon", points)
    if kind == "rect":
        left, top = float(shape["x"]), float(shape["y"])
        corner = (left + float(shape["width"]), top + float(shape["height"]))
        return Shape(label, "box", ((left, top), corner))
    if kind in ("circle", "ellipse"):
        across = float(shape["r"] if "r" in shape else shape.get("rx") or 0)
        down = float(shape["r"] if "r" in shape else shape.get("ry") or 0)
        return Shape(label, "ellipse", ((float(shape["cx"]), float(shape["cy"])), (across, down)))
    return Shape(label, "skipped")


def _supervisely(content: Parsed, path: Path) -> Found:
    shapes = []
    for item in content["objects"]:
        label, kind = str(item["classTitle"]), item.get("geometryType", "polygon")
        outer = tuple((float(x), float(y)) for x, y in item.get("points", {}).get("exterior", []))
        inner = item.get("points", {}).get("interior", [])
        holes = tuple(tuple((float(x), float(y)) for x, y in hole) for hole in inner)
        kinds = {"polygon": "polygon", "rectangle": "box"}
        shapes.append(Shape(label, kinds.get(kind, "skipped"), outer, holes))
    size = _size(content["size"].get("height"), content["size"].get("width"))
    yield path.stem, Drawing(tuple(shapes), path, size)


READERS: dict[str, Callable[[Parsed, Path], Found]] = {
    "COCO": _coco,
    "LabelMe": _labelme,
    "YOLO": _yolo,
    "CVAT": _cvat,
    "Pascal VOC": _pascal,
    "VIA": _via,
    "VIA table": _via_table,
    "Supervisely": _supervisely,
}
