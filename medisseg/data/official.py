"""The official lists of public data sets: known, made from the names, or asked for; never drawn.

A configuration that says whose figures it repeats (``split.official``) trains on that set's own
lists alone. They are told by the number of their names and, where we know it, by a hash of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medisseg.errors import UserError


@dataclass(frozen=True)
class Part:
    """An official list: how many names, the SHA-256 of the sorted names joined by newlines, and
    the names themselves where they tell their part (a pattern)."""

    count: int
    digest: str | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set's lists, and where people find them."""

    name: str
    parts: dict[str, Part]
    source: str


SETS = {
    "kvasir-seg": DataSet(
        "Kvasir-SEG",
        {
            "train": Part(880, "2f5bfffaca619958"),
            "val": Part(120, "996dbc9819bd897d"),
        },
        "train.txt and val.txt of github.com/DebeshJha/2020-MediaEval-Medico-polyp-segmentation",
    ),
    "kvasir-sessile": DataSet(
        "Kvasir-Sessile",
        {"train": Part(156), "val": Part(20), "test": Part(20)},
        "the lists of the work that you compare with (156, 20 and 20 names)",
    ),
    "glas": DataSet(
        "GlaS",
        {
            "train": Part(85, pattern=r"train_\d+"),
            "test": Part(80, pattern=r"test[AB]_\d+"),
        },
        "images train_1 to train_85, testA_1 to testA_60 and testB_1 to testB_20",
    ),
    "isic2016": DataSet(
        "ISIC-2016",
        {"train": Part(900), "test": Part(379)},
        "the folders Training_Data and Test_Data as downloaded, or lists of their names",
    ),
    "isic2017": DataSet(
        "ISIC-2017",
        {"train": Part(2000), "val": Part(150), "test": Part(600)},
        "the folders Training_Data, Validation_Data and Test_v2_Data, or lists of their names",
    ),
}


def names(
    key: str, split: str, images: Sequence[str], find: Callable[[], Sequence[str] | None]
) -> list[str]:
    """Return the names of an official list.

    Args:
        key: Of :data:`SETS`.
        split: What the configuration asks for: "train", "val", "test" or the path of a list.
        images: Every image's name.
        find: Returns the list that the folder comes with, or None.

    Raises:
        UserError: There is none, and the names do not tell it; or it is another list.
    """
    data = SETS[key]
    known = "; split.official= (empty) says that you know, and takes what there is"
    found = find()
    part = data.parts.get(split)
    if found is None and part is not None and part.pattern:
        found = [name for name in images if re.fullmatch(part.pattern, name, re.I)]
    if found is None:
        raise UserError(
            f"no list {split} of {data.name}: its official split is not drawn at random; put there "
            f"{data.source}{known}"
        )
    hashed = digest(found)
    if not any(
        len(found) == one.count and hashed.startswith(one.digest or "")
        for one in data.parts.values()
    ):
        sizes = ", ".join(f"{name} {one.count}" for name, one in data.parts.items())
        raise UserError(
            f"list {split} has {len(found)} names and is none of {data.name}'s official lists "
            f"({sizes}); expected {data.source}{known}"
        )
    return list(found)


def digest(found: Sequence[str]) -> str:
    """Return the SHA-256, in hexadecimal, of names in any order."""
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
