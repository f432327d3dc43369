"""The splits that a data folder comes with: lists, tables, JSON files, and names of folders.

A ``.txt`` file is a list when its lines name images, whatever else is in them; of a table the
columns are found by what is in them. Nothing is drawn here.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medisseg.data.layout import natural, normal, split_word
from medisseg.errors import UserError
from medisseg.untrusted import Excessive, parse_json, read_bytes
from medisseg.untrusted import read_yaml as read_bounded_yaml

EXTENSION = re.compile(
    r"\.(jpe?g|png|bmp|tiff?|webp|gif|jp2|j2k|dcm|npz|h5|npy\.h5|nii(\.gz)?)$", re.I
)
FOLDERS = (
    "", "splits", "split", "lists", "imagesets", "imagesets/segmentation", "imagesets/main",
    "imageset", "segmentation", "partitions", "folds", "annotations",
)  # fmt: skip
TEXT, TABLE = (".txt", ".lst"), (".csv", ".tsv")
# At least this share of a list's lines must name images of the folder.
ENOUGH = 0.5
NAME_KEYS = ("image", "img", "file_name", "filename", "name", "path")
MOST_LIST = 50_000_000  # bytes
MASK_KEYS = ("label", "mask", "seg", "segmentation", "annotation")


@dataclass(frozen=True)
class Part:
    """One split: its names, where it comes from, and the masks that a list gives them."""

    names: tuple[str, ...]
    origin: str
    masks: Mapping[str, Path] = field(default_factory=dict)


class Names:
    """The images of a folder, found by what a list calls them.

    Args:
        root: Data folder.
        images: Every image's name, with its path where there is one.
    """

    def __init__(self, root: Path, images: Mapping[str, Path] | Sequence[str]) -> None:
        self.root = root
        self.paths: Mapping[str, Path] = images if isinstance(images, Mapping) else {}
        self.known: dict[str, str] = {}
        for name in images:
            self.known.setdefault(normal(name), name)
        shared = Counter(self.paths.values())
        for name, path in self.paths.items():
            if root in path.parents and shared[path] == 1:  # not a slice of a volume
                relative = EXTENSION.sub("", path.relative_to(root).as_posix())
                self.known.setdefault(normal(relative), name)
        self.cases = {normal(n.rsplit("_slice", 1)[0]) for n in images if "_slice" in n}

    def find(self, text: str) -> str | None:
        """Return the name of an entry such as ``images\\a.jpg``; None: no such image."""
        entry = text.strip().strip("\"'").replace("\\", "/").removeprefix("./")
        bare = EXTENSION.sub("", entry)
        parts = bare.split("/")
        for start in range(len(parts)):
            if (key := normal("/".join(parts[start:]))) in self.known:
                return self.known[key]
        return None

    def names_something(self, text: str) -> bool:
        """Whether an entry is an image or a volume's case."""
        return self.find(text) is not None or normal(stem(text)) in self.cases


def stem(text: str) -> str:
    """Return an entry without folders and extension."""
    last = text.strip().strip("\"'").replace("\\", "/").rsplit("/", 1)[-1]
    return EXTENSION.sub("", last)


def read_text(path: Path, most: int = MOST_LIST) -> str:
    """Return a text file of UTF-8, or of UTF-16 as PowerShell writes lists.

    Raises:
        UserError: Neither, no regular file, or one of more than ``most`` bytes.
    """
    content = read_bytes(path, most)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; store it as UTF-8") from error


def read_rows(path: Path) -> list[list[str]]:
    """Return the fields of a table, separated by commas, semicolons, tabs or bars."""
    text = read_text(path)
    first = text.splitlines()[0] if text.strip() else ""
    mark = max(",;\t|", key=first.count)
    try:
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=mark)
        ]
    except csv.Error as error:
        raise UserError(f"{path} is not a table of separated values: {error}") from error
    return [row for row in rows if any(row) and not row[0].startswith("#")]


