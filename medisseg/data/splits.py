"""Which images belong to which split: found, or drawn by group where none is there; no leaks."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medisseg.data.layout import normal, split_word
from medisseg.data.lists import TABLE, TEXT, find_parts, list_files, read_list
from medisseg.data.names import Names, Part, stem
from medisseg.data.tables import read_rows, read_table
from medisseg.data.volumes import SLICE, expand
from medisseg.errors import UserError

SEEDED = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
TABLES = ("sequences.csv", "patients.csv", "groups.csv")
NAME_COLUMNS = ("name", "image", "image_id", "file", "filename", "file_name", "frame")
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
        split: "all", the name of a split that the folder comes with (``val`` finds ``val.txt``, a
            table, ``ImageSets`` or a folder ``validation``), a folder's name, or a list's path.
        images: Every image's name, with its path where folders may tell the splits apart.
        seed: Of the split that is drawn when the folder comes with none.
        groups: Table of groups that a drawn split keeps together.

    Raises:
        UserError: No such split.
    """
    if split == "all":
        return list(images)
    part = find(root, split, images)
    if part is not None:
        return expand(part.names, images)
    parts = find_parts(root, images)
    word = split_word(split)
    if parts or word != normal(split).replace("validation", "val") or word not in SEEDED:
        there = ", ".join(f"{name} ({content.origin})" for name, content in parts.items())
        raise UserError(
            f"no list {split!r} in {root}; there are: {there or 'none'}, "
            "all, or give the path of a list"
        )
    low, high = SEEDED[word]
    order = shuffled_groups(list(images), group_table(root, groups, list(images)), seed)
    return _between(order, low, high)


def is_held(name: str) -> bool:
    """Whether a split of this name is not for training."""
    return split_word(name) in ("val", "test")


def find(root: Path, split: str, images: Mapping[str, Path] | Sequence[str]) -> Part | None:
    """Return a split that the folder comes with, or a list by its path; None where there is none.

    Raises:
        UserError: Several lists fit, or the list cannot be read.
    """
    known = Names(root, images)
    parts = find_parts(root, images)
    by_name = {normal(name): name for name in parts}
    if normal(split) in by_name:
        return parts[by_name[normal(split)]]
    for path in list_files(root, (*TEXT, "")):  # a list that names none of the images is said later
        if normal(path.stem) == normal(split) or normal(path.name) == normal(split):
            return read_list(path, known)
    direct = Path(split)
    if direct.suffix and direct.is_file():  # before words: runs/val-2.txt is not the folder's val
        return _at(direct, known)
    word = split_word(split)
    alike = [name for name in parts if word is not None and split_word(name) == word]
    if len(alike) > 1:
        raise UserError(f"{split!r} may be {' or '.join(alike)} in {root}; name one of these")
    if alike:
        return parts[alike[0]]
    inside = tuple(
        name for name, path in known.paths.items()
        if root in path.parents
        and normal(split) in map(normal, path.parent.relative_to(root).parts)
    )  # fmt: skip
    if inside and len(inside) < len(known.paths):
        return Part(inside, f"folder {split}")
    return _at(direct, known) if direct.is_file() else None


def _at(path: Path, known: Names) -> Part:
    if path.suffix.lower() in TABLE and (part := read_table(path, known).get(path.stem)):
        return part
    return read_list(path, known)


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
    cells = read_rows(path)
    columns = [cell.lower() for cell in cells[0]] if cells else []
    rows = [dict(zip(columns, [*row, *[""] * len(columns)], strict=False)) for row in cells[1:]]
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
    named = {stem(row[name]): row[group].strip() for row in rows}  # type: ignore[index]
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


def take_fold(
    available: Sequence[str], folds: int, fold: int, groups: Mapping[str, str], seed: int
) -> tuple[list[str], list[str]]:
    """Split names into (the rest, fold number ``fold`` of ``folds``), whole groups at a time.

    Every name is in one fold.

    Raises:
        UserError: Too few images or groups for every fold to hold one.
    """
    order = shuffled_groups(available, groups, seed)
    parts = [_between(order, k / folds, (k + 1) / folds) for k in range(folds)]
    if not all(parts):
        raise UserError(
            f"{len(available)} images in {len(order)} groups cannot make {folds} folds; expected "
            "at least one group a fold"
        )
    chosen = set(parts[fold])
    rest = [name for name in available if name not in chosen]
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
