"""Which images belong to which split: lists, seeded splits by group, and no leaks between them."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import random
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from medisseg.data.volumes import SLICE, expand
from medisseg.errors import UserError

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
SEEDED = {"train": (0.0, 0.8), "val": (0.8, 0.9), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
EXTENSION = r"\.(jpe?g|png|bmp|tiff?|webp|npz|h5|npy\.h5)$"
TABLES = ("sequences.csv", "patients.csv", "groups.csv")
NAME_COLUMNS = ("name", "image", "image_id", "file", "filename", "frame")
GROUP_COLUMNS = ("group", "sequence", "patient", "patient_id", "case", "video", "lesion_id")


def names(
    root: Path,
    split: str,
    images: Mapping[str, Path] | Sequence[str],
    seed: int = 0,
    groups: str | None = None,
) -> list[str]:
    """Return the names of a split.

    Args:
        root: Data folder.
        split: "all", the name of a list (``root/val.txt`` or ``root/splits/val.txt``), the path of
            one, or a folder of images (``root/val``).
        images: Every image's name, with its path where folders may tell the splits apart.
        seed: Of the split that is drawn when the folder has neither lists nor such folders.
        groups: Table of groups that a drawn split keeps together.

    Raises:
        UserError: No such list.
    """
    if split == "all":
        return list(images)
    path = find_list(root, split)
    if path is not None:
        return expand(read_list(path, images), images)
    files = images if isinstance(images, Mapping) else {}
    inside = in_folder(root, split, files)
    if inside:
        return inside
    lists = sorted(file.stem for folder in _folders(root) for file in folder.glob("*.txt"))
    parted = any(in_folder(root, part, files) for part in ("train", "val", "test"))
    if lists or parted or split not in SEEDED:
        raise UserError(
            f"no list {split!r} in {root}; there are: {', '.join(lists) or 'none'}, "
            "all, or give the path of a list"
        )
    low, high = SEEDED[split]
    order = shuffled_groups(list(images), group_table(root, groups, list(images)), seed)
    return _between(order, low, high)


def in_folder(root: Path, split: str, images: Mapping[str, Path]) -> list[str]:
    """Return the names of images in a folder called as the split, such as ``val/images``."""
    aliases = {alias for alias in ALIASES.get(split, (split,))}
    found = []
    for name, path in images.items():
        folders = path.parent.relative_to(root).as_posix().lower()
        if aliases & set(re.split(r"[^a-z]+", folders)):
            found.append(name)
    return found if len(found) < len(images) else []


def find_list(root: Path, split: str) -> Path | None:
    """Return the file that lists ``split``, in the data folder or as a path, or None."""
    for name in ALIASES.get(split, (split,)):
        for folder in _folders(root):
            for candidate in (folder / f"{name}.txt", folder / name):
                if candidate.is_file():
                    return candidate
    direct = Path(split)
    return direct if direct.is_file() else None


def _folders(root: Path) -> list[Path]:
    return [root, root / "splits", root / "lists"]


def read_list(path: Path, images: Container[str] = ()) -> list[str]:
    """Return the names in a list: one a line, with or without folder and extension.

    A folder is kept where ``images`` has names with folders.

    Raises:
        UserError: The list is empty, or names an image twice.
    """
    found: list[str] = []
    for line in _read_text(path).splitlines():
        text = line.split(",")[0].split("\t")[0].strip()
        if text and not text.startswith("#"):
            whole = re.sub(EXTENSION, "", text.replace("\\", "/"), flags=re.I)
            found.append(whole if whole in images else _stem(text))
    if not found:
        raise UserError(f"{path} is empty; expected one image name a line")
    twice = (
        {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else ()
    )
    if twice:
        raise UserError(f"{path} names {sorted(twice)[0]} twice ({len(twice)} such names)")
    return found


def _read_text(path: Path) -> str:
    """Return a text file of UTF-8, or of UTF-16 as PowerShell writes lists."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; store it as UTF-8") from error


def _stem(text: str) -> str:
    last = text.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(EXTENSION, "", last, flags=re.I)