def read_list(path: Path, names: Names) -> Part:
    """Return the split that a text file lists: a name a line, or an image and its mask.

    Raises:
        UserError: The list is empty, or names an image twice.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path} is empty; expected one image name a line")
    entries = [_fields(line, names) for line in lines]
    if len(entries) > 1 and _is_header(entries[0][0], entries[1][0], names):
        entries = entries[1:]
    found: list[str] = []
    masks: dict[str, Path] = {}
    for entry in entries:
        name = names.find(entry[0]) or stem(entry[0])
        found.append(name)
        mask = _existing(entry[1], path, names.root) if len(entry) > 1 else None
        if mask is not None and mask != names.paths.get(name):
            masks[name] = mask
    twice = (
        {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else ()
    )
    if twice:
        raise UserError(f"{path} names {sorted(twice)[0]} twice ({len(twice)} such names)")
    return Part(tuple(found), _shown(path, names.root), masks)


def _fields(line: str, names: Names) -> list[str]:
    """Return a line's fields; a name may hold spaces and commas itself."""
    if names.find(line):
        return [line]
    for mark in (r"\t", r"[,;|]"):
        fields = [part for part in re.split(mark, line) if part.strip()]
        if len(fields) > 1:
            return fields
    parts = line.split()
    return parts if len(parts) > 1 and names.find(parts[0]) else [line]


def _is_header(first: str, second: str, names: Names) -> bool:
    return not names.names_something(first) and names.names_something(second)


def _existing(text: str, listing: Path, root: Path) -> Path | None:
    relative = text.strip().strip("\"'").replace("\\", "/")
    if not relative or EXTENSION.sub("", relative) == relative:
        return None
    places = (root / relative, listing.parent / relative)
    return next((path for path in places if path.is_file()), None)


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if root in path.parents else str(path)


