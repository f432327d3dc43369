"""What is in a data folder, before anything is trained on it, and what is doubtful about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.data import splits
from medisseg.data.folder import Sample, SegmentationFolder, listed
from medisseg.data.lists import find_parts
from medisseg.data.reading import BadFile, read_header
from medisseg.data.shares import doubts, foreground_line
from medisseg.errors import UserError
from medisseg.schema import Json

# Bits of 256 in which two pictures of one scene, stored or scaled differently, may part.
ALIKE = 8
SHEET = 24  # images on the contact sheet


@dataclass(frozen=True)
class Look:
    """One image of a survey: its size, foreground and class shares, void share and fingerprint."""

    size: tuple[int, int]
    classes: dict[int, float]
    void: float
    print: npt.NDArray[np.bool_]

    @property
    def foreground(self) -> float:
        """Share of pixels that are not background."""
        return sum(share for index, share in self.classes.items() if index)


@dataclass
class Survey:
    """What :func:`take_survey` found; ``lines`` says it, ``to_dict`` holds it for JSON."""

    root: Path
    images: int
    splits: dict[str, Json]
    notes: list[str]
    unmasked: list[str]
    left_out: dict[str, str]
    bad: dict[str, str] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    labels: tuple[str, ...] = ()
    duplicates: list[str] = field(default_factory=list)

    def shares(self) -> npt.NDArray[np.float64]:
        """Return the foreground share of every image, [N] in [0, 1]."""
        return np.array([look.foreground for look in self.looks.values()])

    def classes(self) -> dict[str, float]:
        """Return the mean share of each class, background included, by label or index."""
        found: Counter[int] = Counter()
        for look in self.looks.values():
            found.update(look.classes)  # type: ignore[arg-type]
        return {
            self.labels[k - 1] if 0 < k <= len(self.labels) else str(k): share / len(self.looks)
            for k, share in sorted(found.items())
        }

    def warnings(self) -> list[str]:
        """Return what is doubtful."""
        found = doubts(self.shares())
        if self.unmasked:
            found.append(
                f"no mask for {listed(self.unmasked)} ({len(self.unmasked)} of {self.images}); "
                "unmasked=negative says that there is nothing on them, unmasked=skip skips them"
            )
        if self.bad:
            first = next(iter(self.bad.values()))
            found.append(f"{len(self.bad)} of {self.images} cannot be used: {first}")
        return found + self.duplicates

    def to_dict(self) -> Json:
        """Return what was found as JSON-ready values."""
        sizes = Counter(f"{look.size[1]}x{look.size[0]}" for look in self.looks.values())
        shares = self.shares()
        return {
            "folder": str(self.root),
            "images": self.images,
            "unmasked": self.unmasked,
            "unusable": self.bad,
            "splits": self.splits,
            "sizes": dict(sizes.most_common()),
            "kinds": dict(self.kinds),
            "mean_foreground": float(shares.mean()) if shares.size else None,
            "empty": int((shares == 0).sum()),
            "full": int((shares == 1).sum()),
            "classes": self.classes() if self.looks else {},
            "void": float(np.mean([look.void for look in self.looks.values()] or [0])),
            "left_out": self.left_out,
            "notes": self.notes,
            "warnings": self.warnings(),
        }

    def lines(self) -> list[str]:
        """Return what was found in words, a line each."""
        counts = self.to_dict()
        found = [f"{self.root}: {self.images} images, " + ", ".join(
            f"{number} {kind}" for kind, number in self.kinds.most_common())]  # fmt: skip
        for name, part in self.splits.items():
            found.append(f"split {name}: {part['images']} images, from {part['from']}")
        sizes = list(counts["sizes"].items())
        if sizes:
            more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
            found.append("sizes: " + ", ".join(f"{n} of {s}" for s, n in sizes[:3]) + more)
            found.append(foreground_line(self.shares()))
        if len(counts["classes"]) > 2:
            parts = (f"{name} {share:.2%}" for name, share in counts["classes"].items())
            found.append("share of the classes: " + ", ".join(parts))
        if counts["void"]:
            found.append(f"void: {counts['void']:.2%} of the pixels count for nothing")
        found += self.notes
        for reason, number in Counter(self.left_out.values()).most_common():
            first = next(path for path, why in self.left_out.items() if why == reason)
            found.append(f"left out: {number} files, {reason} (e.g. {first})")
        return found + [f"warning: {text}" for text in self.warnings()]


def take_survey(
    folder: SegmentationFolder, advance: Callable[[int], object] = lambda images: None
) -> Survey:
    """Look at every image and mask of a folder.

    Args:
        folder: A data folder with ``unmasked="negative"``, so that bare images are looked at too.
        advance: Told that one more image is done.
    """
    contents, images = folder.contents, folder.images()
    parts = find_parts(folder.root, images)
    found = Survey(
        folder.root,
        len(folder.files),
        {name: {"images": len(p.names), "from": p.origin} for name, p in parts.items()},
        list(contents.notes),
        [name for name, files in folder.files.items() if not files.labelled],
        {str(path.relative_to(folder.root)): why for path, why in contents.left_out.items()},
        labels=contents.labels,
    )
    if not parts:
        _drawn(found, folder)
    try:
        found.notes = folder.notes()
    except BadFile as error:
        found.bad[folder.names[0]] = str(error)
        return found
    with ThreadPoolExecutor(2) as pool:
        for name, (look, problem) in zip(
            folder.names, pool.map(lambda i: _look(folder, i), range(len(folder))), strict=True
        ):
            if look is None:
                found.bad[name] = problem
            else:
                found.looks[name] = look
                found.kinds[_kind(folder, name)] += 1
            advance(1)
    named = {name: part.names for name, part in parts.items()}
    found.duplicates = near_duplicates(found.looks, named)
    if parts and (rest := len(images) - len({n for names in named.values() for n in names})) > 0:
        found.notes.append(f"{rest} images are in no split")
    return found


def _drawn(found: Survey, folder: SegmentationFolder) -> None:
    """Say which split would be drawn where the folder comes with none."""
    for name in splits.SEEDED:
        drawn = splits.names(folder.root, name, folder.images())
        found.splits[name] = {"images": len(drawn), "from": "a seeded draw, there are no lists"}


def _look(folder: SegmentationFolder, index: int) -> tuple[Look | None, str]:
    try:
        sample = folder[index]
    except UserError as error:
        return None, str(error)
    values, counts = np.unique(sample.mask, return_counts=True)
    shares = {int(v): float(n) / sample.mask.size for v, n in zip(values, counts, strict=True)}
    void = 0.0 if sample.void is None else float(sample.void.mean())
    return Look(sample.mask.shape, shares, void, fingerprint(sample.image)), ""


def _kind(folder: SegmentationFolder, name: str) -> str:
    files = folder.files[name]
    if files.slice is not None:
        return "slices of volumes"
    head = read_header(files.image)
    grey = " grey" if head.bands in (1, 2) and head.mode != "P" else ""
    clear = " with transparency (left out)" if head.mode in ("RGBA", "LA", "PA") else ""
    turned = " turned by EXIF" if head.orientation != 1 else ""
    return f"{head.kind}{' of 16 bits or float' if head.deep else ''}{grey}{clear}{turned}"


def fingerprint(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return the difference hash, bool [256], of an image uint8 RGB [H, W, 3] (Krawetz 2013).

    Of 16 x 17 cells: whether each is brighter than the one to its left. It survives scaling and
    compression.
    """
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
    return (small[:, 1:] > small[:, :-1]).ravel()