def group_table(root: Path, table: str | None, available: Sequence[str]) -> dict[str, str]:
    """Return name -> group from a CSV of names, or of frame ranges (first_frame, last_frame).

    ``table`` None: ``sequences.csv``, ``patients.csv`` or ``groups.csv`` of the folder, if any;
    without one, the slices of a volume are a group.

    Raises:
        UserError: The table cannot be found or lacks the columns.
    """
    if table is None:
        path = next((root / name for name in TABLES if (root / name).is_file()), None)
        if path is None:
            return _cases(available)
    else:
        path = next((p for p in (root / table, Path(table)) if p.is_file()), None)
        if path is None:
            raise UserError(f"no table of groups {table} in {root}")
    rows = [
        {str(key).strip().lower(): str(value or "") for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(_read_text(path)))
    ]
    columns = list(rows[0]) if rows else []
    group = next((name for name in GROUP_COLUMNS if name in columns), None)
    name = next((name for name in NAME_COLUMNS if name in columns), None)
    ranged = "first_frame" in columns and "last_frame" in columns
    if group is None or (name is None and not ranged):
        raise UserError(
            f"{path} has the columns {', '.join(columns) or 'none'}; expected a group (sequence, "
            "patient or group) and a name, or first_frame and last_frame"
        )
    if ranged:
        try:
            return _by_range(rows, group, available)
        except ValueError as error:
            raise UserError(f"{path}: first_frame and last_frame must be numbers") from error
    named = {_stem(row[name].strip()): row[group].strip() for row in rows}  # type: ignore[index]
    return {image: label for image, label in named.items() if label}


def _cases(available: Sequence[str]) -> dict[str, str]:
    """Return the case of every slice of a volume, by its name."""
    matches = {name: SLICE.match(name) for name in available}
    return {name: match["case"] for name, match in matches.items() if match}


def _by_range(
    rows: Sequence[Mapping[str, str]], group: str, available: Sequence[str]
) -> dict[str, str]:
    ranges = [(int(row["first_frame"]), int(row["last_frame"]), row[group]) for row in rows]
    table = {}
    for name in available:
        digits = re.findall(r"\d+", name)
        number = int(digits[-1]) if digits else -1
        found = next((label for first, last, label in ranges if first <= number <= last), None)
        if found is not None:
            table[name] = found
    return table


def shuffled_groups(
    available: Sequence[str], groups: Mapping[str, str], seed: int
) -> list[list[str]]:
    """Return the names in groups (a name without one is its own), in seeded order."""
    members: dict[str, list[str]] = {}
    for name in sorted(available):
        members.setdefault(f"g{groups[name]}" if name in groups else f"n{name}", []).append(name)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    return [members[key] for key in order]


def take_out(
    available: Sequence[str], fraction: float, groups: Mapping[str, str], seed: int
) -> tuple[list[str], list[str]]:
    """Split names into (the rest, about ``fraction`` of them), whole groups at a time.

    Raises:
        UserError: Too few images or groups for both parts to hold one.
    """
    order = shuffled_groups(available, groups, seed)
    if len(order) < 2:
        raise UserError(
            f"{len(available)} images in {len(order)} group cannot be split in two; "
            "expected at least two groups, or a list for each part"
        )
    taken = _between(order, 0.0, fraction) or list(order[0])
    chosen = set(taken)
    rest = [name for name in available if name not in chosen]
    if not rest:
        rest = list(order[-1])
        chosen -= set(rest)
    return rest, [name for name in available if name in chosen]


def _between(order: Sequence[Sequence[str]], low: float, high: float) -> list[str]:
    """Return the groups whose middle lies between two fractions of all names."""
    total = sum(len(group) for group in order)
    chosen: list[str] = []
    before = 0
    for group in order:
        if low <= (before + len(group) / 2) / total < high:
            chosen.extend(group)
        before += len(group)
    return chosen


def refuse_leaks(parts: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> list[str]:
    """Check that no name is in two parts; return warnings about groups that are.

    Raises:
        UserError: A name is in two parts.
    """
    warnings = []
    labels = list(parts)
    for position, first in enumerate(labels):
        for second in labels[position + 1 :]:
            shared = sorted(set(parts[first]) & set(parts[second]))
            if shared:
                raise UserError(
                    f"{len(shared)} images are in both {first} and {second}, e.g. {shared[0]}; "
                    "an image must be in one of them"
                )
            both = {groups[name] for name in parts[first] if name in groups}
            both &= {groups[name] for name in parts[second] if name in groups}
            if both:
                warnings.append(
                    f"{len(both)} sequences or patients are in both {first} and {second}, "
                    f"e.g. {sorted(both)[0]}: results will look better than they are"
                )
    return warnings


def duplicates(parts: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Return warnings about images that are byte for byte the same in two parts."""
    seen: dict[str, tuple[str, str]] = {}
    digests = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in {path for files in parts.values() for path in files.values()}
    }
    found = []
    for part, files in parts.items():
        for name, path in files.items():
            other = seen.setdefault(digests[path], (part, name))
            if other[0] != part:
                found.append(f"{name} ({part}) and {other[1]} ({other[0]})")
    if not found:
        return []
    more = f" and {len(found) - 1} more pairs" if len(found) > 1 else ""
    return [f"the same image under two names: {found[0]}{more}; remove it from one of the splits"]