def read_table(path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of a table, by the word in its column of splits or the file's own name.

    Empty where no column names images, or where nothing says which split they are.
    """
    rows = read_rows(path)
    if not rows:
        return {}
    width = min(map(len, rows))
    body = rows[1:] if len(rows) > 1 else rows
    shares = [sum(names.find(row[k]) is not None for row in body) / len(body) for k in range(width)]
    column = max(range(width), key=shares.__getitem__)
    if shares[column] < ENOUGH and split_word(path.stem) is None:
        return {}
    if names.find(rows[0][column]) is not None:
        body = rows  # no header
    others = [k for k in range(width) if k != column]
    word = next((k for k in others if _says_splits(body, k)), None)
    if word is None and split_word(path.stem) is None:
        return {}
    mask = next((k for k in others if _existing(body[0][k], path, names.root)), None)
    found: dict[str, dict[str, Path | None]] = {}
    for row in body:
        part = path.stem if word is None else (split_word(row[word]) or row[word].lower())
        name = names.find(row[column]) or stem(row[column])
        if part:
            given = None if mask is None else _existing(row[mask], path, names.root)
            found.setdefault(part, {})[name] = given
    origin = _shown(path, names.root)
    return {
        part: Part(tuple(given), origin, {n: m for n, m in given.items() if m is not None})
        for part, given in found.items()
    }


def _says_splits(rows: Sequence[Sequence[str]], column: int) -> bool:
    values = {row[column] for row in rows if row[column]}
    return 0 < len(values) <= 5 and all(split_word(value) for value in values)


def read_json(path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of a JSON file: ``{"train": [names or {"image": ..., "label": ...}]}``.

    Of a list of such tables (``splits_final.json``) the first is taken.
    """
    try:
        content: Any = parse_json(read_text(path), path)
    except ValueError:
        return {}
    if isinstance(content, list) and content and isinstance(content[0], dict):
        content = content[0]
    if not isinstance(content, dict):
        return {}
    found = {}
    coco = {path.stem: content["images"]} if isinstance(content.get("images"), list) else {}
    for key, entries in (coco or content).items():
        word = split_word(str(key))
        if word is None or not isinstance(entries, list) or not entries:
            continue
        pairs = [_entry(entry) for entry in entries]
        images = {names.find(image): mask for image, mask in pairs if names.find(image)}
        if len(images) >= ENOUGH * len(pairs):
            masks = {n: _existing(m, path, names.root) for n, m in images.items()}
            found[word] = Part(
                tuple(n for n in images if n), _shown(path, names.root),
                {n: m for n, m in masks.items() if n and m},
            )  # fmt: skip
    return found


def _entry(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict):
        return str(entry), ""
    image = next((str(entry[key]) for key in NAME_KEYS if key in entry), "")
    return image, next((str(entry[key]) for key in MASK_KEYS if key in entry), "")


def read_yaml(path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of a ``data.yaml`` of YOLO: ``train: images/train``, or a list's path."""
    try:
        content = read_bounded_yaml(path)
    except Excessive:
        raise
    except UserError:
        return {}  # not YAML
    if not isinstance(content, dict):
        return {}
    base = names.root / str(content.get("path") or "")
    found: dict[str, Part] = {}
    for key in ("train", "val", "test"):
        value = content.get(key)
        for place in (
            base / str(value),
            names.root / str(value),
            names.root / Path(str(value)).name,
        ):
            if not isinstance(value, str) or key in found:
                break
            if place.is_dir() and place != names.root:
                inside = [
                    n for n, p in names.paths.items() if place.resolve() in p.resolve().parents
                ]
                found |= {key: Part(tuple(inside), _shown(path, names.root))} if inside else {}
            elif place.is_file():
                found[key] = read_list(place, names)
    return found


def find_parts(root: Path, images: Mapping[str, Path] | Sequence[str]) -> dict[str, Part]:
    """Return the splits that a folder comes with, by name; lists before folders' names.

    Args:
        root: Data folder.
        images: Every image's name, with its path where folders may tell the splits apart.
    """
    names = Names(root, images)
    found: dict[str, Part] = {}
    for read in (_text_parts, _table_parts, _json_parts):
        for part, content in read(names):
            found.setdefault(part, content)
    return found or _folder_parts(names) or _prefix_parts(names)


def list_files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of some suffixes in the folders where lists are kept."""
    places = {normal(p.relative_to(root).as_posix()): p for p in _folders(root)}
    chosen = [root, *(places[name] for name in FOLDERS if name in places)]
    files = [path for folder in chosen for path in folder.iterdir() if path.is_file()]
    files = [p for p in files if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return sorted(files, key=lambda path: (chosen.index(path.parent), natural(path.name)))


def _folders(root: Path) -> Iterator[Path]:
    for folder in root.iterdir():
        if folder.is_dir() and normal(folder.name) in FOLDERS:
            yield folder
            yield from (below for below in folder.iterdir() if below.is_dir())


def _text_parts(names: Names) -> Iterator[tuple[str, Part]]:
    for path in list_files(names.root, TEXT):
        try:
            lines = [line for line in read_text(path).splitlines() if line.strip()]
        except UserError:
            continue
        if normal(path.stem) in names.known:
            continue  # of one image, such as its polygons
        some = lines[:50]
        known = sum(names.names_something(_fields(line, names)[0]) for line in some)
        if known and known >= ENOUGH * (len(some) - 1 or 1):
            yield path.stem, read_list(path, names)
        elif split_word(path.stem):  # asked for, it says what is wrong with it; nothing is drawn
            yield path.stem, read_list(path, names) if some else Part((), path.name)


def _table_parts(names: Names) -> Iterator[tuple[str, Part]]:
    for path in list_files(names.root, TABLE):
        yield from read_table(path, names).items()


def _json_parts(names: Names) -> Iterator[tuple[str, Part]]:
    readers: dict[str, Callable[[Path, Names], dict[str, Part]]] = {
        ".json": read_json, ".yaml": read_yaml, ".yml": read_yaml,
    }  # fmt: skip
    for path in list_files(names.root, tuple(readers)):
        if path.stat().st_size < MOST_LIST:
            yield from readers[path.suffix.lower()](path, names).items()


def _folder_parts(names: Names) -> dict[str, Part]:
    """Return the splits that folders' names speak of; none where all images are of one."""
    words: dict[str, list[str]] = {}
    for name, path in names.paths.items():
        folders = path.parent.relative_to(names.root).parts if names.root in path.parents else ()
        word, folder = next(((w, f) for f in folders if (w := split_word(f))), ("", ""))
        words.setdefault(word, []).append(name)
        words.setdefault(f"{word}/{folder}", [])
    if sum(bool(inside) for inside in words.values()) < 2:
        return {}
    return {
        word: Part(tuple(inside), "folders " + ", ".join(
            sorted(key.split("/", 1)[1] for key in words if key.startswith(f"{word}/"))
        ))
        for word, inside in words.items() if word and inside
    }  # fmt: skip


def _prefix_parts(names: Names) -> dict[str, Part]:
    """Return the splits of names such as ``train_12`` and ``testA_3``, where every name has one."""
    words: dict[str, list[str]] = {}
    for name in names.paths:
        match = re.match(r"([A-Za-z]+)[ _-]", name.rsplit("/", 1)[-1])
        word = split_word(match[1]) if match else None
        if word is None:
            return {}
        words.setdefault(word, []).append(name)
    if len(words) < 2:
        return {}
    return {word: Part(tuple(inside), "the images' names") for word, inside in words.items()}