def near_duplicates(looks: Mapping[str, Look], parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return warnings about pictures of one scene in two splits, at most one line."""
    names = [name for name in looks if any(name in inside for inside in map(set, parts.values()))]
    if not names:
        return []
    part = {name: key for key, inside in parts.items() for name in inside}
    prints = np.stack([looks[name].print for name in names]).astype(np.float32)
    pairs = []
    for start in range(0, len(names), 1024):
        block = prints[start : start + 1024]
        # Bits that differ, as a matrix product: |a| + |b| - 2 a.b
        apart = block.sum(1)[:, None] + prints.sum(1)[None] - 2 * block @ prints.T
        for row, column in np.argwhere(apart <= ALIKE).tolist():
            one, two = names[start + row], names[column]
            if start + row < column and part[one] != part[two]:
                pairs.append(f"{one} ({part[one]}) and {two} ({part[two]})")
    if not pairs:
        return []
    more = f" and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
    return [f"nearly the same picture in two splits: {pairs[0]}{more}"]


def contact_sheet(folder: SegmentationFolder, survey: Survey) -> npt.NDArray[np.uint8]:
    """Return up to :data:`SHEET` images with their masks as one picture uint8 RGB [H, W, 3]."""
    from medisseg.evaluation.pictures import overlay, shrink

    usable = [i for i, name in enumerate(folder.names) if name in survey.looks]
    chosen = (
        [usable[i * len(usable) // SHEET] for i in range(SHEET)] if len(usable) > SHEET else usable
    )
    side, columns = 240, 6
    rows = -(-len(chosen) // columns)
    sheet = np.full((rows * side, min(columns, len(chosen)) * side, 3), 255, np.uint8)
    for place, index in enumerate(chosen):
        sample: Sample = folder[index]
        tile = shrink(overlay(sample.image, sample.mask), side - 4)
        top, left = place // columns * side, place % columns * side
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
