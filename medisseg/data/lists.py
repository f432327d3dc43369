"""The splits that a data folder comes with: lists, tables, JSON files, and names of folders.

A ``.txt`` file is a list when its lines name images, whatever else is in them; of a table the
columns are found by what is in them. Nothing is drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from medisseg.data.layout import natural, normal, split_word
from medisseg.data.names import MOST_LIST, Names, Part, existing, read_text, shown, stem
from medisseg.data.tables import ENOUGH, odd_column, read_json, read_json_lines, read_table
from medisseg.errors import UserError
from medisseg.untrusted import Excessive
from medisseg.untrusted import read_yaml as read_bounded_yaml

FOLDERS = (
    "", "splits", "split", "lists", "imagesets", "imagesets/segmentation", "imagesets/main",
    "imageset", "segmentation", "partitions", "folds", "annotations",
)  # fmt: skip
LIKE_SPLIT = re.compile("train|test|valid", re.I)
TEXT, TABLE = (".txt", ".lst"), (".csv", ".tsv")


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
        mask = existing(entry[1], path, names.root) if len(entry) > 1 else None
        if mask is not None and mask != names.paths.get(name):
            masks[name] = mask
    twice = (
        {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else ()
    )
    if twice:
        raise UserError(f"{path} names {sorted(twice)[0]} twice ({len(twice)} such names)")
    return Part(tuple(found), shown(path, names.root), masks)


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
                found |= {key: Part(tuple(inside), shown(path, names.root))} if inside else {}
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


def misread(root: Path, images: Mapping[str, Path]) -> list[str]:
    """Return what looks like a split of a folder in which none is found, in words."""
    if find_parts(root, images):
        return []
    names = Names(root, images)
    found = []
    for path in list_files(root, TABLE):
        if (title := odd_column(path, names)) is not None:
            found.append(
                f"{shown(path, root)} has a column {title!r} that is not understood as a split; "
                "expected train, val and test in it"
            )
    inside = [
        path.parent.relative_to(root).parts for path in images.values() if root in path.parents
    ]
    odd = sorted({part for parts in inside for part in parts if LIKE_SPLIT.search(part)})
    if odd:
        found.append(
            f"the folders {', '.join(odd[:5])} look like splits, but are not understood as such; "
            "call them train, val and test"
        )
    return found


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
        ".json": read_json, ".jsonl": read_json_lines, ".yaml": read_yaml, ".yml": read_yaml,
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
