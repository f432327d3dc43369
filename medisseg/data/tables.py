"""Splits in tables, JSON and YAML: a column of split names, a column a split, or lists by split."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medisseg.data.layout import split_word
from medisseg.data.names import Names, Part, existing, read_text, shown, stem
from medisseg.errors import UserError
from medisseg.untrusted import parse_json

# At least this share of a list's entries must name images of the folder.
ENOUGH = 0.5
NAME_KEYS = ("image", "img", "file_name", "filename", "name", "path")
YES, NO = {"1", "1.0", "true", "yes", "y", "x"}, {"0", "0.0", "false", "no", "n", ""}
SPLIT_TITLE = re.compile(
    r"(is|in)?[ _]?(split|subset|set|fold|partition|part|phase|usage|train|val|test)", re.I
)
MASK_KEYS = ("label", "mask", "seg", "segmentation", "annotation")


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


def read_table(path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of a table, by the word in its column of splits or the file's own name.

    Empty where no column names images, or where nothing says which split they are.
    """
    return parts_of_rows(read_rows(path), path, names)


def parts_of_rows(rows: Sequence[Sequence[str]], path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of the rows of a table, its header first if it has one."""
    if not rows:
        return {}
    width = min(map(len, rows))
    body = rows[1:] if len(rows) > 1 else rows
    shares = [sum(names.find(row[k]) is not None for row in body) / len(body) for k in range(width)]
    column = max(range(width), key=shares.__getitem__)
    if shares[column] < ENOUGH and split_word(path.stem) is None:
        return {}
    headed = names.find(rows[0][column]) is None
    if not headed:
        body = rows
    others = [k for k in range(width) if k != column]
    word = next((k for k in others if _says_splits(body, k)), None)
    flags = _flags(rows[0], body, others) if headed and word is None else {}
    if word is None and not flags and split_word(path.stem) is None:
        return {}
    mask = next((k for k in others if existing(body[0][k], path, names.root)), None)
    found: dict[str, dict[str, Path | None]] = {}
    for row in body:
        part: str | None = path.stem
        if word is not None:
            part = split_word(row[word]) or row[word].lower()
        elif flags:
            part = _flagged(row, flags)
        name = names.find(row[column]) or stem(row[column])
        if part:
            given = None if mask is None else existing(row[mask], path, names.root)
            found.setdefault(part, {})[name] = given
    origin = shown(path, names.root)
    return {
        part: Part(tuple(given), origin, {n: m for n, m in given.items() if m is not None})
        for part, given in found.items()
    }


def _says_splits(rows: Sequence[Sequence[str]], column: int) -> bool:
    values = {row[column] for row in rows if row[column]}
    return 0 < len(values) <= 5 and all(split_word(value) for value in values)


def _flags(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> dict[int, str]:
    """Return the columns that say yes or no to a split (``is_train``), and the splits' names."""
    words = {k: split_word(re.sub(r"^(is|in)[ _]?", "", head[k].strip().lower())) for k in columns}
    return {
        k: word for k, word in words.items()
        if word and {row[k].lower() for row in rows} <= YES | NO
    }  # fmt: skip


def _flagged(row: Sequence[str], flags: Mapping[int, str]) -> str | None:
    """Return a row's split; the only flag that says no means the other side."""
    said = [word for k, word in flags.items() if row[k].lower() in YES]
    if said or len(flags) > 1:
        return said[0] if said else None
    return "test" if "train" in flags.values() else "train"


def odd_column(path: Path, names: Names) -> str | None:
    """Return the column of a table of images that seems to be about splits, by its title."""
    rows = read_rows(path)
    if len(rows) < 2 or not any(names.find(cell) for cell in rows[1]):
        return None
    return next((cell for cell in rows[0] if SPLIT_TITLE.match(cell.strip())), None)


def read_json(path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of a JSON file: ``{"train": [names or {"image": ..., "label": ...}]}``.

    Of a list of such tables (``splits_final.json``) the first is taken. Rows that name an image
    and its split are a table, too, as is ``{"a.png": "train"}``.
    """
    try:
        content: object = parse_json(read_text(path), path)
    except ValueError:
        return {}
    if found := parts_of_rows(_rows(content), path, names):
        return found
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
            masks = {n: existing(m, path, names.root) for n, m in images.items()}
            found[word] = Part(
                tuple(n for n in images if n), shown(path, names.root),
                {n: m for n, m in masks.items() if n and m},
            )  # fmt: skip
    return found


def read_json_lines(path: Path, names: Names) -> dict[str, Part]:
    """Return the splits of a file with a JSON object a line, such as ``metadata.jsonl``."""
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        return parts_of_rows(_rows([parse_json(line, path) for line in lines]), path, names)
    except ValueError:
        return {}


def _rows(content: object) -> list[list[str]]:
    """Return rows of JSON as those of a table; empty where it is something else."""
    if isinstance(content, dict):
        if not all(isinstance(value, str | dict) for value in content.values()):
            return []
        rows = [{"": key, **(value if isinstance(value, dict) else {" ": value})}
                for key, value in content.items()]  # fmt: skip
    elif isinstance(content, list) and all(isinstance(row, dict) for row in content):
        rows = content
    else:
        return []
    keys = list(rows[0]) if rows else []
    if any(isinstance(row.get(key), list | dict) for row in rows[:5] for key in keys):
        return []
    return [keys, *([str(row.get(key, "")) for key in keys] for row in rows)] if keys else []


def _entry(entry: object) -> tuple[str, str]:
    if not isinstance(entry, dict):
        return str(entry), ""
    image = next((str(entry[key]) for key in NAME_KEYS if key in entry), "")
    return image, next((str(entry[key]) for key in MASK_KEYS if key in entry), "")
