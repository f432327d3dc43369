"""The official lists of public data sets: known, made from the names, or asked for; never drawn.

A configuration that says whose figures it repeats (``split.official``) trains on that set's own
lists alone. They are told by the number of their names and, where we know it, by a hash of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    form: str = r".+"  # of every image's name, a pattern


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
        r"c[jk][0-9a-z]{23}",
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
        r"ISIC_\d{7}",
    ),
    "isic2017": DataSet(
        "ISIC-2017",
        {"train": Part(2000), "val": Part(150), "test": Part(600)},
        "the folders Training_Data, Validation_Data and Test_v2_Data, or lists of their names",
        r"ISIC_\d{7}",
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
    from medisseg.data.layout import split_word  # with numpy, which the help does without

    data = SETS[key]
    known = "; split.official= (empty) says that you know, and takes what there is"
    found = find()
    part = data.parts.get(split) or data.parts.get(split_word(Path(split).stem) or "")
    if found is None and part is not None and part.pattern:
        found = [name for name in images if re.fullmatch(part.pattern, name, re.I)]
    if found is None:
        raise UserError(
            f"no list {split} of {data.name}: its official split is not drawn at random; put there "
            f"{data.source}{known}"
        )
    if other := next((n for n in found if not re.fullmatch(data.form, n.split("/")[-1])), None):
        raise UserError(
            f"list {split} holds {other}, which is no name of {data.name} ({data.form}){known}"
        )
    candidates = data.parts.values() if part is None else (part,)
    if not any(_is(one, found) for one in candidates):
        sizes = ", ".join(f"{name} {one.count}" for name, one in data.parts.items())
        raise UserError(
            f"list {split} has {len(found)} names and is not {data.name}'s official list of that "
            f"name ({sizes}); expected {data.source}{known}"
        )
    return list(found)


def _is(part: Part, found: Sequence[str]) -> bool:
    """Whether names are those of a part, as far as we know them."""
    form = re.compile(part.pattern or ".+", re.I)
    fitting = all(form.fullmatch(name.split("/")[-1]) for name in found)
    return fitting and len(found) == part.count and digest(found).startswith(part.digest or "")


def digest(found: Sequence[str]) -> str:
    """Return the SHA-256, in hexadecimal, of names in any order."""
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
