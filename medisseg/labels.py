"""Names and colours of a network's classes, as they travel with checkpoint and bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medisseg.colors import PALETTE, Color

LONGEST = 40
MOST_CLASSES = 256


@dataclass(frozen=True)
class Label:
    """What one foreground class is called and drawn as: RGB in [0, 255]."""

    name: str
    color: Color

    def __post_init__(self) -> None:
        if not (0 < len(self.name) <= LONGEST and self.name.isprintable()):
            raise ValueError(
                f"class name is {self.name!r}; expected 1 to {LONGEST} printable characters"
            )
        if len(self.color) != 3 or not all(
            isinstance(value, int) and 0 <= value <= 255 for value in self.color
        ):
            raise ValueError(f"class colour is {self.color}; expected three values 0 to 255")


def make_labels(
    classes: int, names: Sequence[str] = (), colors: Sequence[str] = ()
) -> tuple[Label, ...]:
    """Return a label for every class but the background, in the order of the class indices.

    Args:
        classes: Logit maps; 1: one foreground class.
        names: Of the foreground classes; empty: "class 1" and so on, or none for one class.
        colors: Such as "#e69f00"; empty: the palette's.

    Raises:
        ValueError: Not as many as classes, one twice, or no name or colour.

    Example:
        >>> make_labels(3, ["neoplastic", "non-neoplastic"])[0].color
        (0, 158, 115)
    """
    if classes > MOST_CLASSES:  # a label is made for each
        raise ValueError(f"classes is {classes}; expected at most {MOST_CLASSES}")
    count = max(1, classes - 1)
    for what, given in (("class_names", names), ("class_colors", colors)):
        if given and len(given) != count:
            raise ValueError(
                f"{what} has {len(given)} entries for {count} classes (without background)"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"class_names is {list(names)}; expected each name once")
    if not names and classes == 1:
        return ()
    named = names or [f"class {k + 1}" for k in range(count)]
    drawn = [_color(text) for text in colors] or [PALETTE[k % len(PALETTE)] for k in range(count)]
    return tuple(Label(name, color) for name, color in zip(named, drawn, strict=True))


def read_labels(values: Sequence[Mapping[str, Any]], classes: int) -> tuple[Label, ...]:
    """Return the labels that a header or manifest holds; without any the defaults.

    Raises:
        ValueError: Not one for each class, or no label.
    """
    if not values:
        return make_labels(classes)
    labels = tuple(Label(str(value["name"]), tuple(value["color"])) for value in values)
    if len(labels) != max(1, classes - 1):
        raise ValueError(f"{len(labels)} class labels for {classes} logit maps")
    return labels


def _color(text: str) -> Color:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"class_colors holds {text!r}; expected such as '#e69f00'")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
